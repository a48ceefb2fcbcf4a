"""Runs background responses: claims jobs, renews their leases, and runs a bounded number of jobs concurrently.

This module claims jobs, renews leases, detects lost jobs, and runs one exchange for each job. Not here: driving the
exchange (`runner.py`), its stream (`job_run.py`), its cancellation (`background.py`), the schedule of the claims
(`signal_watcher.py`). One task renews leases and claims jobs. The signal watcher reports that a job was cancelled,
deleted or taken over.

Invariants: A worker runs a job only while the worker holds the job's lease. One transaction ends both the response and
its job. A process that stops releases its jobs or ends them as failed (setting `background.on_restart`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, suppress
from dataclasses import dataclass

import msgspec
import structlog

from antiphon.config.state import BackgroundSettings
from antiphon.engine.exchange.budget import Budget, Hold
from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.exchange.running_tools import LEFT_BEHIND
from antiphon.engine.ports.actions import Finish, ResponseRecord, SendBody, SendHead
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.jobs import EventPiece, Job, JobRequest, is_over
from antiphon.engine.ports.state import DoorWatch
from antiphon.engine.running.background import Background
from antiphon.engine.running.job_run import (
    DeferredHistory,
    DoorGone,
    JobEnvironment,
    JobOutcome,
    JobRun,
    JobStream,
    PatientUpstream,
    no_door,
    refusal,
)
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.signal_watcher import ClaimPace, SignalWatcher
from antiphon.errors import ApiError, AtCapacity, StoreError, Unavailable
from antiphon.observability.observation import Observation
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.jobs import JobStore

_log = structlog.get_logger(__name__)

_REQUEST = msgspec.json.Decoder(JobRequest)
_TAKEN_OVER = "The conversation was deleted, or another response uses it now. Send the request again."
_STOPPED = "The server that was running this response stopped before it was complete."


@dataclass(frozen=True, slots=True)
class Pauses:
    """Pauses of a worker, in seconds.

    `full`: the pause before the retry of a job that exceeded a capacity limit. `door`: the first pause before a retry
    after Envoy was down. Each later pause is four times as long as the one before. `finish`: the pauses before the
    retries of the write that ends a response. `stop`: the timeout for store calls of a stopping worker.
    """

    full: float = 1.0
    door: float = 1.0
    finish: tuple[float, ...] = (0.1, 0.5, 2.0, 5.0)
    stop: float = 5.0


class Workers:
    """The worker of one process. `name` is unique among all workers, including dead workers.

    `admit` counts a running response as a request in flight of its owner, so that a draining process waits for it. Each
    running job reserves memory for its request in the budget `bodies`.
    """

    def __init__(
        self,
        name: str,
        jobs: JobStore,
        background: Background,
        signal_watcher: SignalWatcher,
        environment: JobEnvironment,
        settings: BackgroundSettings,
        *,
        admit: Callable[[str], AbstractContextManager[None]],
        bodies: Budget,
        watch_door: Callable[[], AbstractAsyncContextManager[DoorWatch]] | None = None,
        batch: float = 0.05,
        able: Collection[str] | None = None,
    ) -> None:
        """`watch_door`: watches the gateway when model calls go through Envoy. `batch`: seconds between writes of a
        response's events. `able`: the names of the features that this process supports (`able_to`). The worker claims
        only jobs that need no other features. If `able` is None, the worker claims all jobs."""
        self.name = name
        self._jobs = jobs
        self._background = background
        self._environment = environment
        self._settings = settings
        self._batch = batch
        self._admit = admit
        self._bodies = bodies
        self._metrics = environment.telemetry.metrics
        self._watch_door = watch_door or no_door
        self._able = able
        self.pauses = Pauses()
        self._running: dict[str, JobRun] = {}
        self._woken = asyncio.Event()
        self._claiming = True
        self._closing = False
        self._renew_at = 0.0
        self._signals = signal_watcher.signals
        self._claims = ClaimPace(lambda: self._signals.pace)
        self._offered: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "jobs_not_read", "jobs_read_again")
        self._signal_watcher = signal_watcher
        signal_watcher.holding = self
        background.wake_workers = self.wake
        background.offer_job = self.offer

    @property
    def running(self) -> frozenset[str]:
        """The ids of the responses that this worker runs."""
        return frozenset(self._running)

    def start(self) -> None:
        """Start the task that claims jobs. Does nothing if the setting `workers` is 0."""
        if self._settings.workers:
            self._task = asyncio.get_running_loop().create_task(self._look_after())

    def wake(self) -> None:
        """Claim jobs and check the running jobs immediately, because this process has ended a response."""
        self._claims.soon()
        self._woken.set()
        if self._running:
            self._signal_watcher.wake()

    def offer(self, response_id: str) -> None:
        """Try to claim a job that this process queued. If that fails, notify the workers of other processes."""
        if self._task is None or not self._claiming:
            self._signals.tell_queued()
            return
        self._offered.add(response_id)
        self._claims.soon()
        self._woken.set()

    def heard_of_jobs(self) -> None:
        """Claim jobs after a short random delay, because another process has put jobs in the queue."""
        self._claims.heard(asyncio.get_running_loop().time())
        self._woken.set()

    def keep(self, asked: Collection[str], held: Collection[str]) -> None:
        """Stop each response in `asked` that is not in `held`, because this worker no longer holds the lease of the
        response's job. A response whose end is being written continues."""
        for response_id in asked:
            if response_id not in held and (lost := self._running.get(response_id)) is not None and not lost.ending:
                lost.lose()

    def retire(self) -> None:
        """Claim no more jobs. Running jobs continue."""
        self._claiming = False

    async def aclose(self) -> None:
        """Stop the worker. Release the worker's running jobs or end them as failed, depending on the setting
        `background.on_restart`.

        A second call waits for the end of the first call.
        """
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._stop())
        await asyncio.shield(self._ending)

    async def _stop(self) -> None:
        self._claiming = False
        self._closing = True
        self._woken.set()
        if self._task is not None:
            await self._end_tasks({self._task}, self.pauses.stop)
        tasks = {run.task for run in self._running.values() if run.task is not None}
        for task in tasks:
            task.cancel()
        await self._end_tasks(tasks, 2 * self.pauses.stop)

    async def _end_tasks(self, tasks: set[asyncio.Task[None]], seconds: float) -> None:
        """Wait for these tasks with a timeout, because a store that hangs must not keep the process alive."""
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            # The leases of the unfinished jobs expire, and other workers claim these jobs.
            _log.error("worker_not_stopped", tasks=len(late), responses=sorted(self._running))

    # Renewing leases and claiming jobs

    async def _look_after(self) -> None:
        while not self._closing:
            self._woken.clear()
            try:
                if await self._look():
                    self._outage.recovered()
            except StoreError as error:
                self._outage.failed(error=str(error))
            except Exception:
                _log.error("worker_failed", exc_info=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds_left()):
                    await self._woken.wait()

    def _free(self) -> int:
        return self._settings.workers - len(self._running) if self._claiming else 0

    def _seconds_left(self) -> float | None:
        """Seconds until the next renewal or claim. The result is None if neither is scheduled."""
        now = asyncio.get_running_loop().time()
        renewal = [max(0.0, self._renew_at - now)] if self._running else []
        claim = [self._claims.left(now)] if self._free() > 0 else []
        return min((*renewal, *claim), default=None)

    async def _look(self) -> bool:
        """Renew leases and claim jobs, if either is due. Returns whether the worker used the store. Raises
        `StoreError`."""
        loop, lease = asyncio.get_running_loop(), self._settings.lease
        # Renew before claiming, because the renewal also returns the jobs that this worker still holds.
        was_asked = False
        if (asked := self.running) and (now := loop.time()) >= self._renew_at:
            self._renew_at = now + lease / 20
            self.keep(asked, await self._jobs.renew(self.name, asked, lease))
            self._renew_at = now + lease / 3
            was_asked = True
        offered, self._offered = self._offered, set()
        try:
            if (free := self._free()) > 0 and not self._claims.left(loop.time()):
                await self._claim(free)
                was_asked = True
        finally:
            if not offered <= self._running.keys():
                self._signals.tell_queued()
        return was_asked

    async def _claim(self, free: int) -> None:
        loop, lease = asyncio.get_running_loop(), self._settings.lease
        self._claims.asks(loop.time())
        # Do not claim a job that this process still runs, even if its lease was lost. The old run must end first.
        jobs = await self._jobs.claim(self.name, lease, free, self.running, able=self._able)
        if not jobs:
            return
        if not self._running:
            self._renew_at = loop.time() + lease / 3
        self._claims.found()
        for job in jobs:
            run = self._running[job.response_id] = JobRun(job)
            run.task = loop.create_task(self._run(run))
        self._signal_watcher.wake_soon()

    # Running one job

    async def _run(self, run: JobRun) -> None:
        environment, job = self._environment, run.job
        exchange = environment.new_exchange()
        observed = environment.telemetry.observe("background", "", Caller(job.owner), None)
        observed.watch(exchange)
        self._metrics.attempts.add("first" if job.attempts <= 1 else "again")
        outcome = "cancelled"
        try:
            with (
                self._admit(job.owner),
                self._bodies.hold(job.owner) as hold,
                self._background.followers.written_here(job.response_id),
            ):
                hold.add(len(job.request))
                outcome = await self._serve(environment, run, exchange, observed, hold)
        except asyncio.CancelledError:
            exchange.break_off()
            if run.lost:
                with suppress(StoreError):
                    await self._jobs.unlock(job.response_id)
                    await self._note_lost(job)
            else:
                await self._give_up(job)
        except DoorGone:
            # Envoy was down, but the model server may be healthy. So retry after Envoy has had time to restart.
            pause = self.pauses.door * 4 ** (job.attempts - 1)
            _log.warning("model_door_gone", response_id=job.response_id, attempt=job.attempts, retry_seconds=pause)
            outcome = "given_back"
            self._metrics.given_back.add()
            await self._give_back(job, pause=pause, attempted=True)
        except (Unavailable, AtCapacity) as full:
            # The job has not begun, so the worker records no outcome. The job returns to the queue and frees its
            # memory.
            outcome = ""
            if isinstance(full, AtCapacity) and full.owner:
                # The owner has reached its limit. Jobs of other owners continue.
                await self._give_back(job, pause=self.pauses.full)
            else:
                # This process has reached its limit. Another process may claim the job.
                self._claims.hold_off(asyncio.get_running_loop().time() + self.pauses.full)
                await self._give_back(job)
        except StoreError as error:
            # The job's lease expires, and a worker claims the job again.
            exchange.break_off()
            _log.error("response_not_ended", response_id=job.response_id, error=str(error))
            outcome = "error"
        except Exception as bug:
            _log.error("background_failed", response_id=job.response_id, error=type(bug).__name__, exc_info=True)
            outcome = "failed"
            with suppress(StoreError):
                await self._end(job, "server_error", "The server had an error while processing your request.")
        finally:
            del self._running[job.response_id]
            environment.runner.forget(job.response_id)
            self._claims.soon()
            self._woken.set()
            if outcome:
                failure = run.failure if outcome == "failed" else None
                observed.end(exchange, outcome, failure, response_id=job.response_id, attempt=job.attempts)
            else:
                observed.drop()

    async def _serve(
        self, environment: JobEnvironment, run: JobRun, exchange: ResponseExchange, observed: Observation, hold: Hold
    ) -> str:
        """Run the exchange, end the response, and return its outcome. Raises `AtCapacity` if no memory is free."""
        job = run.job
        stopped = ""
        if not self._may_begin(job.attempts):
            stopped = _STOPPED
        elif job.attempts > 1 and await self._background.claimed_items(job.owner, job.response_id) is not None:
            stopped = LEFT_BEHIND
        if stopped:
            run.ending = True
            run.failure = Failure("ours", stopped, code="server_error", operation="restart")
            await self._end(job, "server_error", stopped)
            return "failed"
        stream = JobStream(
            self._jobs,
            self.name,
            job,
            batch=self._batch,
            written=lambda: self._background.followers.changed(job.response_id),
            on_lost=run.lose,
        )
        kept = DeferredHistory(environment.runner.ports.store, stream.hold_back)
        upstream = PatientUpstream(
            environment.runner.ports.upstream,
            self._settings.patience,
            self._metrics,
            response_id=job.response_id,
            retried=observed.call_retried,
        )
        runner = environment.runner.over(kept, upstream, keeps_locks=True)
        exchange.hold = hold
        try:
            asked = _REQUEST.decode(job.request)
            headers = tuple((name, value) for name, value in asked.headers)
            observed.begin_job(asked, headers, job.attempts)
            exchange.receive_job(asked, job.owner, job.response_id, job.last_event)
            async with self._watch_door() as door:
                outcome = await self._drive(runner, exchange, stream)
                if kept.record is None and hold.refusal is not None:
                    # The memory budget had no space for the objects of the request. The exchange has emitted nothing.
                    raise hold.refusal
                failed_at = upstream.failed_at if kept.record is None or kept.record.status == "failed" else None
                if failed_at is not None and self._may_begin(job.attempts + 1) and await door.gone(failed_at):
                    raise DoorGone
            run.ending = True
            rest = await stream.close()
        except BaseException:
            stream.abort()
            raise
        run.failure = exchange.known.failure
        if kept.record is None:
            # The request was refused before the model call, for example because the previous response was deleted.
            error = refusal(outcome)
            await self._end(job, error.code or "server_error", error.message)
            return "failed"
        if not await self._finish(kept.record, rest, restart=stream.restart):
            run.lost = True
            if job.response_id in await self._jobs.held(self.name):
                run.failure = Failure("ours", _TAKEN_OVER, code="server_error", operation="save")
                await self._end(job, "server_error", _TAKEN_OVER)
                return "failed"
            await self._note_lost(job)
            return "cancelled"
        return kept.record.status

    def _may_begin(self, attempt: int) -> bool:
        """Whether the settings allow attempt number `attempt` of a response."""
        return attempt <= 1 or (self._settings.on_restart == "retry" and attempt <= self._settings.attempts)

    async def _drive(self, runner: Runner, exchange: ResponseExchange, stream: JobStream) -> JobOutcome:
        outcome = JobOutcome()
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
        unknown = False
        for pause in self.pauses.finish:
            try:
                return await self._jobs.finish(self.name, record, rest, restart=restart) or (
                    unknown and await self._is_finished(record)
                )
            except StoreError as error:
                unknown = unknown or error.reason == "unknown"
                _log.warning("response_not_saved", response_id=record.id, error=str(error))
            await asyncio.sleep(pause)
        return await self._jobs.finish(self.name, record, rest, restart=restart)

    async def _is_finished(self, record: ResponseRecord) -> bool:
        """Whether an earlier write with an unknown outcome has ended the response."""
        found = await self._environment.runner.ports.store.get(record.owner, record.id)
        return found is not None and found.body == record.body

    async def _end(self, job: Job, code: str, message: str) -> None:
        await self._background.end(job.owner, job.response_id, "failed", code=code, message=message, worker=self.name)

    async def _give_up(self, job: Job) -> None:
        """Release the job or end it as failed, because the process stops."""
        try:
            async with asyncio.timeout(self.pauses.stop):
                called = await self._background.claimed_items(job.owner, job.response_id) is not None
                if not called and self._settings.on_restart == "retry":
                    self._metrics.given_back.add()
                    await self._give_back(job)
                else:
                    await self._end(job, "server_error", LEFT_BEHIND if called else _STOPPED)
        except (StoreError, ApiError, TimeoutError) as error:
            # The job's lease expires in any case.
            _log.warning("job_not_ended", response_id=job.response_id, error=str(error))

    async def _note_lost(self, job: Job) -> None:
        """Count a job that another worker has taken over, but not a job whose response is cancelled or ended."""
        now = (await self._jobs.progress((job.response_id,))).get(job.response_id)
        if now is not None and not is_over(now.status):
            self._metrics.lost.add()

    async def _give_back(self, job: Job, *, pause: float = 0.0, attempted: bool = False) -> None:
        try:
            async with asyncio.timeout(self.pauses.stop):
                await self._jobs.release(self.name, job.response_id, pause=pause, attempted=attempted)
            if not pause:
                self._signals.tell_queued()
        except (StoreError, TimeoutError) as error:
            _log.warning("job_not_given_back", response_id=job.response_id, error=str(error))
