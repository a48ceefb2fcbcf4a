"""A create-response request becomes a Chat Completions request.

Lives here: the fields beside the messages. Not here: reading and checking them (`read_request.py`), the messages
(`chat_messages.py`).

Invariant: what a strict chat server would refuse is never sent: an empty `tools`, a `tool_choice` without tools,
`stream_options` without a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from antiphon.translation.chat_messages import translate_items
from antiphon.translation.profiles import UpstreamProfile
from antiphon.types.chat import ChatRequest
from antiphon.types.items import InputItem
from antiphon.types.json import encode, given
from antiphon.types.request import CreateResponse, FunctionTool, TextOptions

__all__ = ["translate_request"]

_USAGE = Raw(b'{"include_usage":true}')
_NO_PARAMETERS = Raw(b'{"type":"object","properties":{}}')


def translate_request(
    request: CreateResponse, items: Iterable[tuple[str, InputItem]], profile: UpstreamProfile
) -> bytes:
    """The body of the chat request. Raises `InvalidRequest`."""
    tools, choice = _tools(request)
    chat = ChatRequest(
        model=request.model,
        messages=translate_items(request.instructions, items, profile),
        stream=True if request.stream else UNSET,
        stream_options=_USAGE if request.stream and profile.stream_usage else UNSET,
        tools=[_tool(tool) for tool in tools] or UNSET,
        tool_choice=choice if tools else UNSET,
        parallel_tool_calls=_or_unset(request.parallel_tool_calls) if tools and profile.parallel_tool_calls else UNSET,
        response_format=_response_format(request.text),
        temperature=_or_unset(request.temperature),
        top_p=_or_unset(request.top_p),
        presence_penalty=_or_unset(request.presence_penalty),
        frequency_penalty=_or_unset(request.frequency_penalty),
        reasoning_effort=_or_unset(request.reasoning.effort)
        if request.reasoning is not None and profile.reasoning_effort
        else UNSET,
        verbosity=_or_unset(request.text.verbosity) if request.text is not None and profile.verbosity else UNSET,
    )
    if request.max_output_tokens is not None:
        setattr(chat, profile.token_limit_field, request.max_output_tokens)
    return encode(chat)


_T = TypeVar("_T")


def _or_unset(value: _T | None) -> _T | UnsetType:
    return UNSET if value is None else value


def _tools(request: CreateResponse) -> tuple[list[FunctionTool], Raw | UnsetType]:
    """The tools the model sees and the chat form of `tool_choice`.

    `allowed_tools` becomes its subset: what the model does not see it cannot call.
    """
    tools = list(request.tools)
    if request.tool_choice is None:
        return tools, UNSET
    choice = msgspec.json.decode(request.tool_choice)
    if isinstance(choice, str):
        return tools, request.tool_choice
    if choice["type"] == "function":
        return tools, Raw(encode({"type": "function", "function": {"name": choice["name"]}}))
    allowed = {tool["name"] for tool in choice["tools"]}
    return [tool for tool in tools if tool.name in allowed], Raw(encode(choice["mode"]))


def _tool(tool: FunctionTool) -> Raw:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters if given(tool.parameters) else _NO_PARAMETERS
    if tool.strict is not None:
        function["strict"] = tool.strict
    return Raw(encode({"type": "function", "function": function}))


def _response_format(text: TextOptions | None) -> Raw | UnsetType:
    if text is None or text.format is None or text.format.type == "text":
        return UNSET
    if text.format.type == "json_object":
        return Raw(b'{"type":"json_object"}')
    schema: dict[str, Any] = {"name": text.format.name, "schema": text.format.schema}
    if text.format.description is not None:
        schema["description"] = text.format.description
    if text.format.strict is not None:
        schema["strict"] = text.format.strict
    return Raw(encode({"type": "json_schema", "json_schema": schema}))
