"""What becomes of everything a request can hold: one table, for people and for `GET /v1/antiphon/capabilities`.

Lives here: the fate of every field, `include` value, tool, form of `tool_choice`, item and content part, by profile.
Not here: the code that acts (`read_request.py`, `chat_request.py`, `chat_tools.py`, `chat_messages.py`,
`chat_content.py`).

Invariant: the table says what that code does; `tests/unit/translation/test_fates.py` sends a request for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from antiphon.translation.profiles import UpstreamProfile

__all__ = ["GROUPS", "HOSTED_FATE", "Fate", "FateKind", "all_names", "fate"]

FateKind = Literal["translated", "emulated", "ignorable", "unsupported"]


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens: `translated` into the chat request; `emulated` by the gateway itself or with weaker means of chat;
    `ignorable`: served without effect and named in `antiphon-ignored`; `unsupported`: a 400 naming it. `note` says how,
    and is empty where the kind says it all."""

    kind: FateKind
    note: str = ""


_Rule = Fate | Callable[[UpstreamProfile], Fate]

_SENT = Fate("translated")
_NAMED = Fate("ignorable")
_HOSTED = Fate("ignorable", "a hosted tool that does not run here: left out")
_NOT_HERE = Fate("unsupported", "asks for a hosted tool that does not run here")
_REFUSED_TOOL = Fate(
    "unsupported", "code `unsupported_tool`, unless the gateway is set up to run it: the answer would be wrong"
)
_SET_UP = Fate("ignorable", "left out, unless the gateway is set up to run it")
_CHOSEN = Fate("unsupported", "unless the gateway is set up to run the tool")
_INCLUDED = Fate("ignorable", "unless the gateway is set up to run the tool")
HOSTED_FATE = Fate("emulated", "runs here, between two turns of the model")
"""Of everything that speaks of a tool, in a gateway that is set up to run it."""
_SHOWN = Fate("emulated", "shown to the model as a call and its result")
_FUNCTION = Fate("emulated", "a function; calls come back as items of their own type")
_OUTPUT = Fate("emulated", "a tool message")
_CALL = Fate("emulated", "a function call")
_IN_CHAT = Fate("unsupported", "belongs to Chat Completions; the message names the field to use")


def _sent_if(flag: str, otherwise: Fate = _NAMED) -> _Rule:
    return lambda profile: _SENT if getattr(profile, flag) else otherwise


def _passed(name: str) -> _Rule:
    note = "`auto` and `default` need nothing and are never named" if name == "service_tier" else ""
    return lambda profile: Fate("translated" if name in profile.passed_fields else "ignorable", note)


def _max_output_tokens(profile: UpstreamProfile) -> Fate:
    return Fate("translated", f"`{profile.token_limit_field}`")


def _effort(profile: UpstreamProfile) -> Fate:
    if not profile.reasoning_effort:
        return _NAMED
    known = profile.effort_values
    return Fate("translated", f"the nearest of {', '.join(known)}" if known else "`reasoning_effort`")


def _json_schema(profile: UpstreamProfile) -> Fate:
    if profile.structured_output == "json_schema":
        return Fate("translated", "`response_format`")
    if profile.structured_output == "json_object":
        return Fate("emulated", "`json_object`, and the schema as an instruction")
    return Fate("emulated", "the schema as an instruction")


def _json_object(profile: UpstreamProfile) -> Fate:
    if profile.structured_output == "off":
        return Fate("emulated", "an instruction")
    if not profile.json_object:
        return Fate("emulated", "`json_schema` of any object, and an instruction")
    return Fate("translated", "`response_format`")


def _logprobs(profile: UpstreamProfile) -> Fate:
    return _SENT if profile.logprobs else Fate("unsupported", "this server gives no log probabilities")


def _parallel(profile: UpstreamProfile) -> Fate:
    if profile.parallel_tool_calls:
        return Fate("translated", "with `false`, further calls of a model that makes them anyway are left out too")
    return Fate("emulated", "with `false`, calls after the first are left out")


def _named_choice(profile: UpstreamProfile) -> Fate:
    if profile.named_tool_choice == "native":
        return _SENT
    return Fate("emulated", "only that tool is shown, and a call is required")


def _strict(profile: UpstreamProfile) -> Fate:
    return _SENT if profile.strict_tools else _NAMED


def _reasoning_item(profile: UpstreamProfile) -> Fate:
    if profile.replay_reasoning == "off":
        return Fate("ignorable", "this server takes no reasoning back")
    return Fate("translated", f"`{profile.replay_reasoning}` of the assistant message it belongs to")


def _images(profile: UpstreamProfile) -> Fate:
    return Fate("translated", "`image_url`") if profile.images else Fate("unsupported", "this server takes text only")


def _file(profile: UpstreamProfile) -> Fate:
    if profile.files == "part":
        return Fate("translated", "files that are text as text, others as a `file` part")
    return Fate("emulated", "files that are text as text; others are a 400")


def _file_url(profile: UpstreamProfile) -> Fate:
    return Fate("emulated", f"fetched (public addresses only), then {_file(profile).note}")


def _file_by_id(profile: UpstreamProfile) -> Fate:
    return Fate("emulated", f"read from `/v1/files`, then {_file(profile).note}")


def _image_by_id(profile: UpstreamProfile) -> Fate:
    return Fate("emulated", "read from `/v1/files`, then a data URL") if profile.images else _images(profile)


def _audio(profile: UpstreamProfile) -> Fate:
    return _SENT if profile.audio_input else Fate("unsupported", "this server takes no audio")


def _message(profile: UpstreamProfile) -> Fate:
    which = "leading system and developer messages" if profile.system_anywhere else "system and developer messages"
    return Fate("translated", f"{which} become one system message")


_TABLE: dict[str, dict[str, _Rule]] = {
    "Fields": {
        "model": Fate("translated", "an alias becomes the upstream's name"),
        "input": _SENT,
        "instructions": Fate("translated", "the system message"),
        "previous_response_id": Fate("emulated", "the stored turns are sent again"),
        "store": Fate("emulated", "kept by the gateway"),
        "stream": _SENT,
        "stream_options.include_obfuscation": Fate("emulated", "padding only when it is asked for"),
        "max_output_tokens": _max_output_tokens,
        "max_tool_calls": Fate("emulated", "limits hosted tools, of which none run here: always kept"),
        "metadata": Fate("emulated", "kept and echoed by the gateway; not sent on"),
        "temperature": _SENT,
        "top_p": _SENT,
        "presence_penalty": _sent_if("penalties"),
        "frequency_penalty": _sent_if("penalties"),
        "top_logprobs": _logprobs,
        "parallel_tool_calls": _parallel,
        "text.format.text": Fate("translated", "the default of chat: nothing is sent"),
        "text.format.json_schema": _json_schema,
        "text.format.json_object": _json_object,
        "text.verbosity": _sent_if("verbosity"),
        "reasoning.effort": _effort,
        "reasoning.summary": Fate("emulated", "the server's reasoning as it is, in summary parts"),
        "reasoning.generate_summary": Fate("emulated", "like `reasoning.summary`"),
        "reasoning.mode": _NAMED,
        "reasoning.context": _NAMED,
        "truncation.auto": Fate("ignorable", "where `context_tokens` is set: emulated, the oldest turns are left out"),
        "truncation.disabled": Fate("translated", "the default of chat: nothing is sent"),
        "service_tier": _passed("service_tier"),
        "safety_identifier": _passed("safety_identifier"),
        "prompt_cache_key": _passed("prompt_cache_key"),
        "prompt_cache_retention": _passed("prompt_cache_retention"),
        "prompt_cache_options.prewarm": Fate("emulated", "answered at once and empty, without a model call"),
        "prompt_cache_options.mode": _NAMED,
        "prompt_cache_options.ttl": _NAMED,
        "user": _passed("user"),
        "context_management": Fate(
            "emulated", "a summary by the same model, before the answer; without a number, `context_tokens` decides"
        ),
        "moderation": _NAMED,
        "background": Fate(
            "emulated",
            "queued and run by the gateway; needs `store`, and an upstream that takes the gateway's own credentials",
        ),
        "conversation": Fate(
            "emulated", "its items before the input; a response that is stored and does not fail joins it"
        ),
        "prompt": Fate(
            "emulated", "a template kept by the gateway (`/v1/prompts`): its messages first, its fields as sent"
        ),
        "any other field": _NAMED,
        "messages": _IN_CHAT,
        "response_format": _IN_CHAT,
        "max_tokens": _IN_CHAT,
        "max_completion_tokens": _IN_CHAT,
        "functions": _IN_CHAT,
        "function_call": _IN_CHAT,
        "reasoning_effort": _IN_CHAT,
        "verbosity": _IN_CHAT,
        "logprobs": _IN_CHAT,
    },
    "Values of `include`": {
        "include:reasoning.encrypted_content": Fate("emulated", "sealed by the gateway with its own key"),
        "include:message.output_text.logprobs": _logprobs,
        "include:file_search_call.results": _INCLUDED,
        "include:web_search_call.results": _NAMED,
        "include:web_search_call.action.sources": _INCLUDED,
        "include:message.input_image.image_url": _NAMED,
        "include:computer_call_output.output.image_url": _NAMED,
        "include:code_interpreter_call.outputs": _INCLUDED,
    },
    "Tools": {
        "tools.function": _SENT,
        "tools.function.strict": _strict,
        "tools.custom": Fate("emulated", "a function with one string; a grammar is described, not enforced"),
        "tools.namespace": Fate("emulated", "functions with joined names; calls come back with their `namespace`"),
        "tools.local_shell": _FUNCTION,
        "tools.shell": Fate("emulated", "a function; with a container of OpenAI's: left out and named"),
        "tools.apply_patch": _FUNCTION,
        "tools.tool_search": Fate(
            "emulated", "a function with `execution: client`; else left out, all tools are shown"
        ),
        "tools.web_search": _SET_UP,
        "tools.web_search_2025_08_26": _SET_UP,
        "tools.web_search_preview": _SET_UP,
        "tools.web_search_preview_2025_03_11": _SET_UP,
        "tools.file_search": _SET_UP,
        "tools.image_generation": _HOSTED,
        "tools.computer": _HOSTED,
        "tools.computer_use_preview": _HOSTED,
        "tools.programmatic_tool_calling": _HOSTED,
        "tools.code_interpreter": _REFUSED_TOOL,
        "tools.mcp": _REFUSED_TOOL,
    },
    "Forms of `tool_choice`": {
        "tool_choice.auto": _SENT,
        "tool_choice.none": _SENT,
        "tool_choice.required": _SENT,
        "tool_choice.function": _named_choice,
        "tool_choice.custom": _named_choice,
        "tool_choice.local_shell": _named_choice,
        "tool_choice.shell": _named_choice,
        "tool_choice.apply_patch": _named_choice,
        "tool_choice.tool_search": _named_choice,
        "tool_choice.allowed_tools": Fate("emulated", "only these are shown, and only their calls are let through"),
        "tool_choice.file_search": _CHOSEN,
        "tool_choice.web_search_preview": _CHOSEN,
        "tool_choice.web_search_preview_2025_03_11": _CHOSEN,
        "tool_choice.computer": _NOT_HERE,
        "tool_choice.computer_use": _NOT_HERE,
        "tool_choice.computer_use_preview": _NOT_HERE,
        "tool_choice.image_generation": _NOT_HERE,
        "tool_choice.code_interpreter": _CHOSEN,
        "tool_choice.mcp": _CHOSEN,
        "tool_choice.programmatic_tool_calling": _NOT_HERE,
    },
    "Items of `input`": {
        "input.message": _message,
        "input.item_reference": Fate("emulated", "replaced by the stored item"),
        "input.reasoning": _reasoning_item,
        "input.function_call": _SENT,
        "input.function_call_output": Fate("translated", "images in it follow in a user message"),
        "input.custom_tool_call": _CALL,
        "input.custom_tool_call_output": _OUTPUT,
        "input.local_shell_call": _CALL,
        "input.local_shell_call_output": _OUTPUT,
        "input.shell_call": _CALL,
        "input.shell_call_output": _OUTPUT,
        "input.apply_patch_call": _CALL,
        "input.apply_patch_call_output": _OUTPUT,
        "input.tool_search_call": _CALL,
        "input.tool_search_output": Fate("emulated", "a tool message; its tools can be called from then on"),
        "input.additional_tools": Fate("emulated", "its tools are added to `tools`"),
        "input.compaction": Fate("emulated", "our own are opened and shown as a summary; others are a 400"),
        "input.web_search_call": _SHOWN,
        "input.file_search_call": _SHOWN,
        "input.image_generation_call": Fate("emulated", "shown as a call and its result, without the image"),
        "input.code_interpreter_call": _SHOWN,
        "input.computer_call": _SHOWN,
        "input.computer_call_output": Fate("emulated", "added to the result of its call; the screenshot as an image"),
        "input.mcp_call": _SHOWN,
        "input.mcp_list_tools": _SHOWN,
        "input.mcp_approval_request": _SHOWN,
        "input.mcp_approval_response": Fate("emulated", "added to the result of its request"),
        "input.program": _SHOWN,
        "input.program_output": Fate("emulated", "added to the result of its program"),
        "input.compaction_trigger": Fate("emulated", "as the last item: the answer is a compaction, made by the model"),
    },
    "Content parts": {
        "content.input_text": _SENT,
        "content.output_text": _SENT,
        "content.refusal": Fate("translated", "as text of the assistant"),
        "content.input_image.image_url": _images,
        "content.input_image.file_id": _image_by_id,
        "content.input_file.file_data": _file,
        "content.input_file.file_url": _file_url,
        "content.input_file.file_id": _file_by_id,
        "content.input_audio": _audio,
    },
}

GROUPS: dict[str, tuple[str, ...]] = {group: tuple(rows) for group, rows in _TABLE.items()}
"""The names in a readable order, by group."""

_RULES = {name: rule for rows in _TABLE.values() for name, rule in rows.items()}


def all_names() -> Iterator[str]:
    """Every name that has a fate."""
    return iter(_RULES)


def fate(profile: UpstreamProfile, name: str, *, context_tokens: int | None = None) -> Fate:
    """What becomes of this with an upstream of this profile; `context_tokens` is what the model takes, where that is
    set. Raises KeyError for a name that is not in the table."""
    if name == "truncation.auto" and context_tokens is not None:
        return Fate("emulated", f"the oldest turns beyond about {context_tokens} tokens are left out")
    rule = _RULES[name]
    return rule if isinstance(rule, Fate) else rule(profile)
