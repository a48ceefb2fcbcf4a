"""A job store whose writes are counted and timed.

Lives here: what a worker asks of the store, by the names that the metrics have. Not here: what any of it means
(`engine/ports/jobs.py`).

Invariant: it changes nothing. What is read all the time (what is held, how far streams are) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from antiphon.engine.ports.jobs import JobStore
from antiphon.observability.metrics import Metrics

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
