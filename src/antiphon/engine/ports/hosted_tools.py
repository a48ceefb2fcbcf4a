"""The port between the engine and hosted tools.

Lives here: a hosted tool's declaration, what the model is shown of it, a call, its outcome, and the port behind which
the tools run (`tools/`). Not here: running anything, items and events (`translation/events/builder.py`), the order of
turns (`engine/exchange/made_response.py`).

Invariant: a call is answered by exactly one `ToolResult`, whatever happens to the tool; a failure is a result that the
model can read.
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
    """One entry of `tools` that runs here: `declaration` is its whole JSON object, secrets included.

    `earlier` is the container in which code of this conversation ran last, `searchable` what a search for tools finds:
    the declarations of the request's deferred tools.
    """

    index: int
    type: str
    declaration: bytes
    earlier: str | None = None
    searchable: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedTool:
    """A hosted tool that is ready: its functions, items that the response begins with (an MCP server's tools), and what
    an item of its calls holds from the start (a container's id)."""

    tool: HostedTool
    functions: tuple[HostedFunction, ...]
    items: tuple[HostedItem, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostedCall:
    """A call of the model: `arguments` is the JSON text it wrote, which need not be valid."""

    call_id: str
    item_id: str
    target: CallTarget
    arguments: str
    tool: HostedTool
    owner: str
    response_id: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """How a call went: `output` is what the model reads, `fields` are the finished item's own (see `types/items.py`).

    `sources` are what the model may cite of it, in the order in which `output` names them: each `{cite:N}` in `output`
    (N from 0) becomes the mark by which the model cites the N-th of them. `images` are data URLs, for models that see.
    """

    call_id: str
    output: str
    fields: dict[str, Any]
    failed: bool = False
    sources: tuple[Source, ...] = ()
    images: tuple[str, ...] = ()


class ToolRunner(Protocol):
    """The tools that run here."""

    types: frozenset[str]
    """The declared types that can run; all others are left out or refused."""

    async def prepare(
        self, owner: str, response_id: str, tools: tuple[HostedTool, ...]
    ) -> tuple[PreparedTool, ...] | ApiError:
        """Check the declarations and learn what the model is to be shown; an error is the client's answer."""

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one call within the tool's limits; never raises but for cancellation."""
