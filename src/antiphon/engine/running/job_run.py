"""Defines the values of one run of a background job.

Lives here: the worker's state of a run, the actions that its exchange requested, and the finished response until it is
written. Not here: running it (`workers.py`), its stream (`job_stream.py`).

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
    """The runner, the exchanges and the telemetry with which a worker makes responses."""

    runner: Runner
    new_exchange: Callable[[], ResponseExchange]
    telemetry: Telemetry


class DoorGone(Exception):
    """The gateway (Envoy) stopped during the model call."""


class _NoDoor:
    """The watch without a gateway: model calls go to the model server directly, so it causes every broken call."""

    async def gone(self, at: float) -> bool:
        return False


@asynccontextmanager
async def no_door() -> AsyncIterator[DoorWatch]:
    """A watch without a gateway."""
    yield _NoDoor()


class _Error(msgspec.Struct):
    message: str = "The response failed."
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


@dataclass(eq=False)
class JobRun:
    """A job that runs here. `lost`: the worker no longer holds it. `ending`: its final transaction is being written."""

    job: Job
    task: asyncio.Task[None] | None = None
    lost: bool = False
    ending: bool = False
    failure: Failure | None = None

    def lose(self) -> None:
        """Cancel the run, once only, so that its cleanup is not interrupted."""
        if not self.lost:
            self.lost = True
            if self.task is not None:
                self.task.cancel()


@dataclass
class Outcome:
    """The answer that an exchange sent apart from events: its head, its body and its end."""

    head: SendHead | None = None
    body: list[bytes] = field(default_factory=list)
    finish: Finish | None = None


class DeferredHistory:
    """A `History` that holds the finished response. The job's final transaction writes it.

    It calls `on_save` when it gets the response: later events belong to that transaction too.
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
    """The error in the body of an outcome without a model call."""
    return (try_decode(_ERROR_BODY, b"".join(outcome.body)) or _ErrorBody()).error
