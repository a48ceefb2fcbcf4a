"""Restarts a child process that ends or hangs, with growing pauses.

This module decides when a child is dead or hangs, how long to wait before a restart, and when to stop restarting it.
`children.py` manages one child process, and `generation.py` has the list of processes.

Invariants: a child that does not answer is killed after at most `RestartPolicy.hung` seconds. The pause between two
starts doubles with every quick death. The parent stops restarting a child after `RestartPolicy.deaths` quick deaths in
a row. Until all processes have been ready once, the parent gives up at a child's first death. After that, if the
machine cannot start a child (for example, because of a full disk), the parent retries.
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
"""The number of consecutive unanswered health checks before a kill. One unanswered check is not enough, because the
machine may have paused."""
_LOOK_SECONDS = 5.0
WRONG_SETTINGS = 2
"""The exit status of a command whose settings are unusable (`entry.py`)."""


@dataclass(frozen=True)
class RestartPolicy:
    """The limits for restarts, in seconds except `deaths`. A child without an answer for `hung` seconds hangs; 0 turns
    health checks off. A child must be ready within `starting` seconds. If a child lives less than `quick` seconds, its
    end is a quick death. `deaths` quick deaths in a row are too many."""

    hung: float = 30.0
    starting: float = 60.0
    quick: float = 30.0
    deaths: int = 5
    first_pause: float = 0.25
    longest_pause: float = 10.0


class GivenUp(AntiphonError):
    """Raised when a child has ended or does not answer, and another start would not help."""

    def __init__(self, child: Child, status: int, deaths: int, hung: bool) -> None:
        self.name, self.deaths = child.name, deaths
        how = "did not answer (timeouts.hung) and was killed" if hung else describe_status(status)
        times = f" ({deaths} times in a row, soon after its start)" if deaths > 1 else ""
        # The log already contains the child's lines.
        look = "the log above has its last output" if child.last_lines() else "it printed nothing"
        if status == -signal.SIGKILL and not hung:
            look += "; Antiphon did not kill it. The kernel may have killed it because memory ran out: check "
            look += "dmesg, and the memory limit of the container"
        super().__init__(f"{child.name} {how}{times}; {look}. 'antiphon doctor' checks what the process needs")


class NotStarted(AntiphonError):
    """Raised when a child ended before all processes were ready and printed a reason."""


class Supervised:
    """One supervised process. `start` creates a child, `is_ready` returns whether the child serves, and `is_alive`
    returns whether the child answers within the given seconds."""

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
        """The number of starts, which identifies the present child."""
        self.lasting = False
        """Whether all processes were ready once. From that moment on, a child that ends is restarted."""
        self.died, self.hung = 0, 0
        """`died` counts the replacements of a child that ended by itself. `hung` counts the replacements of a child
        that did not answer and was killed."""
        self._start = start
        self._is_ready = is_ready
        self.is_alive = is_alive
        self._policy = policy
        self._ready = False
        self._clock = asyncio.get_running_loop().time

    def everything_is_ready(self) -> None:
        """Record that all processes, also this child, are ready for the first time. This method does not check the
        child's readiness again: a child that hangs from this moment on would never pass such a check."""
        self.lasting = self._ready = True

    async def keep(self) -> NoReturn:
        """Keep a child running. Raises `GivenUp`, `NotStarted` or `ConfigError` when another start would not help."""
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
        """Start a child. Once all processes were ready, `_start_it` retries for as long as needed, because the other
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
        """Wait for the child's end, and kill the child if it hangs. Returns the child's exit status and whether the
        child was killed for hanging."""
        ended = asyncio.ensure_future(child.wait())
        last = self._clock() + self._policy.starting
        pause = self._policy.hung / (2 * _ASKS) or _LOOK_SECONDS
        hung, unanswered = False, 0
        try:
            while True:
                await asyncio.wait({ended}, timeout=pause)
                if ended.done():
                    return ended.result(), hung
                if not self._ready:
                    self._ready = await self._is_ready()
                    hung = not self._ready and self.lasting and self._clock() > last
                elif self._policy.hung:
                    unanswered = 0 if await self.is_alive(pause) else unanswered + 1
                    hung = unanswered >= _ASKS
                if hung:
                    child.kill()
        finally:
            ended.cancel()


def tell_first(failed: asyncio.Future[BaseException], task: asyncio.Task[NoReturn]) -> None:
    """Complete `failed` with the error that ended the task, unless an earlier error has completed it."""
    if task.cancelled():
        return
    # The exception is read in any case, because asyncio logs an unread exception with its traceback.
    error = task.exception()
    if not failed.done():
        failed.set_result(error or AssertionError("the task that restarts a process has ended"))
