"""The values of one run of a background job.

Lives here: what a worker knows of a run, what its exchange asked for, and the finished response until it is written.
Not here: running it (`workers.py`), its stream (`job_stream.py`).

Invariant: nothing here speaks to a store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import Finish, ResponseRecord, SendHead
from antiphon.engine.ports.jobs import Job
from antiphon.engine.ports.state import DoorWatch, History
from antiphon.engine.running.runner import Runner
from antiphon.observability.observation import Telemetry
from antiphon.types.json import try_decode


class JobEnvironment(NamedTuple):
    """What responses are made with."""

    runner: Runner
    new_exchange: Callable[[], ResponseExchange]
    telemetry: Telemetry


class DoorGone(Exception):
    """The gateway's own part in the model call went away."""


class _NoDoor:
    """Model calls go to the model server directly: what breaks off is its doing."""

    async def gone(self, at: float) -> bool:
        return False


@asynccontextmanager
async def no_door() -> AsyncIterator[DoorWatch]:
    """Nothing to watch."""
    yield _NoDoor()


class _Error(msgspec.Struct):
    message: str = "The response failed."
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


@dataclass(eq=False)
class JobRun:
    """A job that runs here. `lost`: it is not this worker's any more; `ending`: its last unit is being written."""

    job: Job
    task: asyncio.Task[None] | None = None
    lost: bool = False
    ending: bool = False
    failure: Failure | None = None

    def lose(self) -> None:
        """Stop it, once: what it does to clean up after itself is not to be interrupted."""
        if not self.lost:
            self.lost = True
            if self.task is not None:
                self.task.cancel()


@dataclass
class Outcome:
    """What an exchange asked for that is neither an event nor stored yet."""

    head: SendHead | None = None
    body: list[bytes] = field(default_factory=list)
    finish: Finish | None = None


class DeferredHistory:
    """A `History` that keeps the finished response instead of writing it: its job's last unit does that.

    `on_save`: from now on what is sent is that unit's too.
    """

    def __init__(self, beneath: History, on_save: Callable[[], None]) -> None:
        self.load_chain = beneath.load_chain
        self.load_items = beneath.load_items
        self._on_save = on_save
        self.record: ResponseRecord | None = None

    async def save(self, record: ResponseRecord) -> None:
        self.record = record
        self._on_save()


def refusal(outcome: Outcome) -> _Error:
    """Why there was no model call, of an outcome with an error's body."""
    return (try_decode(_ERROR_BODY, b"".join(outcome.body)) or _ErrorBody()).error
