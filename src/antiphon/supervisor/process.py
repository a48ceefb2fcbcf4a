"""Runs a serving process: event loop, garbage collection, signals, draining and the end.

Lives here: the event loop, when Python's collector looks for cycles, signals, the parent's pipe, draining, and the end
that always comes. Not here: doors and the rest of what serves (`commands/extproc.py`, `commands/serve.py`).

By itself the collector counts objects, and there are few: a request leaves next to nothing behind, so that hours may
pass. But one cycle may hold a request's body and what was read of its answer, megabytes for each failed call. What
serves leaves no cycles where it can (`tests/faults/test_what_failures_leave.py`), libraries leave some.

Invariants: what only a cycle holds is freed `_COLLECT_EVERY` seconds after the last look, or after 2,000 times as long
as that look took: it never takes more of the time, however much there is to look at (150,000 objects take some 40 ms).
SIGTERM and SIGINT drain once (a second signal stops at once); a process whose parent died drains too, but briefly,
since nobody waits for it and its port may be wanted. However the drain goes, the process ends: a thread that needs
nothing of the event loop ends it `CLOSING_SECONDS` after the time for the drain, and says where it hung.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import selectors
import signal
import sys
import termios
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, TypeVar

import structlog

from antiphon.observability.logs import flush
from antiphon.supervisor.service_manager import tell

if TYPE_CHECKING:
    from antiphon.doors.context import Admission

_log = structlog.get_logger(__name__)

T = TypeVar("T")

ORPHAN_SECONDS = 2.0
"""How long a process whose parent died goes on with what it has."""
CLOSING_SECONDS = 1.1
COUNTS_SECONDS = 1.0
QUIET_SECONDS = 2.0
"""How long nothing may come on the connections of a process that another one replaced, until it ends: its clients are
told with an answer to connect again, and those that are idle have this time to bring another request."""
_CUT_SECONDS = 1.0
"""How long the end may take once the drain is over: cut what is left, store it as failed, close."""
_EASY_CLOSING_SECONDS = 5.0
"""How long it may take where the drain was over early: on a busy machine even an end takes its time."""
_SAYING_SECONDS = 0.2
_TURN_SECONDS = 0.0005
_TASKS_SAID = 10
_COLLECT_EVERY = 30.0
_PATIENCE = 2000.0
_COLLECTOR = (10_000, 20, 50)


def run_loop(main: Coroutine[None, None, int]) -> int:
    """Run on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    # A stream takes two descriptors, and the soft limit (often 1024) is there for programs that use select().
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    # How long a thread may make the event loop wait for its turn (5 ms by default).
    sys.setswitchinterval(_TURN_SECONDS)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def keep_what_there_is() -> None:
    """Everything is built: the collector need not look at it again (5 ms each time, for all streams).

    Nor need it look whenever a few hundred objects were made: all streams wait while it looks.
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
    """Look for cycles from now on. `later`: the loop's `call_later`."""

    def look() -> None:
        started = clock()
        collect()
        later(max(_COLLECT_EVERY, (clock() - started) * _PATIENCE), look)

    later(_COLLECT_EVERY, look)


def hears_hangup() -> bool:
    """Whether SIGHUP means anything: under nohup it is ignored, and stays so."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def on_terminal() -> bool:
    """Whether standard input is a terminal that is there. One that is closed sends SIGHUP too, which means the end."""
    try:
        termios.tcgetattr(0)
    except (OSError, termios.error):
        return False
    return True


def time_to_cut(drain: float) -> float:
    """Of the seconds for a drain, those in which what still runs then is cut and stored: begun any later, that would
    not be over when the process must end."""
    return min(_CUT_SECONDS, drain / 4)


class StopSignals:
    """Takes SIGTERM, SIGINT and the parent's end, from when it is made: a signal during the start is not lost.

    They are read by a thread: the C handler of a signal writes its number into a pipe whatever the main thread does, so
    the last moment is known although the event loop may stand still. `drain`: seconds for a drain.
    """

    def __init__(self, parent_pipe: int | None, drain: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._first, self._second = asyncio.Event(), asyncio.Event()
        self.hangup = asyncio.Event()
        """SIGHUP: the settings are to be read again. In a worker, whose parent does that, it says nothing."""
        self.replaced = False
        """Whether another process has taken the place of this one."""
        self._terminal = on_terminal()
        self._drain = drain
        self._signals = 0
        self._because, self._seconds = "", drain
        self._parent_pipe = parent_pipe
        self._last: float | None = None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hears_hangup() else [])):
            signal.signal(number, _do_nothing)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        # A daemon: it goes on until the very end of the interpreter, which may wait for other threads for ever.
        threading.Thread(target=self._watch, name="stop-signals", daemon=True).start()

    @property
    def finish_seconds(self) -> float:
        """Of the seconds for a drain, those in which requests may finish: what still runs then is cut."""
        return self._drain - time_to_cut(self._drain)

    def replace(self, seconds: float) -> None:
        """Another process has taken the place of this one, so that a drain may take as long as this."""
        self.replaced = True
        self._drain = self._seconds = seconds

    async def unless_stopped(self, start: Coroutine[object, object, T]) -> T | None:
        """The result of `start`. If a signal (or the parent's end) comes first, cancel `start` and return None: no
        client was served yet."""
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
        """Wait for the first signal (or the parent's end), then drain; a second signal cuts that short.

        Whether everything in flight was finished. One line says what there is to finish and in which time, another
        what became of it.
        """
        await self._first.wait()
        _log.info(
            "draining", because=self._because, seconds=self._seconds, **_counted("in_flight", admission.in_flight)
        )
        tell("STOPPING=1")
        draining = asyncio.ensure_future(drain())
        cut = asyncio.ensure_future(self._second.wait())
        await asyncio.wait({draining, cut}, return_when=asyncio.FIRST_COMPLETED)
        drained = draining.done() and draining.result()
        if drained and self.replaced:
            # Its counts are of use to the parent still, which asks for them every so often.
            await asyncio.wait({cut}, timeout=COUNTS_SECONDS)
        # What is in flight still is cut by what comes now.
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

    def closing(self) -> None:
        """Nothing is served any more: from now the process has `CLOSING_SECONDS` and the time to cut to end, or more
        where the drain took less than its time."""
        self._end_within(max(time_to_cut(self._drain) + CLOSING_SECONDS, _EASY_CLOSING_SECONDS))
        os.write(self._writing, b"\0")

    # The thread

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
                        # The parent never writes: readable means that its end was closed.
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
            self._because, self._seconds = "the parent process is gone", min(self._drain, ORPHAN_SECONDS)
        self._end_within(ORPHAN_SECONDS + CLOSING_SECONDS)
        self._tell(self._first.set)
        self._tell(self._loop.call_later, ORPHAN_SECONDS, self._second.set)

    def _end_within(self, seconds: float) -> None:
        last = time.monotonic() + seconds
        self._last = last if self._last is None else min(self._last, last)

    def _tell(self, what: Callable[..., object], *given: object) -> None:
        # A loop that is closed belongs to a process that is ending.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what, *given)


def end_at_the_latest(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """End this process then by force, if it has not ended by itself: a thread that never ends would hold it up."""
    # A daemon, which goes on while the interpreter waits for other threads.
    timer = threading.Timer(seconds, _end_by_force, (loop,))
    timer.daemon = True
    timer.start()


def _end_by_force(loop: asyncio.AbstractEventLoop) -> None:
    # By another thread: nobody may be reading what this process says.
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
        # The main thread is making or ending some.
        tasks = []
    _log.error("ended_by_force", main_thread=where, tasks=tasks[:_TASKS_SAID], more_tasks=len(tasks[_TASKS_SAID:]))
    flush(_SAYING_SECONDS)


def _counted(name: str, kinds: Mapping[str, int]) -> dict[str, object]:
    """How many there are, and of which kinds where there are any."""
    return {name: sum(kinds.values())} | ({f"{name}_by_kind": dict(kinds)} if kinds else {})


def _do_nothing(*_: object) -> None:
    """Signals are read from the pipe; without a handler of Python's, nothing would be written there."""
