"""Runs a serving process: event loop, garbage collection, signals, drain and exit.

This module also notifies the service manager (systemd, `Type=notify`) of readiness, reloads and the stop
(sd_notify(3)). `commands/extproc.py` and `commands/serve.py` run the servers.

By default, Python's cycle collector runs when the number of new objects exceeds a threshold. A request leaves almost no
new objects, so hours may pass between two runs. But one reference cycle may keep a request's body and a partial
response in memory: megabytes for each failed call. Antiphon's code avoids cycles
(`tests/faults/test_what_failures_leave.py`), but libraries create some.

Invariants: the collector runs every `_COLLECT_EVERY` seconds, but uses at most 1/2000 of the time. A run takes about 40
ms for 150,000 objects. The first SIGTERM or SIGINT starts a drain, and a second signal stops the process immediately.
If the parent process has ended, the drain lasts only `ORPHAN_SECONDS`, because another process may need the port. The
process always exits: if it still runs `CLOSING_SECONDS` after the drain's deadline, a separate thread logs where the
process hangs, and ends it. Without `NOTIFY_SOCKET` in the environment, the process sends nothing to a service manager.
Sending never blocks and never raises an error. If the service manager is unreachable, the process writes one log line.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import termios
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

import structlog

from antiphon.observability.logs import flush

if TYPE_CHECKING:
    from antiphon.doors.context import Admission


_log = structlog.get_logger(__name__)

T = TypeVar("T")

State = Literal["READY=1", "RELOADING=1", "STOPPING=1"]

ORPHAN_SECONDS = 2.0
"""Seconds for which a process continues its requests after the parent process has ended."""
CLOSING_SECONDS = 1.1
COUNTS_SECONDS = 1.0
QUIET_SECONDS = 2.0
"""Seconds without a request after which a replaced process exits. In this time, a client with an idle connection can
send another request, whose response tells it to reconnect."""
_CUT_SECONDS = 1.0
"""Seconds that the process has after the drain's deadline to cut the remaining requests, store their responses as
failed, and exit."""
_EASY_CLOSING_SECONDS = 5.0
"""Seconds that the process has to exit if the drain ended before its deadline. A busy machine may need this long."""
_SAYING_SECONDS = 0.2
_TURN_SECONDS = 0.0005
_TASKS_SAID = 10
_COLLECT_EVERY = 30.0
_PATIENCE = 2000.0
_COLLECTOR = (10_000, 20, 50)


def run_loop(main: Coroutine[None, None, int]) -> int:
    """Run the coroutine on uvloop if that is installed, else on asyncio's event loop. Returns the coroutine's
    result."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    # A stream takes two descriptors. The soft limit (often 1024) exists only for programs that use select(), so this
    # process raises it.
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    # A thread may make the event loop wait for the interpreter lock at most this long (0.5 ms). Python's default is 5
    # ms.
    sys.setswitchinterval(_TURN_SECONDS)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def keep_what_there_is() -> None:
    """Exclude all objects that exist now from garbage collection, because they would add 5 ms to each collection. All
    streams wait during a collection.

    For the same reason, the function also raises the collector's thresholds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR)


def collect_by_time(
    later: Callable[[float, Callable[[], None]], object],
    *,
    collect: Callable[[], object] = gc.collect,
    clock: Callable[[], float] = time.thread_time,
) -> None:
    """Start to collect reference cycles periodically. `later` is the event loop's `call_later`."""

    def look() -> None:
        started = clock()
        collect()
        later(max(_COLLECT_EVERY, (clock() - started) * _PATIENCE), look)

    later(_COLLECT_EVERY, look)


def hears_hangup() -> bool:
    """Whether this process handles SIGHUP. The process ignores SIGHUP if it was started with nohup."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def on_terminal() -> bool:
    """Whether standard input is an open terminal. When the terminal closes, the process gets SIGHUP and must exit."""
    try:
        termios.tcgetattr(0)
    except (OSError, termios.error):
        return False
    return True


def time_to_cut(drain: float) -> float:
    """Return the number of seconds at the end of a drain in which the process cuts the remaining requests and stores
    their responses. Without this time, the process could exit before it has stored all responses."""
    return min(_CUT_SECONDS, drain / 4)


class StopSignals:
    """Handles SIGTERM, SIGINT and the end of the parent process, from the start of this process on.

    Python's C signal handler writes the signal's number into a pipe, and a separate thread reads the pipe. So the
    deadline applies even if the event loop hangs. `drain` is the maximum duration of a drain in seconds.
    """

    def __init__(self, parent_pipe: int | None, drain: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._first, self._second = asyncio.Event(), asyncio.Event()
        self.hangup = asyncio.Event()
        """SIGHUP sets this event. The process then reads its settings again. A worker of `antiphon up` ignores the
        event, because the parent process reads the settings."""
        self.replaced = False
        """Whether a process of the next generation has replaced this process."""
        self._terminal = on_terminal()
        self._drain = drain
        self._finish_at = 0.0
        self._signals = 0
        self._because, self._seconds = "", drain
        self._parent_pipe = parent_pipe
        self._last: float | None = None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hears_hangup() else [])):
            signal.signal(number, _do_nothing)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        # A daemon thread runs until the very end of the interpreter, which may wait forever for other threads.
        threading.Thread(target=self._watch, name="stop-signals", daemon=True).start()

    @property
    def finish_seconds(self) -> float:
        """The number of seconds of a drain in which requests may finish. Afterwards the process cuts the remaining
        requests."""
        return self._drain - time_to_cut(self._drain)

    def replace(self, seconds: float) -> None:
        """Record that a process of the next generation has replaced this process. The drain may then take `seconds`."""
        self.replaced = True
        self._drain = self._seconds = seconds

    async def unless_stopped(self, start: Coroutine[object, object, T]) -> T | None:
        """Await `start` and return its result. If this process must stop earlier, cancel `start` and return None."""
        starting, stopped = asyncio.ensure_future(start), asyncio.ensure_future(self._first.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                _log.info("stopped_before_ready", because=self._because)
                self.closing()
                starting.cancel()
                await asyncio.wait({starting})
            return None if starting.cancelled() else starting.result()
        finally:
            starting.cancel()
            stopped.cancel()

    async def wait_and_drain(self, drain: Callable[[], Awaitable[bool]], admission: Admission) -> bool:
        """Wait for the first signal or the end of the parent process, and then drain. A second signal ends the drain
        early.

        Returns whether all requests in flight finished. One log line reports the requests in flight and the drain's
        seconds, and another line reports the result.
        """
        await self._first.wait()
        self._finish_at = self._loop.time() + self.finish_seconds
        _log.info(
            "draining", because=self._because, seconds=self._seconds, **_counted("in_flight", admission.in_flight)
        )
        tell_service_manager("STOPPING=1")
        draining = asyncio.ensure_future(drain())
        cut = asyncio.ensure_future(self._second.wait())
        await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
        drained = draining.done() and draining.result()
        if drained and self.replaced:
            # The parent still reads this process's metrics about once a second, so the process waits for the last
            # reading.
            await asyncio.wait({cut}, timeout=COUNTS_SECONDS)
        # The requests that are still in flight will be cut after this method returns.
        ended = dict(admission.ended)
        given_back = {"given_back": count} if (count := ended.pop("given_back", 0)) else {}
        told = _counted("finished", ended) | given_back
        if drained:
            _log.info("drained", **told)
        else:
            _log.warning("stopped_with_requests_in_flight", **_counted("cut", admission.in_flight), **told)
        for task in (draining, cut):
            task.cancel()
        return drained

    async def wait_for(self, event: asyncio.Event) -> None:
        """After the drain, wait for `event`, but not longer than until a second signal or the drain's deadline."""
        waiting = [asyncio.ensure_future(one.wait()) for one in (event, self._second)]
        left = max(0.0, self._finish_at - self._loop.time())
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()

    def closing(self) -> None:
        """Record that the servers are closed, and set the last deadline for the exit of this process."""
        self._end_within(max(time_to_cut(self._drain) + CLOSING_SECONDS, _EASY_CLOSING_SECONDS))
        os.write(self._writing, b"\0")

    # Methods that run in the signal thread.

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            if self._parent_pipe is not None:
                selector.register(self._parent_pipe, selectors.EVENT_READ)
            while self._last is None or time.monotonic() < self._last:
                wait = None if self._last is None else max(0.0, self._last - time.monotonic())
                for key, _ in selector.select(wait):
                    if key.fd == self._reading:
                        for number in os.read(self._reading, 64):
                            self._on_signal(number)
                    else:
                        # The parent never writes to the pipe, so "readable" means that the parent has closed its end.
                        selector.unregister(key.fd)
                        self._on_parent_gone()
        _end_by_force(self._loop)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP and not (self._terminal and not on_terminal()):
            self._tell(self.hangup.set)
            return
        if number not in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return
        self._signals += 1
        if self._signals == 1:
            self._because = self._because or signal.Signals(number).name
            self._end_within(self._drain + CLOSING_SECONDS)
            self._tell(self._first.set)
        else:
            self._end_within(CLOSING_SECONDS)
            self._tell(self._second.set)

    def _on_parent_gone(self) -> None:
        if not self._because:
            self._because, self._seconds = "the parent process has ended", min(self._drain, ORPHAN_SECONDS)
        self._end_within(ORPHAN_SECONDS + CLOSING_SECONDS)
        self._tell(self._first.set)
        self._tell(self._loop.call_later, ORPHAN_SECONDS, self._second.set)

    def _end_within(self, seconds: float) -> None:
        last = time.monotonic() + seconds
        self._last = last if self._last is None else min(self._last, last)

    def _tell(self, what: Callable[..., object], *given: object) -> None:
        # The event loop is closed when the process is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *given)


def end_at_the_latest(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Kill this process after `seconds`, if it still runs. Otherwise a thread that never ends could keep the process
    alive."""
    # A daemon thread runs while the interpreter waits for other threads.
    timer = threading.Timer(seconds, _end_by_force, (loop,))
    timer.daemon = True
    timer.start()


def _end_by_force(loop: asyncio.AbstractEventLoop) -> None:
    # Another thread writes the log line, because a blocked log output could hang.
    saying = threading.Thread(target=_say_where, args=(loop,), daemon=True)
    saying.start()
    saying.join(_SAYING_SECONDS)
    os._exit(1)


def _say_where(loop: asyncio.AbstractEventLoop) -> None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    where = [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_stack(frame)[-6:]]
    try:
        tasks = [repr(task.get_coro()) for task in asyncio.all_tasks(loop)]
    except RuntimeError:
        # The main thread was changing the set of tasks, so the log line lists no tasks.
        tasks = []
    _log.error("ended_by_force", main_thread=where, tasks=tasks[:_TASKS_SAID], more_tasks=len(tasks[_TASKS_SAID:]))
    flush(_SAYING_SECONDS)


def _counted(name: str, kinds: Mapping[str, int]) -> dict[str, object]:
    """Return two log fields: the sum of all counts, and the counts by kind if there are any."""
    return {name: sum(kinds.values())} | ({f"{name}_by_kind": dict(kinds)} if kinds else {})


def _do_nothing(*_: object) -> None:
    """Do nothing. Python writes a signal's number to the pipe only if the signal has a Python handler."""


def tell_service_manager(state: State) -> None:
    """Notify the service manager of this state, if there is a service manager. After `RELOADING=1` the caller must send
    `READY=1` when the reload has ended."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A name with `@` is an abstract socket, whose real name begins with a null byte. No environment variable can
    # contain that byte.
    place = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.setblocking(False)
            sending.connect(place)
            sending.send(_message(state).encode())
    except (OSError, ValueError) as error:
        _log.warning("service_manager_not_told", state=state, cause=str(error))


def _message(state: State) -> str:
    if state != "RELOADING=1":
        return state
    # A manager with `Type=notify-reload` uses this field to distinguish this reload from an earlier one.
    return f"{state}\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
