"""Builds the initial Response object from the request's fields, with OpenAI's defaults for absent fields.

Lives here: the order of a response's members, and the repeated fields whose form needs more than a row of the table
(`translation/request/fields.py`). Not here: changes while the response runs (`builder.py`).

Source: OpenAI's observed responses, with the two differences below. A function's omitted `strict` is repeated as null,
because no schema is rewritten. At the end `service_tier` is the upstream's value, or `default`.
"""

from __future__ import annotations

from typing import Final, cast

import msgspec
from msgspec import UNSET, Raw, defstruct

from antiphon.translation.request.fields import ECHOED, FORWARDED
from antiphon.types.json import given, raw
from antiphon.types.request import CreateResponse, TextOptions, ToolDeclaration
from antiphon.types.response import ConversationReference, Response

_AUTO: Final = Raw(b'"auto"')
_NO_METADATA: Final = Raw(b"{}")
_FALLBACK: Final = "antiphon_upstream"
"""The metadata key for the name of the fallback upstream, if a fallback answered instead of the first upstream."""
_IGNORED: Final = "antiphon_ignored"
"""The metadata key for the names of the tools that the model did not see."""
_LONGEST_VALUE: Final = 512
_MOST_METADATA: Final = 16
_NO_REASONING: Final = Raw(b'{"effort":null,"summary":null}')


def _with_echoes() -> type[Response]:
    """The response type with a member for each field that responses repeat. The order is OpenAI's: alphabetical, except
    for five members."""
    own = {
        field.name: (field.name, field.type) if field.required else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(Response)
    }
    own |= {name: (name, row.echo_kind, row.echo) for name, row in ECHOED.items()}
    first = [own.pop(name) for name in ("id", "object", "created_at", "status")]
    last = own.pop("metadata")
    members = [*first, *(own[name] for name in sorted(own)), last]
    whole = defstruct("Response", members, kw_only=True, namespace={"__doc__": Response.__doc__})
    return cast(type[Response], whole)


WHOLE_RESPONSE: Final = _with_echoes()
"""The type of a whole response, as Antiphon sends and stores it."""
_HELD: Final = tuple(ECHOED.keys() - FORWARDED.keys())


def start_response(request: CreateResponse, response_id: str, created_at: float) -> Response:
    """The response at its beginning: `in_progress`, without output and usage."""
    return WHOLE_RESPONSE(
        id=response_id,
        created_at=int(created_at),
        model=request.model,
        status="in_progress",
        tools=[_tool(tool) for tool in request.tools],
        tool_choice=request.tool_choice.echo if request.tool_choice is not None else _AUTO,
        text=_text(request.text),
        reasoning=_reasoning(request),
        metadata=_metadata(request),
        conversation=ConversationReference(request.conversation) if request.conversation is not None else UNSET,
        instructions=_instructions(request),
        output=[],
        previous_response_id=request.previous_response_id,
        prompt=request.prompt if request.prompt is not None else UNSET,
        **{name: value for name in _HELD if (value := getattr(request, name)) is not None},
        **request.forwarded,
    )


def echo_configuration(response: Response, request: CreateResponse) -> None:
    """Repeat in the response the reasoning and text settings that items of the conversation have changed."""
    response.reasoning, response.text = _reasoning(request), _text(request.text)


def with_fallback(metadata: Raw, upstream: str) -> Raw:
    """The metadata with the name of the fallback upstream that answered instead of the first upstream."""
    return _with_pair(metadata, _FALLBACK, upstream)


def _metadata(request: CreateResponse) -> Raw:
    metadata = request.metadata or _NO_METADATA
    tools = request.unknown.tools
    if not tools:
        return metadata
    named = ", ".join(tools)
    if len(named) > _LONGEST_VALUE:
        named = named[: _LONGEST_VALUE - 5].rpartition(", ")[0] + ", ..."
    return _with_pair(metadata, _IGNORED, named)


def _with_pair(metadata: Raw, key: str, value: str) -> Raw:
    """The metadata with an additional pair of Antiphon's, unless the client's pairs reach the maximum."""
    pairs = msgspec.json.decode(metadata, type=dict[str, Raw])
    if key not in pairs and len(pairs) >= _MOST_METADATA:
        return metadata
    return raw({**pairs, key: value})


def _instructions(request: CreateResponse) -> Raw | None:
    """The request's instructions. If a prompt has messages, the value is a list that ends with these messages, as in
    OpenAI's responses."""
    if not request.prompt_messages:
        return request.instructions
    said: list[object] = [item.source for item in request.prompt_messages]
    if request.instructions is not None:
        part = {"type": "input_text", "text": request.instructions}
        said.insert(0, {"type": "message", "role": "developer", "content": [part]})
    return raw(said)


def _tool(tool: ToolDeclaration) -> Raw:
    """A tool in the form that the response repeats. A function and a tool search get every key that OpenAI's responses
    have, with null for missing values. Other tools stay as the client declared them, because they contain no secret."""
    if tool.type == "mcp":
        return _mcp(tool.source)
    if tool.type not in ("function", "tool_search"):
        return tool.source
    shown: dict[str, object] = {
        "type": tool.type,
        "description": tool.description,
        "parameters": tool.parameters if given(tool.parameters) else None,
    }
    if tool.type == "tool_search":
        return raw({**shown, "execution": tool.execution} if tool.execution is not None else shown)
    shown |= {"name": tool.name, "strict": tool.strict}
    if tool.defer_loading:
        # OpenAI's responses have `defer_loading` only when the request set it.
        shown["defer_loading"] = True
    return raw(shown)


def _mcp(source: Raw) -> Raw:
    """An MCP server's declaration without its credentials."""
    shown = msgspec.json.decode(source, type=dict[str, Raw])
    shown.pop("authorization", None)
    return raw({"allowed_tools": None, "require_approval": "always", **shown, "headers": None})


def _text(text: TextOptions | None) -> Raw:
    verbosity = (text.verbosity if text is not None else None) or "medium"
    wanted: dict[str, object] = {"type": "text"}
    if text is not None and text.format is not None and text.format.type != "text":
        wanted = {"type": text.format.type}
        if text.format.type == "json_schema":
            wanted |= {
                "description": text.format.description,
                "name": text.format.name,
                "schema": text.format.schema,
                "strict": text.format.strict is not False,
            }
    return raw({"format": wanted, "verbosity": verbosity})


def _reasoning(request: CreateResponse) -> Raw:
    asked = request.reasoning
    if asked is None:
        return _NO_REASONING
    return raw({"effort": asked.effort, "summary": asked.summary or asked.generate_summary})
