"""The events of tools that run here: what is told when a call begins, and what when it ended.

Lives here: the grammar of hosted calls, as observed. Not here: when a tool runs (`engine/exchange/tool_turns.py`),
numbers and indices (`builder.py`).

An item is added as it is before anything is known of it; what it holds follows in its events and in its done event.

Invariant: the deltas join to what the finished item holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from msgspec import UNSET, Raw

from antiphon.types import events as ev
from antiphon.types.items import (
    CodeInterpreterCall,
    FileSearchCall,
    HostedItem,
    HostedToolSearchCall,
    HostedToolSearchOutput,
    McpApprovalRequest,
    McpCall,
    McpListTools,
    WebSearchCall,
)

Made = tuple[Callable[..., ev.Event], tuple[str, ...]]
"""An event's class and what it has beside number, item id and output index."""


def opened(item: HostedItem) -> HostedItem:
    """The item as it is added."""
    if isinstance(item, McpListTools):
        return msgspec.structs.replace(item, tools=Raw(b"[]"), error=UNSET)
    if isinstance(item, McpApprovalRequest):
        return item
    bare = msgspec.structs.replace(item, status="in_progress")
    if isinstance(bare, HostedToolSearchCall):
        return msgspec.structs.replace(bare, arguments=Raw(b"{}"))
    if isinstance(bare, HostedToolSearchOutput):
        return msgspec.structs.replace(bare, tools=Raw(b"[]"))
    if isinstance(bare, FileSearchCall):
        return msgspec.structs.replace(bare, queries=[], results=None)
    if isinstance(bare, WebSearchCall):
        return msgspec.structs.replace(bare, action=UNSET)
    if isinstance(bare, CodeInterpreterCall):
        return msgspec.structs.replace(bare, code="", outputs=None)
    return msgspec.structs.replace(bare, arguments="", output=None, error=None)


def begun(item: HostedItem) -> Iterator[Made]:
    """What follows the item's being added, before the tool has run."""
    if isinstance(item, FileSearchCall):
        yield ev.FileSearchInProgress, ()
        yield ev.FileSearchSearching, ()
    elif isinstance(item, WebSearchCall):
        yield ev.WebSearchInProgress, ()
        yield ev.WebSearchSearching, ()
    elif isinstance(item, CodeInterpreterCall):
        yield ev.CodeInterpreterInProgress, ()
        if item.code:
            yield ev.CodeInterpreterCodeDelta, (item.code,)
        yield ev.CodeInterpreterCodeDone, (item.code,)
        yield ev.CodeInterpreterInterpreting, ()
    elif isinstance(item, McpListTools):
        yield ev.McpListToolsInProgress, ()
    elif isinstance(item, McpCall):
        yield ev.McpCallInProgress, ()
        if item.arguments:
            yield ev.McpCallArgumentsDelta, (item.arguments,)
        yield ev.McpCallArgumentsDone, (item.arguments,)


def ended(item: HostedItem) -> Iterator[Made]:
    """What comes before the item's done event."""
    if isinstance(item, FileSearchCall):
        yield ev.FileSearchCompleted, ()
    elif isinstance(item, WebSearchCall):
        yield ev.WebSearchCompleted, ()
    elif isinstance(item, CodeInterpreterCall):
        yield ev.CodeInterpreterCompleted, ()
    elif isinstance(item, McpListTools):
        yield (ev.McpListToolsCompleted if item.error is UNSET else ev.McpListToolsFailed), ()
    elif isinstance(item, McpCall):
        yield (ev.McpCallFailed if item.status == "failed" else ev.McpCallCompleted), ()
