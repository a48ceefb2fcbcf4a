"""What the serving commands share: the event loop, signals, the parent's pipe, draining.

Invariant: SIGTERM and SIGINT drain once (a second signal stops at once); a process whose parent died drains too, but
briefly, since nobody waits for it and its port may be wanted.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine

import structlog

__all__ = ["run_loop", "wait_for_stop"]

_log = structlog.get_logger(__name__)

_ORPHAN_SECONDS = 2.0


def run_loop(main: Coroutine[None, None, int]) -> int:
    """Run on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def wait_for_stop(parent_pipe: int | None, drain: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a signal (or the parent's end), then drain; a second signal cuts the draining short."""
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    def parent_gone(pipe: int) -> None:
        # The parent never writes: readable means that its end was closed.
        loop.remove_reader(pipe)
        first.set()
        loop.call_later(_ORPHAN_SECONDS, second.set)

    if parent_pipe is not None:
        loop.add_reader(parent_pipe, parent_gone, parent_pipe)
    await first.wait()
    _log.info("draining")
    draining = asyncio.ensure_future(drain())
    cut = asyncio.ensure_future(second.wait())
    await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("drained" if draining.done() and draining.result() else "stopped_with_requests_in_flight")
    for task in (draining, cut):
        task.cancel()
