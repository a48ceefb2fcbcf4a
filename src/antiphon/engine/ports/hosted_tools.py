"""Defines the port through which the engine runs hosted tools, and the values that its methods take and return.

Lives here: a hosted tool's declaration, the functions that the model sees, a call, its result, and the port.
The implementation is in `tools/`. Not here: running tools, items and events (`translation/events/builder.py`), the
order of turns (`engine/exchange/made_response.py`).

Invariant: each call gets exactly one `ToolResult`, even when the tool fails. A failed call also returns a result, which
tells the model about the failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from antiphon.engine.ports.quotas import Stock
from antiphon.errors import ApiError
from antiphon.translation.events.citations import Source
from antiphon.translation.tool_map import CallTarget, HostedFunction
from antiphon.types.items import HostedItem

__all__ = ["HostedCall", "HostedFunction", "HostedTool", "PreparedTool", "Source", "ToolResult", "ToolRunner"]


@dataclass(frozen=True, slots=True)
class HostedTool:
    """One entry of the request's `tools` that the sidecar runs.

    `index` is the entry's position. Error messages name the entry as `tools[index]`. `declaration` is the entry's JSON
    object, with its secrets. `earlier` is the id of the container in which the code interpreter last ran code for this
    conversation. `searchable` holds the declarations of the request's deferred tools, in which the tool `tool_search`
    searches.
    """

    index: int
    type: str
    declaration: bytes
    earlier: str | None = None
    searchable: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedTool:
    """A hosted tool that is ready to run, with the functions that the model sees.

    `items` are the first items of the response, for example the list of an MCP server's tools. `fields` are the values
    that each call item of this tool has from the start, for example a container's id. `creates` is set if a call may
    create stored data, and names the storage limit toward which this data counts. The runner checks this limit before
    the tool runs.
    """

    tool: HostedTool
    functions: tuple[HostedFunction, ...]
    items: tuple[HostedItem, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    creates: Stock | None = None


@dataclass(frozen=True, slots=True)
class HostedCall:
    """A tool call by the model.

    `call_id` is the id of the call, and `item_id` the id of its output item (`mcp_…`, `ws_…`). `target` is the called
    function. `arguments` is the JSON text that the model wrote, which may be invalid JSON. `tool` is the declaration in
    the request.
    """

    call_id: str
    item_id: str
    target: CallTarget
    arguments: str
    tool: HostedTool
    owner: str
    response_id: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool call. The model reads `output`. The call's finished item gets the members in `fields`
    (`types/items.py`).

    `sources` are the texts that the model may cite. The sources have the order in which `output` refers to them. The
    engine replaces each `{cite:N}` in `output` by the citation mark of the source with index N, counted from 0.
    `images` are data URLs, for models that accept images.

        ToolResult(call.call_id, "You rolled 17.", {"output": "17"})
    """

    call_id: str
    output: str
    fields: dict[str, Any]
    failed: bool = False
    sources: tuple[Source, ...] = ()
    images: tuple[str, ...] = ()


class ToolRunner(Protocol):
    """Runs hosted tools: the tools that the sidecar runs itself, such as `web_search` or `mcp`."""

    types: frozenset[str]
    """The tool types that this server can run. The sidecar ignores or refuses tools of all other types."""

    async def prepare(
        self, owner: str, response_id: str, tools: tuple[HostedTool, ...]
    ) -> tuple[PreparedTool, ...] | ApiError:
        """Check the declarations and return the prepared tools, in their order.

        When a declaration is wrong, the method returns an `ApiError` and does not raise it. The client gets this error
        as the answer.
        """

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one call within the tool's limits. Raises no error except `CancelledError`."""
