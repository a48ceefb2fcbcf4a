"""Lists every item type that Antiphon knows, and how Antiphon treats items of each type.

This module also leaves out items of other types, and lists the unknown members of known items. `chat/messages.py`
converts items into messages.

Invariant: every item that `only_known` returns has a type that `chat/messages.py` knows, or no type. An item without a
type is a message if it has a role, and a reference to a stored item if it has an id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest, invalid_value, unsupported_parameter
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.profiles.profile import SENT, Rule, Support, handled, ignored, sent
from antiphon.types.items import InputItem, KnownItem
from antiphon.types.tolerance import Tolerance


@dataclass(frozen=True, slots=True)
class ItemKind:
    """One known item type. `means` is a short name for the way in which Antiphon converts items of this type, such as
    `call`.

    - `prefix` is the beginning of the ids of items of this type.
    - `members` are the members that only this type has, in addition to the members of all items.
    - `support` is the type's row in the table of supported items. `support` is None for an alternative name of a type
      that has a row.
    """

    means: str
    prefix: str
    support: Rule | None
    members: tuple[str, ...] = ()


def _message(profile: UpstreamProfile) -> Support:
    which = "leading system and developer messages" if profile.system_anywhere else "system and developer messages"
    return sent(f"{which} become one system message")


def _reasoning(profile: UpstreamProfile) -> Support:
    if profile.replay_reasoning == "off":
        return ignored("the chat server accepts no reasoning in its input")
    return sent(f"as the field `{profile.replay_reasoning}` of the assistant message")


_SHOWN: Final = handled("the model gets a function call and its result")
_OUTPUT: Final = handled("the model gets a tool message")
_CALL: Final = handled("the model gets a function call")
_ANSWERS: Final = (
    "images of the output follow in a user message; an output without `call_id` answers the only call that waits "
    "(of the tool `name`, if given), or becomes a message"
)
_OPENED: Final = (
    "Antiphon decrypts its own compaction items, and the model gets the summary; for another server's compaction item "
    "the model gets a notice that earlier text is missing"
)
_SAID: Final = (
    "the model gets a user message that names the sender; Antiphon ignores content that another server encrypted"
)
_APPROVAL: Final = (
    "the model gets the approval, with its `reason`, as the result of the call that the user approved or "
    "refused; 400 if `tools` lacks the MCP server of an approved call"
)

ITEMS: Final = {
    "message": ItemKind("message", "msg", _message),
    "item_reference": ItemKind("reference", "item", handled("Antiphon replaces the reference by the stored item")),
    "reasoning": ItemKind("reasoning", "rs", _reasoning),
    "function_call": ItemKind("call", "fc", SENT, ("async", "encrypted_function_args")),
    "function_call_output": ItemKind("output", "fco", sent(_ANSWERS)),
    "custom_tool_call": ItemKind("call", "ctc", _CALL, ("async",)),
    "custom_tool_call_output": ItemKind("output", "cto", _OUTPUT),
    "local_shell_call": ItemKind("call", "lsh", _CALL),
    "local_shell_call_output": ItemKind("output", "lsho", _OUTPUT),
    "shell_call": ItemKind("call", "sh", _CALL),
    "shell_call_output": ItemKind("output", "sho", _OUTPUT, ("max_output_length",)),
    "apply_patch_call": ItemKind("call", "apc", _CALL),
    "apply_patch_call_output": ItemKind("output", "apco", _OUTPUT),
    "tool_search_call": ItemKind("call", "tsc", _CALL),
    "tool_search_output": ItemKind(
        "output", "tso", handled("the model gets a tool message, and can call the loaded tools after this item")
    ),
    "additional_tools": ItemKind("read before", "at", handled("Antiphon adds the tools in the item to `tools`")),
    "compaction": ItemKind("compaction", "cmp", handled(_OPENED)),
    "compaction_summary": ItemKind("compaction", "cmp", None),
    "context_compaction": ItemKind("compaction", "item", None),
    "agent_message": ItemKind("foreign message", "amsg", handled(_SAID), ("author", "recipient")),
    "agent_reasoning": ItemKind("foreign reasoning", "rs", _reasoning, ("text",)),
    "configuration_update": ItemKind(
        "read before",
        "cu",
        handled(
            "Antiphon uses the item's reasoning effort and text format from this item on, and stores the item "
            "with its turn"
        ),
        ("reasoning", "text"),
    ),
    "web_search_call": ItemKind("hosted", "ws", _SHOWN),
    "file_search_call": ItemKind("hosted", "fs", _SHOWN),
    "image_generation_call": ItemKind(
        "hosted", "ig", handled("the model gets a function call and its result, without the image")
    ),
    "code_interpreter_call": ItemKind("hosted", "ci", _SHOWN),
    "computer_call": ItemKind("hosted", "cu", _SHOWN),
    "computer_call_output": ItemKind(
        "output",
        "cuo",
        handled("Antiphon adds the output to the result of the `computer_call`, and sends the screenshot as an image"),
        ("acknowledged_safety_checks",),
    ),
    "mcp_call": ItemKind("hosted", "mcp", _SHOWN, ("server_label", "error")),
    "mcp_list_tools": ItemKind("hosted", "mcpl", _SHOWN),
    "mcp_approval_request": ItemKind(
        "hosted", "mcpr", handled("the model gets the requested call, which waits for approval")
    ),
    "mcp_approval_response": ItemKind("output", "mcpa", handled(_APPROVAL)),
    "program": ItemKind("hosted", "cm", _SHOWN),
    "program_output": ItemKind(
        "output", "cmo", handled("Antiphon adds the output to the result of the `program` item"), ("result",)
    ),
    "compaction_trigger": ItemKind(
        "trigger",
        "item",
        handled("if the item is the last item, the model writes a compaction, which is the output of the response"),
    ),
}
"""Every type that an item of an input may have."""


ROLES: Final = ("user", "assistant", "system", "developer")
"""The roles that a message may have."""


def prefix_of(kind: str) -> str:
    """Return the prefix of the ids of items of this type."""
    return ITEMS[kind].prefix if kind in ITEMS else "item"


def _meaning(means: str) -> frozenset[str]:
    return frozenset(name for name, kind in ITEMS.items() if kind.means == means)


CALLS: Final = _meaning("call")
OUTPUTS: Final = _meaning("output")
HOSTED: Final = _meaning("hosted")
"""Types of items that the model sees as a call and its result."""
COMPACTIONS: Final = _meaning("compaction")
FOREIGN_MESSAGES: Final = _meaning("foreign message")
FOREIGN_REASONING: Final = _meaning("foreign reasoning")
READ_BEFORE: Final = _meaning("read before")
"""Types of items that configure the request. The model does not see such items."""

_SHOWN_WHOLE: Final = HOSTED - {"mcp_call"}
_ANY: Final = frozenset(KnownItem.__struct_fields__) - {"source"}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])


def only_known(where: str, items: Iterable[InputItem], tolerance: Tolerance) -> list[InputItem]:
    """Return the items with a known type, in order. `where` is the name of the list in error messages. Raises
    `InvalidRequest` in strict mode.

    If a call's output has an unknown type, the function drops the output. The translation then refuses the request,
    because the call has no output.
    """
    kept = []
    for number, item in enumerate(items):
        if item.type is None or item.type in ITEMS:
            kept.append(item)
        else:
            tolerance.leave_out(f"{where}.{item.type}", unknown_item(f"{where}[{number}]", item.type))
    return kept


def members_of(kind: str) -> frozenset[str]:
    """Return the members of this item type that Antiphon knows. (The model sees items of hosted tools unchanged, with
    all members.)"""
    return _ANY.union(ITEMS[kind].members)


def note_members(where: str, items: Iterable[InputItem], tolerance: Tolerance) -> None:
    """Record the unknown members of items. The function skips items that the model sees unchanged. Raises
    `InvalidRequest` in strict mode."""
    for number, item in enumerate(items):
        kind = item.type or "message"
        if kind in _SHOWN_WHOLE or kind not in ITEMS:
            continue
        known = members_of(kind)
        for name in tolerance.unknown(_OBJECT.decode(item.source), known):
            place = f"{where}[{number}].{name}"
            tolerance.leave_out(f"{where}.{kind}.{name}", unsupported_parameter(f"Unknown member: '{place}'.", place))


def unknown_item(where: str, kind: str) -> InvalidRequest:
    """Return the error for an item of an unknown type."""
    return invalid_value(f"{where}.type", f"items of type {kind[:64]!r} are not supported")
