"""Items of hosted tools from earlier turns, as the model sees them.

Lives here: which items these are, and the call and result that stand for each in a chat. Not here: running such tools,
what is kept of what a model was shown of them (`types/shown.py`).

A chat server knows only calls and their results, so a search that was made for the model is shown as a call with its
result; models read that better than prose, and strict servers accept it.

Invariant: nothing an item says is lost but what no model can read (images in base64, encrypted parts).
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw

from antiphon.translation.chat_content import ContentRules, output_content
from antiphon.translation.tool_map import flat_name
from antiphon.types.items import InputItem
from antiphon.types.json import decode_any, encode, fragment_of, quoted
from antiphon.types.shown import shown_of

HOSTED: Final = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "computer_call",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "program",
    }
)
"""Types of items that are shown as a call and its result."""

_OF_SERVERS: Final = frozenset({"mcp_call", "mcp_approval_request"})
"""Calls of an MCP server's tools, made or asked for: under the name by which the model knows the tool."""
_RESULTS: Final = ("results", "output", "outputs", "error", "tools", "revised_prompt")
_NOT_SHOWN: Final = frozenset(
    {"type", "id", "call_id", "status", "result", "fingerprint", "approval_request_id", "container_id"}
)
_LONGEST_RESULT: Final = 1 << 20
_NOT_SEEN: Final = b"[There are images, which cannot be shown to you.]"


def hosted_call(given_item: InputItem, number: int) -> tuple[str, str, bytes, bytes]:
    """Call id, chat function name, arguments and result (both as fragments) of one item.

    Raises ValueError for one that is nested too deeply.
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
    """The id by which the model knows the call that stands for an item; None when it has none of its own."""
    shown = shown_of(item)
    return item.call_id or (shown.call_id if shown is not None else None) or item.id


def told(where: str, output: bytes, images: tuple[str, ...], rules: ContentRules) -> tuple[bytes, list[Raw]]:
    """What the model reads of the result of a tool that ran here: a fragment, and the images behind it."""
    if not images:
        return output, []
    if not rules.profile.images:
        return (output + rb"\n" if output else b"") + _NOT_SEEN, []
    parts = [b'{"type":"input_text","text":%b}' % bytes(quoted(output))] if output else []
    parts += [encode({"type": "input_image", "image_url": image}) for image in images]
    return output_content(where, Raw(b"[%b]" % b",".join(parts)), rules)


def _result(item: dict[str, Any], kind: str) -> str:
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


def _tool_of(item: dict[str, Any]) -> str:
    """The name that the model knows an MCP server's tool by, when the same server is there again."""
    name, label = item.get("name"), item.get("server_label")
    if not isinstance(name, str) or not name:
        return ""
    return flat_name(name, label if isinstance(label, str) and label else None)


def _is_object(text: str) -> bool:
    try:
        return isinstance(decode_any(text), dict)
    except ValueError:
        return False
