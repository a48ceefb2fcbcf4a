"""What the serving commands share: the event loop, signals, the parent's pipe, draining.

Invariant: SIGTERM and SIGINT drain once (a second signal stops at once); a process whose parent died drains too, but
briefly, since nobody waits for it and its port may be wanted.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine

import structlog

__all__ = ["StopSignals", "keep_what_there_is", "run_loop"]

_log = structlog.get_logger(__name__)

_ORPHAN_SECONDS = 2.0
_TURN_SECONDS = 0.0005
_COLLECTOR = (10_000, 20, 50)


def run_loop(main: Coroutine[None, None, int]) -> int:
    """Run on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    # How long a thread may make the event loop wait for its turn (5 ms by default).
    sys.setswitchinterval(_TURN_SECONDS)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def keep_what_there_is() -> None:
    """Everything is built: the collector need not look at it again (5 ms each time, for all streams).

    Nor need it look often: a request leaves no cycles behind, and all streams wait while it looks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR)


class StopSignals:
    """Takes SIGTERM, SIGINT and the parent's end, from when it is made: a signal during the start is not lost."""

    def __init__(self, parent_pipe: int | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._first, self._second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        if parent_pipe is not None:
            self._loop.add_reader(parent_pipe, self._on_parent_gone, parent_pipe)

    def _on_signal(self) -> None:
        (self._second if self._first.is_set() else self._first).set()

    def _on_parent_gone(self, pipe: int) -> None:
        # The parent never writes: readable means that its end was closed.
        self._loop.remove_reader(pipe)
        self._first.set()
        self._loop.call_later(_ORPHAN_SECONDS, self._second.set)

    async def wait_and_drain(self, drain: Callable[[], Awaitable[bool]]) -> None:
        """Wait for the first signal (or the parent's end), then drain; a second signal cuts that short."""
        await self._first.wait()
        _log.info("draining")
        draining = asyncio.ensure_future(drain())
        cut = asyncio.ensure_future(self._second.wait())
        await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("drained" if draining.done() and draining.result() else "stopped_with_requests_in_flight")
        for task in (draining, cut):
            task.cancel()
