"""Calls of upstreams that are no model call of a response, and a worker's writes to the job store, counted and timed.

Lives here: what the metrics get of them, and by which names. Not here: a response's own calls
(`observability/observation.py`), the calls, what a write means (`engine/ports/jobs.py`).

Invariants: each call counts once, when it is over; nothing is done per part of its body. What is read of jobs all the
time (what is held, how far streams are) is not counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from antiphon.engine.exchange.failure import local_fault
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.jobs import JobStore
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.observability.metrics import Metrics
from antiphon.types.transport import LOCAL_REPLY, UPSTREAM_HEADER, UpstreamFault, header_value


class CountedUpstream:
    """`Upstream` over another one. `operation`: what its calls are for; `name`: for one that has a name of its own."""

    def __init__(self, beneath: Upstream, metrics: Metrics, operation: str, name: str = "") -> None:
        self._beneath = beneath
        self._metrics = metrics
        self._operation = operation
        self._name = name

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        """See `Upstream.call`."""
        started = time.perf_counter()
        head: float | None = None
        upstream, status = self._name or request.upstream, "cancelled"
        try:
            async with self._beneath.call(request) as answer:
                upstream = header_value(answer.headers, UPSTREAM_HEADER) or upstream
                # A proxy in between answers as well, when nobody else does.
                local = header_value(answer.headers, LOCAL_REPLY)
                status = str(answer.status) if local is None else local.partition(":")[0]
                if local is not None and (fault := local_fault(local)) is UpstreamFault.CUT:
                    status = fault.value
                if status.isdigit():
                    head = time.perf_counter() - started
                yield answer
        except UpstreamCallFailed as failure:
            status = failure.error.fault.value
            raise
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            self._metrics.upstream_called(upstream, self._operation, status, head)

    async def aclose(self) -> None:
        """The one beneath is somebody else's to close."""


_Given = ParamSpec("_Given")
_Done = TypeVar("_Done")
_Work = Callable[_Given, Coroutine[Any, Any, _Done]]


class CountedJobs:
    """`JobStore` over another one."""

    def __init__(self, beneath: JobStore, metrics: Metrics) -> None:
        def counted(operation: str, work: _Work[_Given, _Done]) -> _Work[_Given, _Done]:
            async def measured(*given: _Given.args, **named: _Given.kwargs) -> _Done:
                with metrics.storage(operation):
                    return await work(*given, **named)

            return measured

        self.claim = counted("claim", beneath.claim)
        self.renew = counted("renew", beneath.renew)
        self.release = counted("release", beneath.release)
        self.append = counted("append", beneath.append)
        self.finish = counted("finish", beneath.finish)
        self.end = counted("end", beneath.end)
        self.enqueue = beneath.enqueue
        self.queue = beneath.queue
        self.held = beneath.held
        self.unlock = beneath.unlock
        self.progress = beneath.progress
        self.events = beneath.events
