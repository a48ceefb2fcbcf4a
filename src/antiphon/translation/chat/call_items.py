"""Converts call items and their outputs into chat messages, for client tools and for earlier calls of hosted tools.

`messages.py` decides the order of messages, and `translation/tool_map.py` makes the chat names of tools. Stored items
contain the text that the model saw (`types/items.py`).

A chat server knows only calls and their results. Therefore the model sees an earlier hosted search as a call with its
result. Models read calls better than prose, and strict servers accept calls. The conversion drops only content that no
model can read (images in base64, encrypted parts).

Invariant: the arguments of a call are always a JSON object, even if the client or the model wrote something else. Chat
servers parse the arguments and fail on any other value.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import invalid_type
from antiphon.translation.call_arguments import native_arguments
from antiphon.translation.chat.content import ContentRules, output_content
from antiphon.translation.request.checks import required
from antiphon.translation.tool_map import flat_name
from antiphon.types.items import InputItem, shown_of
from antiphon.types.json import decode_any, encode, first, fragment_of, given, quoted, raw, try_decode

NAMED_OUTPUTS: Final = frozenset({"function_call_output", "custom_tool_call_output"})
"""The types of outputs that a client may send without a call's id. Such an output has only the name of its tool, or no
name."""

APPROVED: Final = fragment_of("The user approved it.")
"""The text of an approval that gives no reason."""
_FAILED_SEARCH: Final = (
    "The search failed: nothing was looked for. Its arguments must be a JSON object with 'query', a string that says "
    "what the tools should do or how they are called. Search again."
)
NO_ARGUMENTS: Final = Raw(b'"{}"')
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_STRING: Final = msgspec.json.Decoder(str)


def call_of(where: str, item: InputItem, number: int) -> tuple[str, str, Raw]:
    """Return the call id, the chat name and the arguments (a JSON string) of a call item. If the item has no id, the
    function makes an id from `number`, the item's position in the conversation. Raises `InvalidRequest`."""
    kind = item.type or ""
    call_id = known_id(item) or f"call_{number}"
    if kind == "function_call":
        name = flat_name(required(where, "name", item.name), item.namespace)
        return call_id, name, sound_arguments(where, item.arguments)
    if kind == "custom_tool_call":
        name = flat_name(required(where, "name", item.name), item.namespace)
        if first(item.input) not in (b'"', b""):
            raise invalid_type(f"{where}.input", "expected a string")
        text = _STRING.decode(item.input) if given(item.input) else ""
        return call_id, name, raw(encode({"input": text}).decode())
    # The item's type determines the client's tool, so the type is the chat name.
    arguments = native_arguments(kind, item.action, item.operation, item.arguments)
    return call_id, kind.removesuffix("_call"), arguments


def native_output(where: str, item: InputItem) -> bytes | None:
    """Return the text of an output in a special format, such as the output of a shell call, as escaped JSON text.
    Returns None if the output is a string or a list of parts."""
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
    """Convert a tool's result to text. A string stays unchanged, None becomes empty, and any other value becomes
    JSON."""
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
    """Return the arguments as a JSON string that contains a JSON object. If the model wrote something else, the object
    contains the model's text. Raises `InvalidRequest`."""
    if not given(value) or bytes(value) == b'""':
        return NO_ARGUMENTS
    if first(value) == b"{":
        # The client sent an object instead of a string that holds JSON.
        return raw(bytes(value).decode())
    if first(value) != b'"':
        raise invalid_type(f"{where}.arguments", "expected a string that contains JSON")
    text = _STRING.decode(value)
    if try_decode(_OBJECT, text) is None:
        # The model's arguments are cut off or are not an object. Keep the text inside a JSON object, because chat
        # servers parse the arguments.
        return NO_ARGUMENTS if not text.strip() else raw(encode({"invalid_arguments": text}).decode())
    return value


# Hosted items

_OF_SERVERS: Final = frozenset({"mcp_call", "mcp_approval_request"})
"""The types of items that contain the name of an MCP server's tool: calls, and requests for approval of a call."""
_RESULTS: Final = ("results", "output", "outputs", "error", "tools", "revised_prompt")
_NOT_SHOWN: Final = frozenset(
    {"type", "id", "call_id", "status", "result", "fingerprint", "approval_request_id", "container_id"}
)
_LONGEST_RESULT: Final = 1 << 20
_NOT_SEEN: Final = b"[There are images, which cannot be shown to you.]"


def hosted_call(given_item: InputItem, number: int) -> tuple[str, str, bytes, bytes]:
    """Return the call id, chat function name, arguments and result of a hosted tool's item. Arguments and result are
    escaped JSON text.

    Raises ValueError for an item that is nested too deeply.
    """
    item = decode_any(bytes(given_item.source))
    kind = str(item.get("type"))
    name = _tool_of(item) if kind in _OF_SERVERS else ""
    arguments = {key: value for key, value in item.items() if key not in _NOT_SHOWN and key not in _RESULTS}
    if kind in _OF_SERVERS:
        given = item.get("arguments")
        if not isinstance(given, str):
            given = encode(given or {}).decode()
        text = given if _is_object(given) else encode({"invalid_arguments": given} if given.strip() else {}).decode()
    else:
        text = encode(arguments).decode()
    return (
        known_id(given_item) or f"{kind}_{number}",
        name or kind.removesuffix("_call"),
        fragment_of(text),
        fragment_of(_result(item, kind)),
    )


def known_id(item: InputItem) -> str | None:
    """Return the id that the model sees for the call of this item, or None if the item has no id."""
    shown = shown_of(item)
    return item.call_id or (shown.call_id if shown is not None else None) or item.id


def told(where: str, output: bytes, images: tuple[str, ...], rules: ContentRules) -> tuple[bytes, list[Raw]]:
    """Convert the result of a hosted tool to the form that the model reads: escaped JSON text, and the images that
    follow the text."""
    if not images:
        return output, []
    if not rules.profile.images:
        return (output + rb"\n" if output else b"") + _NOT_SEEN, []
    parts = [b'{"type":"input_text","text":%b}' % bytes(quoted(output))] if output else []
    parts += [encode({"type": "input_image", "image_url": image}) for image in images]
    return output_content(where, Raw(b"[%b]" % b",".join(parts)), rules)


def _result(item: dict[str, object], kind: str) -> str:
    parts = []
    for key in _RESULTS:
        value = item.get(key)
        if value in (None, [], ""):
            continue
        parts.append(value if isinstance(value, str) else encode(value).decode())
    if not parts:
        if kind == "mcp_approval_request":
            return "The call waits for the user's approval."
        return "Done; what was found is in the answer." if kind == "web_search_call" else "Done."
    return "\n".join(parts)[:_LONGEST_RESULT]


def _tool_of(item: dict[str, object]) -> str:
    """Return the name of an MCP tool as the model sees it. The name is empty if the item has no `name`."""
    name, label = item.get("name"), item.get("server_label")
    if not isinstance(name, str) or not name:
        return ""
    return flat_name(name, label if isinstance(label, str) and label else None)


def _is_object(text: str) -> bool:
    try:
        return isinstance(decode_any(text), dict)
    except ValueError:
        return False
