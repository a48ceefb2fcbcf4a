"""Defines the values of one run of a background job.

Lives here: the worker's state of a run, the answer that the exchange sends, and the finished response until the store
has it. Not here: the code that runs a job (`workers.py`), the job's stream (`job_stream.py`).

Invariant: this module writes to no store.
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
    """The runner, the exchange factory and the telemetry that a worker needs to run jobs."""

    runner: Runner
    new_exchange: Callable[[], ResponseExchange]
    telemetry: Telemetry


class DoorGone(Exception):
    """The gateway (Envoy) stopped during the model call."""


class _NoDoor:
    """The `DoorWatch` without a gateway. Model calls go directly to the model server, so no gateway can break them."""

    async def gone(self, at: float) -> bool:
        return False


@asynccontextmanager
async def no_door() -> AsyncIterator[DoorWatch]:
    """Yield a `DoorWatch` for a process that calls model servers without a gateway."""
    yield _NoDoor()


class _Error(msgspec.Struct):
    message: str = "The response failed."
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


@dataclass(eq=False)
class JobRun:
    """A job that this process runs.

    `lost`: the worker no longer holds the job. `ending`: the worker is writing the job's final transaction.
    """

    job: Job
    task: asyncio.Task[None] | None = None
    lost: bool = False
    ending: bool = False
    failure: Failure | None = None

    def lose(self) -> None:
        """Cancel the run. Repeated calls do nothing, because a second cancellation would interrupt the cleanup."""
        if not self.lost:
            self.lost = True
            if self.task is not None:
                self.task.cancel()


@dataclass
class Outcome:
    """The HTTP answer that an exchange sent without events: its head, its body and its end."""

    head: SendHead | None = None
    body: list[bytes] = field(default_factory=list)
    finish: Finish | None = None


class DeferredHistory:
    """A `History` that holds the finished response in memory, because the job's final transaction writes the response.

    `save` calls `on_save`, because the job's final transaction also writes all later events.
    """

    def __init__(self, beneath: History, on_save: Callable[[], None]) -> None:
        self.load_chain = beneath.load_chain
        self.load_items = beneath.load_items
        self.load_compared = beneath.load_compared
        self._on_save = on_save
        self.record: ResponseRecord | None = None

    async def save(self, record: ResponseRecord) -> None:
        self.record = record
        self._on_save()


def refusal(outcome: Outcome) -> _Error:
    """Return the error in the outcome's body, or a default error when the body is not valid."""
    return (try_decode(_ERROR_BODY, b"".join(outcome.body)) or _ErrorBody()).error
