"""Signals between processes: news about streams, jobs and the queue.

Lives here: the values and the port. Not here: who waits for what (`engine/running/signal_watcher.py`), when workers
ask for jobs (`engine/running/workers.py`), how a backend hears (`stores/`).

A store is asked again and again, as often as it says (`Pace`); one that is told by the others can be asked seldom.
What is heard is never more than a reason to look: news may come twice, late, for nothing, or not at all.

Invariant: whoever only looks at the pace that holds just now misses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from antiphon.engine.ports.jobs import Progress


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: between two looks at what is followed or held here (`look`), and between two claims of a worker with
    free places (`claim` at first, growing to `claim_most` while there is nothing)."""

    look: float
    claim: float
    claim_most: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One look: how far streams are (those that do not exist are left out), and which jobs the worker holds."""

    progress: Mapping[str, Progress]
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class News:
    """What another process says: these responses went on or are over, there are jobs for others. `anything`: some news
    may have been missed, or there is another pace from now on."""

    responses: frozenset[str] = frozenset()
    queued: bool = False
    anything: bool = False


class Signals(Protocol):
    """What others did, for one process."""

    @property
    def pace(self) -> Pace:
        """How often it must look by itself, just now."""

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """How far these streams are, and what this worker holds; one round trip. Whoever is followed is also told of,
        where the others tell. Raises `StoreError`."""

    def tell_queued(self) -> None:
        """There are jobs that this process does not take. Neither waits nor fails."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """From now on `hear` is called with news, in the event loop."""
