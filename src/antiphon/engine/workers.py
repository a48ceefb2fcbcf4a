"""Running background responses: a bounded number at once, each to its end or to the end of its lease.

Lives here: claiming jobs, renewing leases, noticing that a job is over, and running one exchange for each. Not here:
how a response is made (`exchange.py`, `runner.py`), its stream (`job_stream.py`), cancelling one (`background.py`).

One task looks after everything: while jobs run it asks the store every `poll` seconds which of them are still this
worker's (one that was cancelled, deleted or taken over is not) and otherwise looks for new ones every `idle` seconds,
or at once when a response is queued in this process.

Invariants: a job runs here only while this worker holds it; a response ends with one unit that also ends its job, so
nothing half-done is ever seen; when the process is stopped, its jobs are given back or ended, as the setting says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import structlog

from antiphon.engine.actions import Finish, ResponseRecord, SendBody, SendHead
from antiphon.engine.background import Background, BackgroundOptions
from antiphon.engine.exchange import ResponseExchange
from antiphon.engine.job_stream import JobStream
from antiphon.engine.jobs import EventPiece, Job, JobRequest, JobStore
from antiphon.engine.patience import PatientUpstream
from antiphon.engine.runner import Runner
from antiphon.errors import ApiError, StoreError, Unavailable
from antiphon.ids import Clock
from antiphon.observability.metrics import Metrics

__all__ = ["Workers"]

_log = structlog.get_logger(__name__)

_REQUEST = msgspec.json.Decoder(JobRequest)
_FINISH_PAUSES = (0.1, 0.5, 2.0, 5.0)
_GIVE_UP_SECONDS = 5.0
_FULL_PAUSE = 1.0
_STOPPED = "The server that was running this response stopped before it was complete."


class _Error(msgspec.Struct):
    message: str = "The response failed."
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


@dataclass(eq=False)
class _Run:
    """A job that runs here. `lost`: it is not this worker's any more; `ending`: its last unit is being written."""

    job: Job
    task: asyncio.Task[None] | None = None
    lost: bool = False
    ending: bool = False

    def lose(self) -> None:
        self.lost = True
        if self.task is not None:
            self.task.cancel()


@dataclass
class _Outcome:
    """What an exchange asked for that is neither an event nor stored yet."""

    head: SendHead | None = None
    body: list[bytes] = field(default_factory=list)
    finish: Finish | None = None


class _Kept:
    """A response store that keeps the finished response instead of writing it: its job's last unit does that."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.record: ResponseRecord | None = None

    async def save(self, record: ResponseRecord) -> None:
        self.record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Workers:
    """The worker of one process; `name` tells it from those of all others, dead ones included.

    `admit` counts a running response like a request in flight, so that a process that drains waits for it.
    """

    def __init__(
        self,
        name: str,
        jobs: JobStore,
        background: Background,
        runner: Runner,
        new_exchange: Callable[[], ResponseExchange],
        options: BackgroundOptions,
        *,
        admit: Callable[[], AbstractContextManager[None]],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.name = name
        self._jobs = jobs
        self._background = background
        self._runner = runner
        self._new_exchange = new_exchange
        self._options = options
        self._admit = admit
        self._metrics = metrics
        self._clock = clock
        self._running: dict[str, _Run] = {}
        self._woken = asyncio.Event()
        self._claiming = True
        self._closing = False
        self._renew_at = 0.0
        self._claim_at = 0.0
        self._task: asyncio.Task[None] | None = None
        background.wake_workers = self.wake

    @property
    def running(self) -> frozenset[str]:
        """The responses that run here."""
        return frozenset(self._running)

    def start(self) -> None:
        """Begin to look for work; with no `workers` there is nothing to do."""
        if self._options.workers:
            self._task = asyncio.get_running_loop().create_task(self._look_after())

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    def retire(self) -> None:
        """Take no more jobs; those that run go on."""
        self._claiming = False

    async def aclose(self) -> None:
        """Stop: what runs is given back, or ended as failed, as the setting says."""
        self._claiming = False
        self._closing = True
        self._woken.set()
        if self._task is not None:
            await self._task
        while self._running:
            tasks = {run.task for run in self._running.values() if run.task is not None}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # Looking after jobs

    async def _look_after(self) -> None:
        while not self._closing:
            self._woken.clear()
            try:
                await self._look()
            except StoreError as error:
                _log.warning("jobs_not_read", error=str(error))
            except Exception:
                _log.error("worker_failed", exc_info=True)
            seconds = self._options.poll if self._running else self._options.idle
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _look(self) -> None:
        if self._running:
            held = await self._jobs.held(self.name)
            for response_id, run in list(self._running.items()):
                if response_id not in held and not run.ending:
                    run.lose()
            now = self._clock()
            if now >= self._renew_at:
                await self._jobs.renew(self.name, self.running, now + self._options.lease)
                self._renew_at = now + self._options.lease / 3
        free = self._options.workers - len(self._running)
        if self._claiming and free > 0 and asyncio.get_running_loop().time() >= self._claim_at:
            now = self._clock()
            for job in await self._jobs.claim(self.name, now, now + self._options.lease, free):
                run = self._running[job.response_id] = _Run(job)
                run.task = asyncio.get_running_loop().create_task(self._run(run))

    # Running one

    async def _run(self, run: _Run) -> None:
        job = run.job
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            with self._admit(), self._background.followers.written_here(job.response_id):
                outcome = await self._serve(run)
        except asyncio.CancelledError:
            if run.lost:
                with suppress(StoreError):
                    await self._jobs.unlock(job.response_id)
            else:
                await self._give_up(job)
        except Unavailable:
            # This process has its hands full. Somebody else may take it, or this one a little later.
            self._claim_at = asyncio.get_running_loop().time() + _FULL_PAUSE
            await self._give_back(job)
        except StoreError as error:
            # Its lease runs out, and somebody takes it up again.
            _log.error("response_not_ended", response_id=job.response_id, error=str(error))
            outcome = "error"
        except Exception as bug:
            _log.error("background_failed", response_id=job.response_id, error=type(bug).__name__, exc_info=True)
            outcome = "failed"
            with suppress(StoreError):
                await self._end(job, "server_error", "The server had an error while processing your request.")
        finally:
            del self._running[job.response_id]
            self._runner.forget(job.response_id)
            self._woken.set()
            seconds = time.perf_counter() - started
            self._metrics.response_finished(outcome, "background", seconds)
            _log.info(
                "response",
                response_id=job.response_id,
                door="background",
                outcome=outcome,
                attempt=job.attempts,
                milliseconds=round(seconds * 1000, 1),
            )

    async def _serve(self, run: _Run) -> str:
        """Run the exchange and end the response; its outcome."""
        job = run.job
        if job.attempts > 1 and (self._options.on_restart == "fail" or job.attempts > self._options.attempts):
            run.ending = True
            await self._end(job, "server_error", _STOPPED)
            return "failed"
        kept = _Kept(self._runner.store)
        runner = self._runner.over(cast(Any, kept), PatientUpstream(self._runner.upstream, self._options.patience))
        exchange = self._new_exchange()
        stream = JobStream(
            self._jobs,
            self.name,
            job,
            batch=self._options.batch,
            written=lambda: self._background.followers.changed(job.response_id),
            on_lost=run.lose,
        )
        try:
            asked = _REQUEST.decode(job.request)
            exchange.receive_job(asked, job.owner, job.response_id, job.last_event)
            outcome = await self._drive(runner, exchange, stream)
            run.ending = True
            rest = await stream.close()
        except BaseException:
            stream.abort()
            raise
        if kept.record is None:
            # Refused before the model was asked: what it continues is gone, or the settings have changed.
            error = _refusal(outcome)
            await self._end(job, error.code or "server_error", error.message)
            return "failed"
        if not await self._finish(kept.record, rest, restart=stream.restart):
            run.lost = True
            if job.response_id in await self._jobs.held(self.name):
                await self._end(job, "server_error", "The conversation is gone, or another response has taken it over.")
                return "failed"
            return "cancelled"
        return kept.record.status

    async def _drive(self, runner: Runner, exchange: ResponseExchange, stream: JobStream) -> _Outcome:
        outcome = _Outcome()
        async with aclosing(runner.drive(exchange)) as actions:
            async for action in actions:
                if isinstance(action, SendHead):
                    outcome.head = action
                elif isinstance(action, Finish):
                    outcome.finish = action
                elif outcome.head is not None and outcome.head.streamed:
                    await stream.add(action.data)
                elif isinstance(action, SendBody):
                    outcome.body.append(action.data)
        return outcome

    async def _finish(self, record: ResponseRecord, rest: EventPiece | None, *, restart: bool) -> bool:
        for pause in _FINISH_PAUSES:
            try:
                return await self._jobs.finish(self.name, record, rest, restart=restart)
            except StoreError as error:
                _log.warning("response_not_saved", response_id=record.id, error=str(error))
            await asyncio.sleep(pause)
        return await self._jobs.finish(self.name, record, rest, restart=restart)

    async def _end(self, job: Job, code: str, message: str) -> None:
        await self._background.end(job.owner, job.response_id, "failed", code=code, message=message, worker=self.name)

    async def _give_up(self, job: Job) -> None:
        """The process stops while the job runs."""
        if self._options.on_restart == "retry":
            await self._give_back(job)
            return
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                await self._end(job, "server_error", _STOPPED)
        except (StoreError, ApiError, TimeoutError) as error:
            # Its lease runs out all the same.
            _log.warning("job_not_ended", response_id=job.response_id, error=str(error))

    async def _give_back(self, job: Job) -> None:
        try:
            async with asyncio.timeout(_GIVE_UP_SECONDS):
                await self._jobs.release(self.name, job.response_id)
        except (StoreError, TimeoutError) as error:
            _log.warning("job_not_given_back", response_id=job.response_id, error=str(error))


def _refusal(outcome: _Outcome) -> _Error:
    try:
        return msgspec.json.decode(b"".join(outcome.body), type=_ErrorBody).error
    except msgspec.DecodeError:
        return _Error()
