"""The declared tools that run here, as the toolbox gets them.

Lives here: which they are, and what each is told of its conversation. Not here: their calls (`tool_turns.py`), reading
declarations (`translation/read_tools.py`). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Raw

from antiphon.engine.ports.hosted_tools import HostedTool
from antiphon.translation.compaction import Named
from antiphon.translation.read_tools import decode_tools, may_be_called, runs_here
from antiphon.types.json import encode
from antiphon.types.request import CreateResponse
from antiphon.types.tools import Tool

_OBJECT = msgspec.json.Decoder(dict[str, Raw])


def hosted_tools(request: CreateResponse, types: frozenset[str], items: Sequence[Named] = ()) -> tuple[HostedTool, ...]:
    """The declared tools that run here; `items` are the conversation so far.

    A search for tools is none where no tool is deferred: nothing has to run then.
    """
    if not types or not request.tools:
        return ()
    found = []
    for number, tool in enumerate(request.tools):
        if not runs_here(tool, types):
            continue
        if tool.type != "tool_search":
            earlier = _earlier(items) if tool.type == "code_interpreter" else None
            found.append(HostedTool(number, tool.type, bytes(tool.source), earlier))
        elif searchable := tuple(_deferred(request.tools)):
            found.append(HostedTool(number, tool.type, bytes(tool.source), searchable=searchable))
    return tuple(found)


def _deferred(tools: Sequence[Tool]) -> Iterator[bytes]:
    """The declarations of deferred tools; of a namespace those members alone."""
    for tool in tools:
        if tool.type in ("function", "custom") and tool.defer_loading:
            yield bytes(tool.source)
        elif tool.type == "namespace":
            members = [
                inner.source
                for inner in decode_tools("tools", tool.tools)
                if (inner.defer_loading or tool.defer_loading) and may_be_called(inner)
            ]
            if members:
                yield encode({**_OBJECT.decode(tool.source), "tools": members})


def _earlier(items: Sequence[Named]) -> str | None:
    """The container in which code ran last."""
    for _, item in reversed(items):
        if item.type == "code_interpreter_call":
            try:
                return msgspec.json.decode(item.source, type=_Ran).container_id
            except msgspec.DecodeError:
                return None
    return None


class _Ran(msgspec.Struct):
    container_id: str | None = None
