"""What the serving commands share: the event loop, signals, the parent's pipe, draining.

Invariant: SIGTERM and SIGINT drain once (a second signal stops at once), and a process whose parent died drains too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine

import structlog

__all__ = ["run_loop", "wait_for_stop"]

_log = structlog.get_logger(__name__)


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
    if parent_pipe is not None:
        os.set_blocking(parent_pipe, False)
        loop.add_reader(parent_pipe, _parent_gone, loop, parent_pipe, first)
    await first.wait()
    _log.info("draining")
    draining = asyncio.ensure_future(drain())
    cut = asyncio.ensure_future(second.wait())
    await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
    _log.info("drained" if draining.done() and draining.result() else "stopped_with_requests_in_flight")
    for task in (draining, cut):
        task.cancel()


def _parent_gone(loop: asyncio.AbstractEventLoop, pipe: int, stop: asyncio.Event) -> None:
    # The parent never writes: readable means that its end was closed.
    loop.remove_reader(pipe)
    stop.set()
