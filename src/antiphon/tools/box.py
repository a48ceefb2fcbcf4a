"""Dispatches calls to the hosted tools of a process, and enforces the limits of every call.

This module dispatches a call, applies its timeout, limits its output, and converts a failure into a result. This module
limits concurrent calls per process, owner and response, and chooses which waiting call runs next. This module also
decodes a tool's declaration and the arguments of a call into structs that the tool defines. The other modules of this
package implement the tools. A tool checks the values of its decoded structs.

A process has a fixed number of slots, and a running call occupies one slot. A response occupies at most a quarter of
the slots, and an owner at most three quarters, so that other owners' calls can run. A free slot goes to the owner with
the fewest running calls. If several owners have equally few running calls, the owner that has waited longest gets the
slot.

Invariants: `run` returns a result for every call, even when the tool raises any exception. A call waits only if no slot
is free, or if its owner or its response occupies the maximum number of slots. An error in a declaration names the field
and the expected type, but never the value, which may be a secret.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol, TypeVar

import msgspec
import structlog

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError, InternalError, StoreError, store_refusal, too_many_entries
from antiphon.ids import is_name
from antiphon.observability import span_names as names
from antiphon.observability.metrics import Metrics
from antiphon.observability.span_names import Value
from antiphon.observability.tracing import span
from antiphon.translation.request.checks import wrong_type
from antiphon.types.json import try_decode

_log = structlog.get_logger(__name__)
_CUT = "\n[The rest was cut off: it is too long.]"


T = TypeVar("T")


class ToolFailed(Exception):
    """Raised when a call fails. The model reads the message of this exception as the call's output."""


class ServerTool(Protocol):
    """The interface of a hosted tool. `types`: the `type` values of the request's `tools` entries that this tool
    handles."""

    types: frozenset[str]

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the tool's declaration in a request. Returns the functions that the model sees. Raises `ApiError` whose
        `param` begins with `tools[i]`."""

    async def run(self, call: HostedCall) -> ToolResult:
        """Run a call of the model. Raises `ToolFailed` on a failure. If the tool's output item can describe a failure
        in its own fields, the method does not raise `ToolFailed` but returns a failed result."""

    async def aclose(self) -> None:
        """Release the tool's connections and processes."""


class LazyTool:
    """A wrapper that creates a tool on its first use, because the tool's imports would slow down every start. The
    imports run in a thread, so that other requests do not wait."""

    def __init__(self, types: frozenset[str], make: Callable[[], ServerTool]) -> None:
        self.types = types
        self._make = make
        self._tool: ServerTool | None = None
        self._making = asyncio.Lock()

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """See `ServerTool.prepare`."""
        return await (await self._made()).prepare(owner, response_id, tool)

    async def run(self, call: HostedCall) -> ToolResult:
        """See `ServerTool.run`."""
        return await (await self._made()).run(call)

    async def aclose(self) -> None:
        """Close the tool if a request has used it."""
        if self._tool is not None:
            await self._tool.aclose()

    async def _made(self) -> ServerTool:
        async with self._making:
            if self._tool is None:
                self._tool = await asyncio.to_thread(self._make)
            return self._tool


def read_declared(tool: HostedTool, kind: type[T]) -> T:
    """Decode a tool's declaration into the struct `kind`. Raises `InvalidRequest` whose `param` names the field."""
    try:
        return msgspec.json.decode(tool.declaration, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_type(f"tools[{tool.index}]", error, tool.declaration) from None


def read_arguments(arguments: str, kind: type[T]) -> T | None:
    """Decode the arguments of the model's call into the struct `kind`. Returns None if the text is invalid JSON or does
    not match `kind`."""
    return try_decode(msgspec.json.Decoder(kind), arguments)


def check_length(where: str, entries: list[str], limit: int) -> None:
    """Raise `InvalidRequest` if a list has more than `limit` entries. `where` names the field in the error."""
    if len(entries) > limit:
        raise too_many_entries(where, len(entries), limit)


class Toolbox:
    """Implements `ToolRunner` with a set of tools."""

    def __init__(
        self,
        tools: Iterable[ServerTool],
        limits: ToolSettings,
        metrics: Metrics | None = None,
        places: Places | None = None,
    ) -> None:
        """`places`: the slots that several toolboxes of a process share. Without `places`, this toolbox has separate
        slots."""
        self._tools = {kind: tool for tool in tools for kind in tool.types}
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._places = places or Places(limits.concurrent)
        self.types = frozenset(self._tools)

    async def prepare(
        self, owner: str, response_id: str, tools: tuple[HostedTool, ...]
    ) -> tuple[PreparedTool, ...] | ApiError:
        """Prepare all tools of a request concurrently. If tools cannot be prepared, returns the first error as an
        `ApiError`."""
        try:
            prepared = await asyncio.gather(*(self._prepare(owner, response_id, tool) for tool in tools))
        except ApiError as error:
            return error
        except StoreError as error:
            return store_refusal(error, "A tool could not be prepared")
        except Exception as bug:
            _log.error("tool_not_prepared", error=type(bug).__name__, exc_info=True)
            return InternalError("A tool could not be prepared.")
        return tuple(prepared)

    async def _prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        seconds = self._limits.seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._tools[tool.type].prepare(owner, response_id, tool)
        except TimeoutError:
            self._metrics.tool_execution(tool.type, seconds, "timed_out")
            done = "The tool did not become ready"
            known = {"response_id": response_id, "owner": owner[:12], **_server_of(tool)}
            _log.warning(
                "tool_timed_out", tool=tool.type, seconds=seconds, setting="tools.seconds", cause=done, **known
            )
            raise ApiError(
                f"The tool '{tool.type}' did not become ready within {seconds:g} seconds. Try again, or remove the "
                "tool from the request.",
                param=f"tools[{tool.index}]",
                status=504,
                type="server_error",
                code="tool_timeout",
            ) from None

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one call within the limits. A failure or a timeout becomes a failed result. Raises only
        `asyncio.CancelledError`."""
        started = time.perf_counter()
        begun, outcome = False, "failed"
        try:
            async with asyncio.timeout(self._limits.seconds), self._places.one(call.owner, call.response_id):
                begun = True
                with span(f"{names.EXECUTE_TOOL} {call.target.name}") as traced:
                    if traced is not None:
                        traced.set(_about(call) | ({names.TOOL_ARGUMENTS: call.arguments} if traced.content else {}))
                    result = await self._tools[call.tool.type].run(call)
                    if traced is not None:
                        if traced.content:
                            traced.set({names.TOOL_RESULT: result.output})
                        if result.failed:
                            traced.end("tool_failed")
            outcome = "failed" if result.failed else "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ToolFailed as failure:
            result = _failed(call, str(failure))
        except ApiError as error:
            result = _failed(call, error.message)
        except TimeoutError:
            outcome = "timed_out"
            done = (
                "The tool did not answer"
                if begun
                else ("Other calls used all slots of the tool, so this call did not start")
            )
            setting = "tools.seconds" if begun else "tools.concurrent"
            told: dict[str, object] = {"tool": call.tool.type, "seconds": self._limits.seconds, "setting": setting}
            if call.target.namespace:
                told["server"] = call.target.namespace
            _log.warning("tool_timed_out", **told, cause=done, response_id=call.response_id, owner=call.owner[:12])
            result = _failed(call, f"{done} within {self._limits.seconds:g} seconds.")
        except StoreError as error:
            _log.warning("tool_failed", tool=call.tool.type, cause=str(error), response_id=call.response_id)
            result = _failed(call, store_refusal(error, "The tool failed").message)
        except Exception as bug:
            _log.error("tool_failed", tool=call.tool.type, error=type(bug).__name__, exc_info=True)
            result = _failed(call, "The tool failed.")
        finally:
            self._metrics.tool_execution(call.tool.type, time.perf_counter() - started, outcome)
        limit = self._limits.output_chars
        return result if len(result.output) <= limit else replace(result, output=result.output[:limit] + _CUT)

    async def aclose(self) -> None:
        """Close every tool. The method closes a tool that is registered for several types only once."""
        for tool in dict.fromkeys(self._tools.values()):
            await tool.aclose()


class _Labelled(msgspec.Struct):
    server_label: str = ""


def _server_of(tool: HostedTool) -> dict[str, str]:
    """Return the label of an MCP server as a field of a log line. Returns an empty dict if the declaration has no label
    or an invalid one."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        label = msgspec.json.decode(tool.declaration, type=_Labelled).server_label
        if is_name(label):
            return {"server": label}
    return {}


def _about(call: HostedCall) -> dict[str, Value]:
    return {
        names.OPERATION: names.EXECUTE_TOOL,
        names.TOOL_NAME: call.target.name,
        names.TOOL_TYPE: call.tool.type,
        names.TOOL_CALL: call.call_id,
    }


def _failed(call: HostedCall, message: str) -> ToolResult:
    # Only the item class of MCP calls has a field `error`. The items of other tools ignore the field.
    error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": message}]}
    return ToolResult(call.call_id, f"The call failed: {message}", {"error": error}, failed=True)


_Waiting = deque[tuple[str, asyncio.Future[None]]]


class Places:
    """A fixed number of slots for concurrent calls, which the owners share fairly."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        # With very few slots, a quarter would be less than two, and the calls of a response would run one after the
        # other.
        self._max_of_response = max(2, total // 4)
        self._max_of_owner = max(2, total * 3 // 4)
        self._owners: Counter[str] = Counter()
        self._responses: Counter[tuple[str, str]] = Counter()
        self._waiting: dict[str, _Waiting] = {}

    @property
    def untouched(self) -> bool:
        """Whether no call occupies a slot or waits for one, and no owner and no response still has a counter. Tests use
        this property to find leaks."""
        return self._free == self._total and not (self._waiting or self._owners or self._responses)

    @asynccontextmanager
    async def one(self, owner: str, response_id: str) -> AsyncIterator[None]:
        """Wait for a slot, and occupy it inside the `async with` block."""
        await self._take(owner, response_id)
        try:
            yield
        finally:
            self._give_back(owner, response_id)

    async def _take(self, owner: str, response_id: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append((response_id, place))
        self._serve()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # The call got a slot in the moment of its cancellation, so return the slot.
                self._give_back(owner, response_id)
            else:
                self._forget(owner, place)
            raise

    def _give_back(self, owner: str, response_id: str) -> None:
        self._free += 1
        self._owners[owner] -= 1
        self._responses[owner, response_id] -= 1
        # Adding an empty Counter removes the entries that are 0.
        self._owners += Counter()
        self._responses += Counter()
        self._serve()

    def _serve(self) -> None:
        while self._free and (chosen := self._next()) is not None:
            owner, response_id, place = chosen
            self._free -= 1
            self._owners[owner] += 1
            self._responses[owner, response_id] += 1
            self._forget(owner, place)
            place.set_result(None)

    def _next(self) -> tuple[str, str, asyncio.Future[None]] | None:
        """Return the waiting call that gets the next slot, or None. Owners with the fewest running calls come first.
        `sorted` is stable, so owners with equally many calls keep their order in `_waiting`."""
        for owner in sorted(self._waiting, key=self._owners.__getitem__):
            if self._owners[owner] >= self._max_of_owner:
                return None
            for response_id, place in self._waiting[owner]:
                if self._responses[owner, response_id] < self._max_of_response and not place.done():
                    return owner, response_id, place
        return None

    def _forget(self, owner: str, place: asyncio.Future[None]) -> None:
        left = deque(one for one in self._waiting[owner] if one[1] is not place)
        if left:
            # Move the owner to the end of the dict, behind the other waiting owners.
            del self._waiting[owner]
            self._waiting[owner] = left
        else:
            del self._waiting[owner]
