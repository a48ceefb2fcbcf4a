"""Emits the events of hosted tool calls, at their start and at their end.

Lives here: the events of hosted calls, in the order observed from OpenAI's service. Not here: when a tool runs
(`engine/exchange/tool_turns.py`), sequence numbers and output indices (`builder.py`).

The added event has an empty item. The item's content follows in the later events and in the done event.

Invariant: the deltas together equal the finished item's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from msgspec import UNSET, Raw

from antiphon.types import events as ev
from antiphon.types import items as it

Made = tuple[Callable[..., ev.Event], tuple[str, ...]]
"""An event's class, and the values of its members after the sequence number, item id and output index."""

_BEGUN: Final[dict[type, dict[str, object]]] = {
    it.FileSearchCall: {"status": "in_progress", "queries": [], "results": None},
    it.WebSearchCall: {"status": "in_progress", "action": UNSET},
    it.CodeInterpreterCall: {"status": "in_progress", "code": "", "outputs": None},
    it.McpCall: {"status": "in_progress", "arguments": "", "output": None, "error": None},
    it.McpListTools: {"tools": Raw(b"[]"), "error": UNSET},
    it.McpApprovalRequest: {},
    it.HostedToolSearchCall: {"status": "in_progress", "arguments": Raw(b"{}")},
    it.HostedToolSearchOutput: {"status": "in_progress", "tools": Raw(b"[]")},
}
"""The values of members in each kind of item's added event, before the tool has run."""

_BEFORE: Final[dict[type, tuple[tuple[type[ev.Event], str], ...]]] = {
    it.FileSearchCall: ((ev.FileSearchInProgress, ""), (ev.FileSearchSearching, "")),
    it.WebSearchCall: ((ev.WebSearchInProgress, ""), (ev.WebSearchSearching, "")),
    it.CodeInterpreterCall: (
        (ev.CodeInterpreterInProgress, ""),
        (ev.CodeInterpreterCodeDelta, "code"),
        (ev.CodeInterpreterCodeDone, "code"),
        (ev.CodeInterpreterInterpreting, ""),
    ),
    it.McpListTools: ((ev.McpListToolsInProgress, ""),),
    it.McpCall: (
        (ev.McpCallInProgress, ""),
        (ev.McpCallArgumentsDelta, "arguments"),
        (ev.McpCallArgumentsDone, "arguments"),
    ),
}
"""The events after an item's added event. Each entry has the event's class and the item's member that the event
carries."""

_AFTER: Final[dict[type, tuple[type[ev.Event], type[ev.Event]]]] = {
    it.FileSearchCall: (ev.FileSearchCompleted, ev.FileSearchCompleted),
    it.WebSearchCall: (ev.WebSearchCompleted, ev.WebSearchCompleted),
    it.CodeInterpreterCall: (ev.CodeInterpreterCompleted, ev.CodeInterpreterCompleted),
    it.McpListTools: (ev.McpListToolsCompleted, ev.McpListToolsFailed),
    it.McpCall: (ev.McpCallCompleted, ev.McpCallFailed),
}
"""The last event before an item's done event, after success and after failure."""


def opened(item: it.HostedItem) -> it.HostedItem:
    """The item for the added event, without the content that follows later."""
    return msgspec.structs.replace(item, **_BEGUN[type(item)])


def begun(item: it.HostedItem) -> Iterator[Made]:
    """The events after the item's added event and before the tool runs."""
    for event, told in _BEFORE.get(type(item), ()):
        if not told:
            yield event, ()
        elif (text := getattr(item, told)) or "delta" not in event.__struct_fields__:
            yield event, (text,)


def ended(item: it.HostedItem) -> Iterator[Made]:
    """The events after the tool has run and before the item's done event."""
    if (events := _AFTER.get(type(item))) is not None:
        failed = (
            item.error is not UNSET if isinstance(item, it.McpListTools) else getattr(item, "status", "") == "failed"
        )
        yield events[failed], ()
