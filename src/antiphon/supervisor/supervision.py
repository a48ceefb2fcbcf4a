"""Restarts a child process that ends or hangs, with growing pauses.

This module decides when a child hangs, how long to wait before a restart, and when to give up. It also waits until the
processes are ready. `children.py` manages one child process, and `generation.py` has the list of processes.

Invariants: if a child does not answer for `RestartPolicy.hung` seconds, the parent process kills it. A quick death is
the end of a child soon after its start. The pause before the next start doubles with every quick death in a row. After
`RestartPolicy.deaths` quick deaths in a row, the parent process gives up. Until all processes have been ready, the
parent process gives up as soon as a child ends. Afterwards, it retries if the machine cannot start a child, for example
because the disk is full.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

import structlog

from antiphon.errors import AntiphonError, ConfigError
from antiphon.supervisor.child_output import last_words
from antiphon.supervisor.children import Child, describe_status

_log = structlog.get_logger(__name__)

_ASKS = 3
"""The number of consecutive unanswered health checks after which the parent process kills a child. One unanswered check
is not enough, because the machine may have been suspended."""
_LOOK_SECONDS = 5.0
START_SECONDS = 60.0
"""Seconds in which a starting process must become ready."""
POLL_SECONDS = 0.05
WRONG_SETTINGS = 2
"""The exit status of a command that stops because its settings are wrong (`entry.py`)."""


@dataclass(frozen=True)
class RestartPolicy:
    """The limits for restarts. All are in seconds except `deaths`, which is a number.

    A child that does not answer for `hung` seconds hangs. With `hung` 0 there are no health checks. A child must be
    ready `starting` seconds after its start. If a child ends within `quick` seconds, its end is a quick death. After
    `deaths` quick deaths in a row, the parent process gives up.
    """

    hung: float = 30.0
    starting: float = 60.0
    quick: float = 30.0
    deaths: int = 5
    first_pause: float = 0.25
    longest_pause: float = 10.0


class GivenUp(AntiphonError):
    """Raised when a child has ended or hangs, and the parent process does not restart it."""

    def __init__(self, child: Child, status: int, deaths: int, hung: bool) -> None:
        self.name, self.deaths = child.name, deaths
        how = "did not answer (timeouts.hung) and was killed" if hung else describe_status(status)
        times = f" ({deaths} times in a row, soon after its start)" if deaths > 1 else ""
        # The log already contains the child's lines.
        look = "the log above has its last output" if child.last_lines() else "it printed nothing"
        if status == -signal.SIGKILL and not hung:
            look += (
                "; Antiphon did not kill it. The kernel may have killed it because memory ran out: check dmesg, and "
                "the memory limit of the container"
            )
        super().__init__(f"{child.name} {how}{times}; {look}. 'antiphon doctor' checks what the process needs")


class NotStarted(AntiphonError):
    """Raised when a child has ended with an error message before all processes were ready."""


class Supervised:
    """One supervised process. `start` starts a child, `is_ready` returns whether the child serves requests, and
    `is_alive` returns whether the child answers within a number of seconds."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Child]],
        *,
        is_ready: Callable[[], Awaitable[bool]],
        is_alive: Callable[[float], Awaitable[bool]],
        policy: RestartPolicy,
    ) -> None:
        self.name = name
        self.child: Child | None = None
        self.life = 0
        """The number of times that the process was started."""
        self.lasting = False
        """Whether all processes have been ready. From then on, the parent process restarts a child that ends."""
        self.died, self.hung = 0, 0
        """`died` counts the restarts after a child ended by itself. `hung` counts the restarts after the parent process
        killed a child that did not answer."""
        self._start = start
        self._is_ready = is_ready
        self.is_alive = is_alive
        self._policy = policy
        self._ready = False
        self._clock = asyncio.get_running_loop().time

    def everything_is_ready(self) -> None:
        """Record that all processes are ready for the first time."""
        self.lasting = self._ready = True

    async def keep(self) -> NoReturn:
        """Start a child, and restart it whenever it ends. Raises `GivenUp`, `NotStarted` or `ConfigError` to give
        up."""
        quick = 0
        while True:
            self._ready = False
            child = self.child = await self._start_it()
            self.life += 1
            began = self._clock()
            status, hung = await self._watch(child)
            quick = quick + 1 if self._clock() - began < self._policy.quick else 1
            if not self.lasting or quick >= self._policy.deaths:
                if not self.lasting and not hung and (reason := last_words(child.last_lines())):
                    raise ConfigError(reason) if status == WRONG_SETTINGS else NotStarted(reason)
                raise GivenUp(child, status, quick, hung)
            pause = min(self._policy.longest_pause, self._policy.first_pause * 2 ** (quick - 1))
            how = "did not answer and was killed" if hung else describe_status(status)
            _log.error("process_ended", name=self.name, pid=child.pid, how=how, again_in=pause)
            await asyncio.sleep(pause)
            self.hung, self.died = self.hung + hung, self.died + (not hung)

    async def _start_it(self) -> Child:
        """Start a child. If the start fails after all processes have been ready, retry without limit, because the other
        processes still serve."""
        while True:
            try:
                return await self._start()
            except OSError as error:
                # The start failed because the disk is full or too many processes run. A retry may succeed later.
                if not self.lasting:
                    raise
                pause = self._policy.longest_pause
                _log.error("process_not_started", name=self.name, cause=error.strerror or str(error), again_in=pause)
                await asyncio.sleep(pause)

    async def _watch(self, child: Child) -> tuple[int, bool]:
        """Wait until the child ends, and kill it if it hangs. Returns the exit status, and whether this method killed
        the child."""
        ended = asyncio.ensure_future(child.wait())
        last = self._clock() + self._policy.starting
        pause = self._policy.hung / (2 * _ASKS) or _LOOK_SECONDS
        hung, unanswered = False, 0
        try:
            while not hung:
                await asyncio.wait({ended}, timeout=pause)
                if ended.done():
                    return ended.result(), False
                if not self._ready:
                    self._ready = await self._is_ready()
                    hung = not self._ready and self.lasting and self._clock() > last
                elif self._policy.hung:
                    unanswered = 0 if await self.is_alive(pause) else unanswered + 1
                    hung = unanswered >= _ASKS
            child.kill()
            return await ended, True
        finally:
            ended.cancel()


def tell_first(failed: asyncio.Future[BaseException], task: asyncio.Task[NoReturn]) -> None:
    """Set the error that ended `task` as the result of `failed`, unless `failed` already has a result."""
    if task.cancelled():
        return
    # The exception is read in any case, because asyncio logs an unread exception with its traceback.
    error = task.exception()
    if not failed.done():
        failed.set_result(error or AssertionError("the task that restarts a process has ended"))


async def poll(check: Callable[[], Awaitable[bool]], what: str, seconds: float = START_SECONDS) -> None:
    """Repeat `check` until it returns True. Raises `AntiphonError` after `seconds`."""
    clock = asyncio.get_running_loop().time
    last = clock() + seconds
    while not await check():
        if clock() > last:
            raise AntiphonError(f"{what} did not get ready within {seconds:g} s; the log has the details")
        await asyncio.sleep(POLL_SECONDS)
