"""The events of calls that have a form of their own: shells, patches, tool searches.

Lives here: what comes between such a call's added and done events. Not here: reading the call (`native_calls.py`),
indices and numbers (`builder.py`).

Such a call is emitted once its arguments are whole (half a command must never be run), so each text has one delta.
Grammar and fields as observed: an item is added empty, a shell tells its commands one by one, a patch its diff (none
when a file is deleted), the others nothing.

Invariant: the deltas join to what the item holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.types import events as ev
from antiphon.types.items import ApplyPatchCall, LocalShellCall, NativeCall, ShellCall
from antiphon.types.json import encode
from antiphon.types.views import PatchOperation, ShellAction

_NO_COMMANDS: Final = Raw(b'{"commands":[],"timeout_ms":null,"max_output_length":null}')
_NO_COMMAND: Final = Raw(b'{"type":"exec","command":[],"env":{}}')
_NOTHING: Final = Raw(b"{}")


def native_events(item: NativeCall, index: int, number: Callable[[], int]) -> Iterator[ev.Event]:
    """All events of a finished call, in order; `number` gives the next sequence number."""
    if isinstance(item, ShellCall):
        yield ev.OutputItemAdded(number(), index, _opened(item, action=_NO_COMMANDS))
        commands = msgspec.json.decode(item.action, type=ShellAction).commands
        for place, command in enumerate(commands):
            yield ev.ShellCommandAdded(number(), index, place, "")
            yield ev.ShellCommandDelta(number(), index, place, command)
            yield ev.ShellCommandDone(number(), index, place, command)
    elif isinstance(item, ApplyPatchCall):
        operation = msgspec.json.decode(item.operation, type=PatchOperation)
        diff, operation.diff = operation.diff, operation.diff and ""
        yield ev.OutputItemAdded(number(), index, _opened(item, operation=Raw(encode(operation))))
        if diff is not None:
            if diff:
                yield ev.ApplyPatchDiffDelta(number(), item.id, index, diff)
            yield ev.ApplyPatchDiffDone(number(), item.id, index, diff)
    elif isinstance(item, LocalShellCall):
        yield ev.OutputItemAdded(number(), index, _opened(item, action=_NO_COMMAND))
    else:
        yield ev.OutputItemAdded(number(), index, _opened(item, arguments=_NOTHING))
    yield ev.OutputItemDone(number(), index, item)


def _opened(item: NativeCall, **empty: Raw) -> NativeCall:
    """The item as it is before anything is known of it."""
    return msgspec.structs.replace(item, status="in_progress", **empty)
