"""Restarts a child process that ends or hangs, with growing pauses.

Lives here: when a child counts as dead or hung, how long to wait before the next one, and when to give up. Not here:
one child's life (`children.py`), which processes there are (`commands/up.py`).

Invariants: a child that does not answer is killed after `RestartPolicy.hung` seconds at most; between two starts there
is a pause that doubles with every quick death; after `RestartPolicy.deaths` quick deaths in a row, or one before
everything was ready for the first time, it is given up. One that the machine cannot start (a full disk) is tried again.
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
"""How many questions in a row a child may leave unanswered: one may fall into a moment when the machine stood still."""
_LOOK_SECONDS = 5.0
WRONG_SETTINGS = 2
"""The exit status of a command whose settings cannot work (`cli.py`)."""


@dataclass(frozen=True)
class RestartPolicy:
    """`hung`: seconds without an answer (0: never asked); `starting`: seconds until a child must be ready. A life of
    less than `quick` seconds is a quick death, of which `deaths` in a row are too many."""

    hung: float = 30.0
    starting: float = 60.0
    quick: float = 30.0
    deaths: int = 5
    first_pause: float = 0.25
    longest_pause: float = 10.0


class GivenUp(AntiphonError):
    """A child ended (or hung), and starting another one is of no use."""

    def __init__(self, child: Child, status: int, deaths: int, hung: bool) -> None:
        self.name, self.deaths = child.name, deaths
        how = "did not answer (timeouts.hung) and was killed" if hung else describe_status(status)
        times = f" ({deaths} times in a row, soon after its start)" if deaths > 1 else ""
        # Its lines were forwarded as they came; they are not told twice.
        look = "what it wrote last is in the log above" if child.last_lines() else "it wrote nothing"
        if status == -signal.SIGKILL and not hung:
            look += "; nobody here killed it, so the kernel may have, for want of memory: look at the limit of its "
            look += "container, and at dmesg"
        super().__init__(f"{child.name} {how}{times}; {look}. 'antiphon doctor' checks what it needs")


class NotStarted(AntiphonError):
    """A child ended before everything was ready, and said why."""


class Supervised:
    """`start` makes a child; `is_ready` says whether it serves, `is_alive` whether it answers within these seconds."""

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
        """How often a child was started here: which one it is."""
        self.lasting = False
        """Everything was ready once: from now on what ends is started again."""
        self.died, self.hung = 0, 0
        """How often a child ended by itself, or was killed since it did not answer, and was replaced."""
        self._start = start
        self._is_ready = is_ready
        self.is_alive = is_alive
        self._policy = policy
        self._ready = False
        self._clock = asyncio.get_running_loop().time

    def everything_is_ready(self) -> None:
        """For the first time, and so is the child here: it need not be asked for its readiness once more, which a child
        that stands still from now on would never show."""
        self.lasting = self._ready = True

    async def keep(self) -> NoReturn:
        """Keep a child running. Raises `GivenUp`, `NotStarted`, `ConfigError`."""
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
        """A new child; once everything was ready, however long that takes: the others go on serving."""
        while True:
            try:
                return await self._start()
            except OSError as error:
                # The disk is full, or there are too many processes: nothing that giving up would mend.
                if not self.lasting:
                    raise
                pause = self._policy.longest_pause
                _log.error("process_not_started", name=self.name, cause=error.strerror or str(error), again_in=pause)
                await asyncio.sleep(pause)

    async def _watch(self, child: Child) -> tuple[int, bool]:
        """Wait for its end, or for it to hang, and kill it then; its status, and whether it was killed here."""
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
    """Set `failed` to the error that ended the task, if it is the first one."""
    if task.cancelled():
        return
    # Read the exception in any case: asyncio logs an exception that no code reads, with its traceback.
    error = task.exception()
    if not failed.done():
        failed.set_result(error or AssertionError("a process is no longer kept"))
