"""Defines the signals by which processes notify each other of new events, ended responses and queued jobs.

Lives here: the values and the port. Not here: the task that polls (`engine/running/signal_watcher.py`), when workers
claim jobs (`engine/running/workers.py`), how a store receives notifications (`stores/`).

A process polls the store at the rate that the store gives (`Pace`). A store that gets notifications from the other
processes allows slow polling. The only effect of a notification is an earlier poll. A notification may be duplicated,
late, spurious or lost.

Invariant: a process that only polls, at the current `Pace`, misses no event, job or end of a response.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.ports.jobs import Progress


@dataclass(frozen=True, slots=True)
class Pace:
    """The polling intervals of a process, in seconds.

    `look` is the time between two polls of the streams and jobs of this process. `claim` is the time between two claims
    of a worker with free slots. The time between claims grows to `claim_most` while there are no jobs.
    """

    look: float
    claim: float
    claim_most: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one poll: the progress of the streams that exist, and the ids of the jobs that the worker holds."""

    progress: Mapping[str, Progress]
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class News:
    """A notification from another process: these responses have new events or have ended, or jobs are queued.

    `anything` is true when notifications may be lost, or when the polling rate (`Pace`) has changed.
    """

    responses: frozenset[str] = frozenset()
    queued: bool = False
    anything: bool = False


class Signals(Protocol):
    """Sends and receives one process's signals."""

    @property
    def pace(self) -> Pace:
        """The intervals at which this process must poll the store at present."""

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """Poll the progress of these streams and the jobs that this worker holds, in one round trip.

        Where the store has notifications, it also subscribes to the followed responses. Raises `StoreError`.
        """

    def tell_queued(self) -> None:
        """Notify other processes of queued jobs that this process does not claim. The call never fails or blocks."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """Register `hear`. The event loop calls `hear` with each later notification."""
