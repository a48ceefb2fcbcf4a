"""Counts upstream calls that are not model calls of a response, and measures their duration.

For example, it counts the calls of the embeddings server. Not here: a response's model calls
(`observability/observation.py`), and making the call (the wrapped `Upstream`).

Invariant: each call counts once, when the call is over. Counting adds no work for each chunk of the answer's body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from antiphon.engine.exchange.failure import local_fault
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamAnswer, UpstreamCallFailed
from antiphon.observability.metrics import Metrics
from antiphon.types.transport import LOCAL_REPLY, UPSTREAM_HEADER, UpstreamFault, header_value


class CountedUpstream:
    """An `Upstream` that forwards calls to another `Upstream` and counts them in the metrics.

    `operation` is the purpose of the calls. A non-empty `name` replaces the upstream's name in the metrics.
    """

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
                # A proxy (Envoy) answers when the upstream does not.
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
        """Do nothing. The code that created the wrapped upstream closes it."""
