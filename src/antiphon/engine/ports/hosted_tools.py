"""Defines the port through which the engine runs hosted tools, with the values that cross it.

Lives here: a hosted tool's declaration, the functions that the model sees, a call, its result, and the port.
The implementation is in `tools/`. Not here: running tools, items and events (`translation/events/builder.py`), the
order of turns (`engine/exchange/made_response.py`).

Invariant: each call gets exactly one `ToolResult`, even when the tool fails. A failure is a result that the model can
read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from antiphon.errors import ApiError
from antiphon.translation.events.citations import Source
from antiphon.translation.tool_map import CallTarget, HostedFunction
from antiphon.types.items import HostedItem

__all__ = ["HostedCall", "HostedFunction", "HostedTool", "PreparedTool", "Source", "ToolResult", "ToolRunner"]


@dataclass(frozen=True, slots=True)
class HostedTool:
    """One entry of the request's `tools` that the sidecar runs. `declaration` is its whole JSON object, with secrets.

    `earlier` is the container in which code of this conversation ran last. `searchable` holds the declarations of the
    request's deferred tools, which a tool search finds.
    """

    index: int
    type: str
    declaration: bytes
    earlier: str | None = None
    searchable: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedTool:
    """A hosted tool that is ready to run, with the functions that the model sees.

    `items` are the items that the response begins with (an MCP server's tools). `fields` are the values that each of
    its call items has from the start (a container's id).
    """

    tool: HostedTool
    functions: tuple[HostedFunction, ...]
    items: tuple[HostedItem, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostedCall:
    """A tool call by the model. `arguments` is the JSON text that the model wrote. This text may be invalid JSON."""

    call_id: str
    item_id: str
    target: CallTarget
    arguments: str
    tool: HostedTool
    owner: str
    response_id: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a call: the model reads `output`, and the finished item gets `fields` (see `types/items.py`).

    `sources` are the texts that the model may cite, in the order in which `output` names them. Each `{cite:N}` in
    `output` (N from 0) becomes the mark by which the model cites the N-th source. `images` are data URLs, for models
    that accept images.
    """

    call_id: str
    output: str
    fields: dict[str, Any]
    failed: bool = False
    sources: tuple[Source, ...] = ()
    images: tuple[str, ...] = ()


class ToolRunner(Protocol):
    """Runs the hosted tools of this server."""

    types: frozenset[str]
    """The tool types that this server can run. The sidecar leaves out or refuses all others."""

    async def prepare(
        self, owner: str, response_id: str, tools: tuple[HostedTool, ...]
    ) -> tuple[PreparedTool, ...] | ApiError:
        """Check the declarations and return the functions for the model. An `ApiError` is the answer to the client."""

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one call within the tool's limits. The call raises only when its task is cancelled."""
