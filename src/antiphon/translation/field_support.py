"""Which request fields, tools and items are supported, and how: one table, by profile.

It is for people (`docs/compatibility.md`) and for `GET /v1/antiphon/capabilities`.

Lives here: what becomes of every field, `include` value, tool, form of `tool_choice`, item and content part.
Not here: the code that acts (`read_request.py`, `chat_request.py`, `chat_tools.py`, `chat_messages.py`,
`chat_content.py`).

Invariant: the table says what that code does; `tests/unit/translation/test_field_support.py` sends a request for each
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from antiphon.translation.parameters import PARAMETERS
from antiphon.translation.profiles import UpstreamProfile

SupportKind = Literal["translated", "emulated", "ignorable", "unsupported"]


@dataclass(frozen=True, slots=True)
class Support:
    """What happens: `translated` into the chat request; `emulated` by the gateway itself or with weaker means of chat;
    `ignorable`: served without effect and named in `antiphon-ignored`; `unsupported`: a 400 naming it. `note` says how,
    and is empty where the kind says it all."""

    kind: SupportKind
    note: str = ""


_Rule = Support | Callable[[UpstreamProfile], Support]

_SENT: Final = Support("translated")
_NAMED: Final = Support("ignorable")
_HOSTED: Final = Support(
    "ignorable", "a hosted tool that does not run here: left out; a 400 with `tools.unavailable: refuse`"
)
_NOT_HERE: Final = Support("unsupported", "asks for a hosted tool that does not run here")
_REFUSED_TOOL: Final = Support(
    "unsupported", "code `unsupported_tool`, unless the gateway is set up to run it: the answer would be wrong"
)
_SET_UP: Final = Support("ignorable", "left out (a 400 with `tools.unavailable: refuse`) unless the settings enable it")
_CHOSEN: Final = Support("unsupported", "unless the gateway is set up to run the tool")
_INCLUDED: Final = Support("ignorable", "unless the gateway is set up to run the tool")
HOSTED_SUPPORT: Final = Support("emulated", "runs here, between two turns of the model")
"""Of everything that speaks of a tool, in a gateway that is set up to run it."""
_SHOWN: Final = Support("emulated", "shown to the model as a call and its result")
_FUNCTION: Final = Support("emulated", "a function; calls come back as items of their own type")
_LATER: Final = Support(
    "emulated", "a call without output gets a placeholder; when the output arrives, the call is repeated with it"
)
_OUTPUT: Final = Support("emulated", "a tool message")
_CALL: Final = Support("emulated", "a function call")
_UNKNOWN: Final = Support("ignorable", "unless `strict` is set: then a 400")
_IN_CHAT: Final = Support("unsupported", "belongs to Chat Completions; the message names the field to use")


def _sent_if(flag: str, otherwise: Support = _NAMED) -> _Rule:
    return lambda profile: _SENT if getattr(profile, flag) else otherwise


def _passed(name: str) -> _Rule:
    note = "`auto` and `default` need nothing and are never named" if name == "service_tier" else ""
    return lambda profile: Support("translated" if name in profile.passed_fields else "ignorable", note)


def _parameter(name: str) -> _Rule:
    def decide(profile: UpstreamProfile) -> Support:
        if name not in profile.parameters:
            return _NAMED
        renamed = name == "seed" and profile.seed_field != name
        return Support("translated", f"`{profile.seed_field}`" if renamed else "")

    return decide


def _max_output_tokens(profile: UpstreamProfile) -> Support:
    return Support("translated", f"`{profile.token_limit_field}`")


def _effort(profile: UpstreamProfile) -> Support:
    if not profile.reasoning_effort:
        return _NAMED
    known = profile.effort_values
    return Support("translated", f"the nearest of {', '.join(known)}" if known else "`reasoning_effort`")


def _json_schema(profile: UpstreamProfile) -> Support:
    if profile.structured_output == "json_schema":
        return Support("translated", "`response_format`")
    if profile.structured_output == "json_object":
        return Support("emulated", "`json_object`, and the schema as an instruction")
    return Support("emulated", "the schema as an instruction")


def _json_object(profile: UpstreamProfile) -> Support:
    if profile.structured_output == "off":
        return Support("emulated", "an instruction")
    if not profile.json_object:
        return Support("emulated", "`json_schema` of any object, and an instruction")
    return Support(
        "translated", "`response_format`, with a schema" if profile.json_object_schema else "`response_format`"
    )


def _logprobs(profile: UpstreamProfile) -> Support:
    return _SENT if profile.logprobs else Support("unsupported", "this server gives no log probabilities")


def _parallel(profile: UpstreamProfile) -> Support:
    if profile.parallel_tool_calls:
        return Support("translated", "with `false`, further calls of a model that makes them anyway are left out too")
    return Support("emulated", "with `false`, calls after the first are left out")


def _named_choice(profile: UpstreamProfile) -> Support:
    if profile.named_tool_choice == "native":
        return _SENT
    return Support("emulated", "only that tool is shown, and a call is required")


def _strict(profile: UpstreamProfile) -> Support:
    return _SENT if profile.strict_tools else _NAMED


def _reasoning_item(profile: UpstreamProfile) -> Support:
    if profile.replay_reasoning == "off":
        return Support("ignorable", "this server takes no reasoning back")
    return Support("translated", f"`{profile.replay_reasoning}` of the assistant message it belongs to")


def _images(profile: UpstreamProfile) -> Support:
    return (
        Support("translated", "`image_url`")
        if profile.images
        else Support("unsupported", "this server takes text only")
    )


def _file(profile: UpstreamProfile) -> Support:
    if profile.files == "part":
        return Support("translated", "files that are text as text, others as a `file` part")
    return Support("emulated", "files that are text as text; others are a 400")


def _file_url(profile: UpstreamProfile) -> Support:
    return Support("emulated", f"fetched (public addresses only), then {_file(profile).note}")


def _file_by_id(profile: UpstreamProfile) -> Support:
    return Support("emulated", f"read from `/v1/files`, then {_file(profile).note}")


def _image_by_id(profile: UpstreamProfile) -> Support:
    return Support("emulated", "read from `/v1/files`, then a data URL") if profile.images else _images(profile)


def _audio(profile: UpstreamProfile) -> Support:
    return _SENT if profile.audio_input else Support("unsupported", "this server takes no audio")


def _message(profile: UpstreamProfile) -> Support:
    which = "leading system and developer messages" if profile.system_anywhere else "system and developer messages"
    return Support("translated", f"{which} become one system message")


_TABLE: Final[dict[str, dict[str, _Rule]]] = {
    "Fields": {
        "model": Support("translated", "an alias becomes the upstream's name"),
        "input": _SENT,
        "instructions": Support("translated", "the system message"),
        "previous_response_id": Support("emulated", "the stored turns are sent again"),
        "store": Support("emulated", "kept by the gateway"),
        "stream": _SENT,
        "stream_options.include_obfuscation": Support("emulated", "padding only when it is asked for"),
        "max_output_tokens": _max_output_tokens,
        "max_tool_calls": Support("emulated", "limits the calls of hosted tools that run here, all together"),
        "metadata": Support("emulated", "kept and echoed by the gateway; not sent on"),
        "temperature": _SENT,
        "top_p": _SENT,
        "presence_penalty": _sent_if("penalties"),
        "frequency_penalty": _sent_if("penalties"),
        "top_logprobs": _logprobs,
        "parallel_tool_calls": _parallel,
        "text.format.text": Support("translated", "the default of chat: nothing is sent"),
        "text.format.json_schema": _json_schema,
        "text.format.json_object": _json_object,
        "text.verbosity": _sent_if("verbosity"),
        "reasoning.effort": _effort,
        "reasoning.summary": Support("emulated", "the server's reasoning as it is, in summary parts"),
        "reasoning.generate_summary": Support("emulated", "like `reasoning.summary`"),
        "reasoning.mode": _NAMED,
        "reasoning.context": _NAMED,
        "truncation.auto": Support(
            "ignorable", "where `context_tokens` is set: emulated, the oldest turns are left out"
        ),
        "truncation.disabled": Support("translated", "the default of chat: nothing is sent"),
        "service_tier": _passed("service_tier"),
        "safety_identifier": _passed("safety_identifier"),
        "prompt_cache_key": _passed("prompt_cache_key"),
        "prompt_cache_retention": _passed("prompt_cache_retention"),
        "prompt_cache_options.prewarm": Support("emulated", "answered at once and empty, without a model call"),
        "prompt_cache_options.mode": _NAMED,
        "prompt_cache_options.ttl": _NAMED,
        "prompt_cache_options.comparison_response_id": _NAMED,
        "user": _passed("user"),
        "context_management": Support(
            "emulated", "a summary by the same model, before the answer; without a number, `context_tokens` decides"
        ),
        "moderation": _NAMED,
        "access_programs": _NAMED,
        "image": _NAMED,
        "multi_agent": _NAMED,
        "background_options": Support("ignorable", "a background response runs as soon as its turn has come"),
        "client_metadata": Support("ignorable", "what Codex says of itself"),
        "background": Support(
            "emulated",
            "queued and run by the gateway; needs `store`, and an upstream that works without the client's key",
        ),
        "conversation": Support(
            "emulated", "its items before the input; a response that is stored and does not fail joins it"
        ),
        "prompt": Support(
            "emulated", "a template kept by the gateway (`/v1/prompts`): its messages first, its fields as sent"
        ),
        "extra_body": Support("emulated", "its members count as if they stood beside it, as SDKs send them"),
        "any other field": Support("ignorable", "unless `field_allow` lets it pass, or `strict` is set: then a 400"),
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
    "Sampling, templates, guided decoding": {name: _parameter(name) for name in PARAMETERS},
    "Values of `include`": {
        "include:reasoning.encrypted_content": Support("emulated", "sealed by the gateway with its own key"),
        "include:message.output_text.logprobs": _logprobs,
        "include:file_search_call.results": _INCLUDED,
        "include:web_search_call.results": _NAMED,
        "include:web_search_call.action.sources": _INCLUDED,
        "include:message.input_image.image_url": _NAMED,
        "include:computer_call_output.output.image_url": _NAMED,
        "include:code_interpreter_call.outputs": _INCLUDED,
        "any other value of `include`": _UNKNOWN,
    },
    "Tools": {
        "tools.function": _SENT,
        "tools.function.strict": _strict,
        "tools.function.async": _LATER,
        "tools.function.output_schema": _NAMED,
        "tools.function.allowed_callers": Support("ignorable", "a function for programs alone is left out"),
        "tools.custom": Support("emulated", "a function with one string; a grammar is described, not enforced"),
        "tools.custom.async": _LATER,
        "tools.namespace": Support("emulated", "functions with joined names; calls come back with their `namespace`"),
        "tools.local_shell": _FUNCTION,
        "tools.shell": Support(
            "emulated", "a function, with the skills of the client's machine; with a container of OpenAI's: left out"
        ),
        "tools.apply_patch": _FUNCTION,
        "tools.tool_search": Support(
            "emulated", "a function: with `execution: client` the client searches, else the gateway"
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
        "any other tool": _UNKNOWN,
        "any other member of a tool": _UNKNOWN,
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
        "tool_choice.allowed_tools": Support("emulated", "only these are shown, and only their calls are let through"),
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
        "input.item_reference": Support("emulated", "replaced by the stored item"),
        "input.reasoning": _reasoning_item,
        "input.function_call": _SENT,
        "input.function_call_output": Support(
            "translated",
            "images in it follow in a user message; without a `call_id` it answers the only open call (of its `name`), "
            "or is a message",
        ),
        "input.custom_tool_call": _CALL,
        "input.custom_tool_call_output": _OUTPUT,
        "input.local_shell_call": _CALL,
        "input.local_shell_call_output": _OUTPUT,
        "input.shell_call": _CALL,
        "input.shell_call_output": _OUTPUT,
        "input.apply_patch_call": _CALL,
        "input.apply_patch_call_output": _OUTPUT,
        "input.tool_search_call": _CALL,
        "input.tool_search_output": Support("emulated", "a tool message; its tools can be called from then on"),
        "input.additional_tools": Support("emulated", "its tools are added to `tools`"),
        "input.compaction": Support(
            "emulated", "our own are opened and shown as a summary; of others the model is told that they were there"
        ),
        "input.agent_message": Support(
            "emulated", "a user message that says from whom it is; what another server encrypted is named"
        ),
        "input.agent_reasoning": _reasoning_item,
        "input.configuration_update": Support(
            "emulated", "effort and text format from here on, until the next; stored with its turn"
        ),
        "input.web_search_call": _SHOWN,
        "input.file_search_call": _SHOWN,
        "input.image_generation_call": Support("emulated", "shown as a call and its result, without the image"),
        "input.code_interpreter_call": _SHOWN,
        "input.computer_call": _SHOWN,
        "input.computer_call_output": Support(
            "emulated", "added to the result of its call; the screenshot as an image"
        ),
        "input.mcp_call": _SHOWN,
        "input.mcp_list_tools": _SHOWN,
        "input.mcp_approval_request": Support("emulated", "shown to the model as the requested call, which waits"),
        "input.mcp_approval_response": Support(
            "emulated",
            "the result of its request, with its `reason`; 400 if `tools` lacks the server of an approved call",
        ),
        "input.program": _SHOWN,
        "input.program_output": Support("emulated", "added to the result of its program"),
        "input.compaction_trigger": Support(
            "emulated", "as the last item: the answer is a compaction, made by the model"
        ),
        "any other item": _UNKNOWN,
        "any other member of an item": Support(
            "ignorable", "with `strict` a 400; items of hosted tools are shown to the model with all they have"
        ),
    },
    "Content parts": {
        "content.input_text": _SENT,
        "content.output_text": _SENT,
        "content.refusal": Support("translated", "as text of the assistant"),
        "content.input_image.image_url": _images,
        "content.input_image.file_id": _image_by_id,
        "content.input_file.file_data": _file,
        "content.input_file.file_url": _file_url,
        "content.input_file.file_id": _file_by_id,
        "content.input_audio": _audio,
        "any other part": _UNKNOWN,
        "any other member of a part": _UNKNOWN,
    },
}

GROUPS: Final[dict[str, tuple[str, ...]]] = {group: tuple(rows) for group, rows in _TABLE.items()}
"""The names in a readable order, by group."""

_RULES: Final = {name: rule for rows in _TABLE.values() for name, rule in rows.items()}


def all_names() -> Iterator[str]:
    """Every name of the table."""
    return iter(_RULES)


def support_of(profile: UpstreamProfile, name: str, *, context_tokens: int | None = None) -> Support:
    """What becomes of this with an upstream of this profile; `context_tokens` is what the model takes, where that is
    set. Raises KeyError for a name that is not in the table."""
    if name == "truncation.auto" and context_tokens is not None:
        return Support("emulated", f"the oldest turns beyond about {context_tokens} tokens are left out")
    rule = _RULES[name]
    return rule if isinstance(rule, Support) else rule(profile)
