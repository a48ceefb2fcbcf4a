"""Calls of client-run tools and their outputs, as chat tool calls and tool messages.

Lives here: what each kind of call and output becomes. Not here: their order (`chat_messages.py`), names
(`tool_map.py`).

Invariant: arguments that are sent are the JSON of an object, whatever a client or a model made of them: chat servers
parse them and fail on anything else.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest, invalid_type
from antiphon.translation.hosted_items import known_id
from antiphon.translation.native_calls import native_arguments
from antiphon.translation.request_checks import required
from antiphon.translation.tool_map import flat_name
from antiphon.types.items import InputItem
from antiphon.types.json import decode_any, encode, first, fragment_of, given

CALLS: Final = frozenset(
    {
        "function_call",
        "custom_tool_call",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
        "tool_search_call",
    }
)
OUTPUTS: Final = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
        "tool_search_output",
        "computer_call_output",
        "mcp_approval_response",
        "program_output",
    }
)

NAMED_OUTPUTS: Final = frozenset({"function_call_output", "custom_tool_call_output"})
"""Outputs that may come without the id of a call, with the name of the tool at most."""

APPROVED: Final = fragment_of("The user approved it.")
"""An approval that gives no reason."""
_FAILED_SEARCH: Final = (
    "The search failed: nothing was looked for. Its arguments must be a JSON object with 'query', a string that says "
    "what the tools should do or how they are called. Search again."
)
_NO_ARGUMENTS: Final = Raw(b'"{}"')
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_STRING: Final = msgspec.json.Decoder(str)


def call_of(where: str, item: InputItem, number: int) -> tuple[str, str, Raw]:
    """Call id, chat name and arguments (a JSON string) of a call item, the `number`th of its conversation: that is its
    id where it has none. Raises `InvalidRequest`."""
    kind = item.type or ""
    call_id = known_id(item) or f"call_{number}"
    if kind == "function_call":
        name = flat_name(required(where, "name", item.name), item.namespace)
        return call_id, name, sound_arguments(where, item.arguments)
    if kind == "custom_tool_call":
        name = flat_name(required(where, "name", item.name), item.namespace)
        if first(item.input) not in (b'"', b""):
            raise InvalidRequest(
                f"Invalid type for '{where}.input': expected a string.", param=f"{where}.input", code="invalid_type"
            )
        text = _STRING.decode(item.input) if given(item.input) else ""
        return call_id, name, Raw(encode(encode({"input": text}).decode()))
    # The client runs these by their type.
    arguments = native_arguments(kind, item.action, item.operation, item.arguments)
    return call_id, kind.removesuffix("_call"), arguments


def native_output(where: str, item: InputItem) -> bytes | None:
    """The text of an output that is no string or list of parts, as a fragment; None for the usual kinds."""
    kind = item.type
    if kind == "tool_search_output":
        found = []
        for tool in decode_any(bytes(item.tools)) if first(item.tools) == b"[" else ():
            if isinstance(tool, dict) and tool.get("type") == "mcp":
                label, names = str(tool.get("server_label")), tool.get("allowed_tools")
                found += [flat_name(str(name), label) for name in (names if isinstance(names, list) else ())]
            elif isinstance(tool, dict):
                inner = tool.get("tools") if isinstance(tool.get("tools"), list) else [tool]
                space = tool.get("name") if tool.get("type") == "namespace" else None
                found += [
                    f"{flat_name(str(one.get('name')), space)}: {one.get('description') or ''}".rstrip(": ")
                    for one in inner or ()
                    if isinstance(one, dict)
                ]
        if found:
            return fragment_of("Tools that can be called now:\n" + "\n".join(found))
        return fragment_of(_FAILED_SEARCH if item.status == "incomplete" else "No tools were found.")
    if kind == "mcp_approval_response":
        said = APPROVED if item.approve else fragment_of("The user refused it.")
        if given(item.reason) and first(item.reason) != b'"':
            raise invalid_type(f"{where}.reason", "expected a string")
        reason = bytes(item.reason)[1:-1] if given(item.reason) else b""
        return said + b" Reason: " + reason if reason else said
    if kind == "program_output":
        return fragment_of(_as_text(decode_any(bytes(item.source)).get("result")) or "Done.")
    if kind == "apply_patch_call_output":
        words = {"completed": "The patch was applied.", "failed": "The patch could not be applied."}
        text = words.get(item.status or "", "")
        if given(item.output):
            text = f"{text}\n{_as_text(decode_any(bytes(item.output)))}".strip()
        return fragment_of(text or "Done.")
    if kind == "shell_call_output" and first(item.output) == b"[":
        return fragment_of(_shell_text(decode_any(bytes(item.output))))
    return None


def _as_text(value: object) -> str:
    """A result that is a text, or any JSON."""
    return value if isinstance(value, str) else "" if value is None else encode(value).decode()


def _shell_text(outputs: object) -> str:
    parts = []
    for output in outputs if isinstance(outputs, list) else ():
        if not isinstance(output, dict):
            continue
        outcome = output.get("outcome")
        lines = [str(output.get(name)) for name in ("stdout", "stderr") if output.get(name)]
        if isinstance(outcome, dict):
            if outcome.get("type") == "timeout":
                lines.append("(timed out)")
            elif "exit_code" in outcome:
                lines.append(f"(exit code {outcome['exit_code']})")
        parts.append("\n".join(lines))
    return "\n".join(parts) or "(no output)"


def sound_arguments(where: str, value: Raw) -> Raw:
    """Arguments as a JSON string that holds an object, whatever a model made of them. Raises `InvalidRequest`."""
    if not given(value) or bytes(value) == b'""':
        return _NO_ARGUMENTS
    if first(value) == b"{":
        # An object instead of a string that holds one.
        return Raw(encode(bytes(value).decode()))
    if first(value) != b'"':
        raise InvalidRequest(
            f"Invalid type for '{where}.arguments': expected a string that holds JSON.",
            param=f"{where}.arguments",
            code="invalid_type",
        )
    text = _STRING.decode(value)
    try:
        _OBJECT.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        # What a model broke off, or never was an object: the words are kept, the form is made sound.
        return _NO_ARGUMENTS if not text.strip() else Raw(encode(encode({"invalid_arguments": text}).decode()))
    return value
