"""Workers over stores that fail, and processes that are full: what no client can bring about."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import BackgroundSettings
from antiphon.engine.exchange.budget import Budget
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import RequestHead, ResponseRecord, UpstreamRequest
from antiphon.engine.ports.jobs import EventPiece, Job, Pace
from antiphon.engine.running.background import Background
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.job_run import JobEnvironment, JobStream
from antiphon.engine.running.runner import Runner
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.engine.running.workers import Pauses, Workers
from antiphon.errors import AtCapacity, StoreError
from antiphon.ids import new_id
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.translation.events.encode import DONE
from antiphon.types.transport import Headers
from tests.support.exchanges import exchange_options
from tests.support.fake_time import fake_time
from tests.support.judge import check_stream, parse_sse
from tests.support.memory_jobs import MemoryJobStore
from tests.support.memory_signals import MemorySignals
from tests.support.memory_store import MemoryResponseStore
from tests.support.metrics import value_of
from tests.support.ports import make_ports
from tests.support.waiting import until

_TEXT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_FAST = Pace(0.005, 0.005, 0.005)
_BODY = b'{"model":"m","input":"hi","background":true,"stream":true}'


class Jobs(MemoryJobStore):
    """Fails as often as it is told."""

    def __init__(self, responses: MemoryResponseStore) -> None:
        super().__init__(responses, lambda: self.now)
        self.now = 1000.0
        self.failures: dict[str, int] = {}
        self.claims = 0
        self.looks = 0

    def _fail(self, name: str) -> None:
        if self.failures.get(name, 0) > 0:
            self.failures[name] -= 1
            raise StoreError("locked")

    async def claim(self, worker: str, seconds: float, limit: int, besides: Collection[str] = (), **able: Any) -> Any:
        self.claims += 1
        self._fail("claim")
        return await super().claim(worker, seconds, limit, besides, **able)

    async def held(self, worker: str) -> frozenset[str]:
        self.looks += 1
        self._fail("held")
        return await super().held(worker)

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        self._fail("renew")
        return await super().renew(worker, response_ids, seconds)

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        self._fail("append")
        return await super().append(worker, response_id, events, restart=restart)

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        self._fail("finish")
        return await super().finish(worker, record, events, restart=restart)


@dataclass
class Model:
    """An upstream that writes a text, waits for `gate`, and ends."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    lingers: bool = False
    status = 200
    headers: Headers = (("content-type", "text/event-stream"),)

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[Model]:
        self.calls += 1
        yield self

    async def body(self) -> AsyncIterator[bytes]:
        yield _TEXT
        await self.gate.wait()
        yield _END
        if self.lingers:
            await asyncio.Event().wait()

    async def aclose(self) -> None: ...


class Process:
    """Workers and all they need, in memory."""

    def __init__(self, admit: Any = None, bodies: Budget | None = None, pace: Pace = _FAST, **options: Any) -> None:
        self.responses = MemoryResponseStore()
        self.jobs = Jobs(self.responses)
        self.model = Model()
        self.signals = MemorySignals(self.jobs, pace)
        self.signal_watcher = SignalWatcher(self.signals)
        # Without the rules that settings have: leases here are short.
        self.settings = BackgroundSettings.model_construct(**{"workers": 4, "lease": 30.0, **options})
        followers = Followers(self.jobs, self.signal_watcher)
        self.background = Background(self.jobs, self.responses, followers, self.settings)
        self.metrics = metrics = Metrics()
        self.runner = Runner(
            make_ports(
                self.responses, self.model, timeouts=TimeoutSettings(), metrics=metrics, background=self.background
            )
        )
        self.workers = Workers(
            "worker_1",
            self.jobs,
            self.background,
            self.signal_watcher,
            JobEnvironment(self.runner, self.exchange, Telemetry(metrics)),
            self.settings,
            admit=admit or (lambda _: nullcontext()),
            bodies=bodies or Budget(1 << 20, "limits.bytes_in_flight"),
            batch=0.001,
        )

    @staticmethod
    def exchange() -> ResponseExchange:
        return ResponseExchange(exchange_options(), new_id, lambda: 5.0)

    async def queue(self) -> str:
        """A queued response, as a door leaves it behind; its id."""
        exchange = self.exchange()
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "o"), _BODY)
        action = exchange.next_action()
        assert action is not None
        await self.runner.perform(exchange, action)  # type: ignore[arg-type]
        return exchange.known.response_id

    def counted(self) -> dict[str, float]:
        """How many ended how."""
        ended: dict[str, float] = {}
        for family in text_string_to_metric_families(self.metrics.render().decode()):
            for one in family.samples:
                if one.name == "responses_total":
                    assert one.labels["door"] == "background"
                    outcome = one.labels["outcome"]
                    ended[outcome] = ended.get(outcome, 0) + one.value
        return ended

    async def stream(self, response_id: str) -> list[dict[str, Any]]:
        """Its whole stream."""
        async with asyncio.timeout(60):
            data = b"".join([part async for part in self.background.followers.follow("o", response_id)])
        assert data.endswith(DONE)
        return parse_sse(data)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    made = Process()
    made.workers.start()
    yield made
    await made.workers.aclose()


async def test_a_store_that_fails_now_and_then(process: Process) -> None:
    """Nothing is lost, nothing comes twice."""
    process.jobs.failures = {"claim": 2, "held": 2, "append": 2, "finish": 1}
    response_id = await process.queue()
    await until(lambda: not process.jobs.failures["append"])
    process.model.gate.set()
    events = await process.stream(response_id)
    assert check_stream(events)["status"] == "completed"
    assert process.model.calls == 1 and not any(process.jobs.failures.values())
    assert process.responses.records[response_id].status == "completed"


async def test_a_response_that_cannot_be_ended_is_taken_up_again(process: Process) -> None:
    process.workers.pauses = Pauses(finish=(0.001,))
    process.jobs.failures = {"finish": 2}
    process.model.gate.set()
    response_id = await process.queue()
    await until(lambda: not process.jobs.failures["finish"] and not process.workers.running)
    assert process.responses.records[response_id].status == "in_progress"
    process.jobs.now += process.settings.lease + 1
    events = await process.stream(response_id)
    assert events[-1]["type"] == "response.completed" and process.model.calls == 2


async def test_what_an_earlier_attempt_sent_goes_even_if_nothing_can_be_written_before_the_end(
    process: Process,
) -> None:
    response_id = await process.queue()
    await until(lambda: len(process.jobs.pieces[response_id]) > 1)
    process.jobs.now += 1000
    await process.jobs.claim("worker_2", 1000, 1)
    await until(lambda: not process.workers.running)
    process.jobs.failures = {"append": 1 << 30}
    process.model.gate.set()
    process.jobs.now += 3000
    await process.stream(response_id)
    events = await process.stream(response_id)
    assert [one["type"] for one in events].count("response.in_progress") == 1
    assert events[-1]["type"] == "response.completed" and len(process.jobs.pieces[response_id]) == 2


async def test_an_end_that_takes_its_time_is_no_lost_lease(process: Process) -> None:
    gate = asyncio.Event()
    finish = process.jobs.finish

    async def slow(*given: Any, **named: Any) -> bool:
        done = await finish(*given, **named)
        await gate.wait()
        return done

    process.jobs.finish = slow  # type: ignore[method-assign]
    process.model.gate.set()
    response_id = await process.queue()
    await until(lambda: process.responses.records[response_id].status == "completed")
    claims = process.jobs.claims
    await until(lambda: process.jobs.claims > claims + 2)
    assert process.workers.running == {response_id}
    gate.set()
    await until(lambda: not process.workers.running)


async def test_what_another_process_writes_is_noticed(process: Process) -> None:
    await process.workers.aclose()
    response_id = await process.queue()
    await process.jobs.claim("worker_2", 10, 1)
    stream = process.background.followers.follow("o", response_id)
    assert b"response.queued" in await anext(stream)
    for number in range(2, 5):
        waiting = asyncio.ensure_future(anext(stream))
        await until(lambda: process.signal_watcher.watching)
        data = b"event: x\ndata: %d\n\n" % number
        await process.jobs.append("worker_2", response_id, EventPiece(number, data))
        async with asyncio.timeout(30):
            assert await waiting == data
    await stream.aclose()


async def test_a_lease_is_renewed_while_the_job_runs() -> None:
    process = Process(lease=0.03)
    process.workers.start()
    response_id = await process.queue()
    await until(lambda: process.model.calls)
    process.jobs.failures = {"renew": 1}
    for _ in range(3):
        process.jobs.now += process.settings.lease * 0.9
        await until(lambda: process.jobs.jobs[response_id].until > process.jobs.now + process.settings.lease * 0.9)
    assert await process.jobs.claim("worker_2", 1, 1) == []
    process.model.gate.set()
    await process.stream(response_id)
    await process.workers.aclose()


async def test_a_worker_that_lost_its_lease_stops(process: Process) -> None:
    response_id = await process.queue()
    await until(lambda: process.model.calls)
    process.jobs.now += 1000
    (job,) = await process.jobs.claim("worker_2", 1000, 1)
    assert job.response_id == response_id
    await until(lambda: not process.workers.running)
    assert process.responses.records[response_id].status == "in_progress"
    assert process.jobs.jobs[response_id].worker == "worker_2"
    assert value_of(process.metrics.render().decode(), "antiphon_background_lost_total") == 1


async def test_a_response_that_was_cancelled_is_no_lost_lease(process: Process) -> None:
    response_id = await process.queue()
    await until(lambda: process.model.calls)
    await process.background.cancel("o", response_id)
    await until(lambda: not process.workers.running)
    assert value_of(process.metrics.render().decode(), "antiphon_background_lost_total") == 0


async def test_what_is_given_back_at_the_end_is_counted(process: Process) -> None:
    await process.queue()
    await until(lambda: process.model.calls)
    await process.workers.aclose()
    assert value_of(process.metrics.render().decode(), "antiphon_background_given_back_total") == 1
    assert value_of(process.metrics.render().decode(), "antiphon_background_attempts_total", kind="first") == 1


async def test_what_a_lost_run_does_to_clean_up_is_not_interrupted(process: Process) -> None:
    gate, ended = asyncio.Event(), []

    async def unlock(response_id: str) -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            ended.append("interrupted")
            raise
        ended.append("whole")

    process.jobs.unlock = unlock  # type: ignore[method-assign]
    response_id = await process.queue()
    await until(lambda: process.model.calls)
    await process.background.cancel("o", response_id)
    looks = process.jobs.looks
    await until(lambda: process.jobs.looks > looks + 3)
    assert process.workers.running == {response_id}
    gate.set()
    await until(lambda: not process.workers.running)
    assert ended == ["whole"]


@fake_time
async def test_a_process_that_is_full_gives_jobs_back() -> None:
    places = 0

    @contextmanager
    def admit() -> Iterator[None]:
        if not places:
            raise AtCapacity("full", "limits.concurrent_requests")
        yield

    def make(_: str) -> AbstractContextManager[None]:
        return admit()

    process = Process(admit=make, on_restart="fail")
    process.workers.start()
    response_id = await process.queue()
    await until(lambda: process.jobs.claims and not process.workers.running)
    job = process.jobs.jobs[response_id]
    assert (job.worker, job.attempts) == (None, 0)
    # It does not try again at once.
    claims = process.jobs.claims
    for _ in range(50):
        process.workers.wake()
        await asyncio.sleep(0)
    assert process.jobs.claims == claims
    places = 1
    process.model.gate.set()
    assert (await process.stream(response_id))[-1]["type"] == "response.completed"
    await process.workers.aclose()


async def test_a_bug_in_between_is_a_failed_response(process: Process) -> None:
    async def broken(*_: Any) -> AsyncIterator[bytes]:
        yield cast(bytes, "no bytes")

    process.model.body = broken  # type: ignore[method-assign]
    events = await process.stream(await process.queue())
    assert [one["type"] for one in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "server_error" and "bug" not in str(events[-1])


async def test_a_job_that_cannot_be_read_is_a_failed_response(process: Process) -> None:
    await process.workers.aclose()
    response_id = await process.queue()
    process.jobs.jobs[response_id].request = b"{"
    again = Workers(
        "worker_2",
        process.jobs,
        process.background,
        process.signal_watcher,
        JobEnvironment(process.runner, process.exchange, Telemetry(Metrics())),
        process.settings,
        admit=lambda _: nullcontext(),
        bodies=Budget(1 << 20, "limits.bytes_in_flight"),
        batch=0.001,
    )
    again.start()
    assert (await process.stream(response_id))[-1]["type"] == "response.failed"
    await again.aclose()


async def test_what_cannot_be_written_is_bounded_and_repeated_as_it_is() -> None:
    """Whoever makes more waits; a write that may have taken effect is not made part of a larger one."""
    event = b"data: 0123456789\n\n"
    tried: list[EventPiece] = []
    limit = added = 0

    class Failing(MemoryJobStore):
        async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
            nonlocal limit
            tried.append(events)
            limit = max(limit, len(events.data) + added - (events.last + 1) * len(event))
            if len(tried) < 50:
                raise StoreError("not now")
            return True

    jobs = Failing(MemoryResponseStore())
    job = Job("resp_1", "o", b"", b"", 1, -1)
    stream = JobStream(jobs, "w", job, batch=0.0, written=lambda: None, on_lost=lambda: None, ahead=100, retry=0.0)
    async with asyncio.timeout(60):
        for _ in range(100):
            added += len(event)
            await stream.add(event)
        rest = await stream.close()
    assert len(set(tried[:50])) == 1 and limit <= 2 * 100 + 2 * len(event)
    written = tried[49:] + ([rest] if rest is not None else [])
    assert b"".join(piece.data for piece in written) == event * 100 and written[-1].last == 99


async def test_the_end_of_a_stream_is_written_with_the_response_alone(process: Process) -> None:
    """Nobody reads of an end that is not stored."""
    ends: list[bytes] = []
    append = process.jobs.append

    async def noted(worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        ends.append(events.data)
        return await append(worker, response_id, events, restart=restart)

    process.jobs.append = noted  # type: ignore[method-assign]
    # The upstream's connection takes its time to end, while its answer is whole.
    process.model.lingers = True
    response_id = await process.queue()
    await until(lambda: ends)
    process.model.gate.set()
    assert (await process.stream(response_id))[-1]["type"] == "response.completed"
    assert not [data for data in ends if b"response.completed" in data]


async def test_a_stream_that_cannot_be_written_for_a_reason_nobody_knows() -> None:
    """Whoever has more of it is told, also one that waits for room just then."""
    gate = asyncio.Event()

    class Broken:
        async def append(self, *_: Any, **__: Any) -> bool:
            await gate.wait()
            raise RuntimeError("a bug")

    job = Job("resp_1", "o", b"{}", b"{}", 1, 1)
    stream = JobStream(cast(Any, Broken()), "w", job, batch=0.001, written=lambda: None, on_lost=lambda: None, ahead=1)
    await stream.add(b"event: a\ndata: 1\n\n")
    waiting = asyncio.ensure_future(stream.add(b"event: a\ndata: 2\n\n"))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    async with asyncio.timeout(30):
        await waiting
    with pytest.raises(RuntimeError):
        await stream.add(b"event: a\ndata: 3\n\n")


async def test_what_ran_is_counted(process: Process) -> None:
    process.model.gate.set()
    await process.stream(await process.queue())
    await until(lambda: not process.workers.running)
    counted = process.metrics.render().decode()
    assert value_of(counted, "responses_total", door="background", outcome="completed", fault="none") == 1


async def test_a_worker_that_has_nothing_to_do_ends_at_once() -> None:
    process = Process(pace=Pace(3600.0, 3600.0, 3600.0))
    # Longer than the test may take.
    process.workers.pauses = Pauses(stop=3600.0)
    process.workers.start()
    await until(lambda: process.jobs.claims > 0)
    async with asyncio.timeout(60):
        await process.workers.aclose()


async def test_a_worker_that_retired_takes_nothing(process: Process) -> None:
    process.workers.retire()
    response_id = await process.queue()
    claims = process.jobs.claims
    for _ in range(50):
        process.workers.wake()
        await asyncio.sleep(0)
    assert process.jobs.claims == claims and process.jobs.jobs[response_id].worker is None


async def test_followers_leave_nothing_behind(process: Process) -> None:
    response_id = await process.queue()
    followers = process.background.followers
    stream = followers.follow("o", response_id)
    assert b"response.created" in await anext(stream)
    assert followers.count
    await stream.aclose()
    process.model.gate.set()
    await until(lambda: not process.signal_watcher.watching)
    assert not followers.count
    assert [part async for part in followers.follow("stranger", response_id)] == []


# Every way in which a run ends without its response's end


async def _running(process: Process) -> str:
    """A response that is being made; its id."""
    response_id = await process.queue()
    await until(lambda: process.model.calls)
    return response_id


def _error(process: Process, response_id: str) -> Any:
    return json.loads(process.responses.records[response_id].body)["error"]


@pytest.mark.parametrize("on_restart", ["retry", "fail"])
async def test_a_process_that_stops_gives_its_jobs_back_or_ends_them(on_restart: str) -> None:
    process = Process(on_restart=on_restart)
    process.workers.start()
    response_id = await _running(process)
    async with asyncio.timeout(60):
        await asyncio.gather(process.workers.aclose(), process.workers.aclose())
    assert not process.workers.running
    if on_restart == "retry":
        job = process.jobs.jobs[response_id]
        assert (job.worker, job.attempts, job.until) == (None, 0, 0.0)
    else:
        assert response_id not in process.jobs.jobs
        error = _error(process, response_id)
        assert error["code"] == "server_error" and "stopped before it was complete" in error["message"]
    assert process.counted() == {"cancelled": 1}


@pytest.mark.parametrize("more", [0, 1], ids=["the last", "one too many"])
@pytest.mark.parametrize(("on_restart", "attempts", "allowed"), [("retry", 3, 3), ("retry", 1, 1), ("fail", 3, 1)])
async def test_a_response_is_run_as_often_as_is_allowed(
    on_restart: str, attempts: int, allowed: int, more: int
) -> None:
    process = Process(on_restart=on_restart, attempts=attempts)
    process.model.gate.set()
    response_id = await process.queue()
    process.jobs.jobs[response_id].attempts = allowed - 1 + more
    with capture_logs() as lines:
        process.workers.start()
        end = (await process.stream(response_id))[-1]["type"]
        await until(lambda: not process.workers.running)
    (line,) = [one for one in lines if one["event"] == "response"]
    assert line["attempt"] == allowed + more
    if more:
        assert end == "response.failed" and process.model.calls == 0
        assert "stopped before it was complete" in _error(process, response_id)["message"]
        assert (line["outcome"], line["operation"]) == ("failed", "restart")
    else:
        assert end == "response.completed" and process.model.calls == 1 and line["outcome"] == "completed"
    await process.workers.aclose()


async def test_a_response_whose_end_nobody_knew_of_has_ended(process: Process) -> None:
    finish, tries = process.jobs.finish, []

    async def unsure(*given: Any, **named: Any) -> bool:
        tries.append(done := await finish(*given, **named))
        if len(tries) == 1:
            raise StoreError("no answer", reason="unknown")
        return done

    process.jobs.finish = unsure  # type: ignore[method-assign]
    process.workers.pauses = Pauses(finish=(0.001, 0.001))
    process.model.gate.set()
    response_id = await process.queue()
    await until(lambda: process.counted() == {"completed": 1})
    assert tries == [True, False] and process.responses.records[response_id].status == "completed"


@pytest.mark.parametrize("how", ["certainly not written", "written by another"])
async def test_an_end_that_was_not_this_runs_is_none(process: Process, how: str) -> None:
    tries = 0

    async def lost(*_: Any, **__: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreError("no answer", reason="failed" if how == "certainly not written" else "unknown")
        return False

    process.jobs.finish = lost  # type: ignore[method-assign]
    process.workers.pauses = Pauses(finish=(0.001, 0.001))
    process.model.gate.set()
    response_id = await process.queue()
    # It is this worker's still, but its conversation is another's.
    await until(lambda: process.counted() == {"failed": 1})
    assert "another response uses it" in _error(process, response_id)["message"]


async def test_a_job_that_is_another_workers_by_its_end_is_left_to_that(process: Process) -> None:
    async def lost(*_: Any, **__: Any) -> bool:
        process.jobs.jobs[response_id].worker = "worker_2"
        return False

    process.jobs.finish = lost  # type: ignore[method-assign]
    response_id = await process.queue()
    process.model.gate.set()
    await until(lambda: process.counted() == {"cancelled": 1})
    assert process.responses.records[response_id].status == "in_progress"


async def test_an_owner_with_his_share_waits_and_others_go_on() -> None:
    has_his_share = True

    def admit(_: str) -> AbstractContextManager[None]:
        if has_his_share:
            raise AtCapacity("full", "limits.owner_requests", owner="alice")
        return nullcontext()

    process = Process(admit=admit)
    process.workers.start()
    response_id = await process.queue()
    await until(lambda: process.jobs.claims and not process.workers.running)
    job = process.jobs.jobs[response_id]
    assert (job.worker, job.attempts, job.until) == (None, 0, process.jobs.now + 1.0)
    assert process.counted() == {}, "it has not begun"
    has_his_share = False
    process.model.gate.set()
    assert (await process.stream(await process.queue()))[-1]["type"] == "response.completed"
    await process.workers.aclose()


async def test_with_its_hands_full_a_worker_claims_nothing() -> None:
    process = Process(workers=1)
    limits: list[int] = []
    claim = process.jobs.claim

    async def noted(worker: str, seconds: float, limit: int, besides: Collection[str] = (), **able: Any) -> Any:
        limits.append(limit)
        return await claim(worker, seconds, limit, besides, **able)

    process.jobs.claim = noted  # type: ignore[method-assign]
    process.workers.start()
    await _running(process)
    looks = process.jobs.looks
    await until(lambda: process.jobs.looks > looks + 2)
    assert set(limits) == {1} and limits.count(1) == process.jobs.claims
    claims = process.jobs.claims
    await until(lambda: process.jobs.looks > looks + 4)
    assert process.jobs.claims == claims
    await process.workers.aclose()


async def test_the_line_of_a_run_says_how_long_it_took(process: Process) -> None:
    began = time.perf_counter()
    process.model.gate.set()
    with capture_logs() as lines:
        response_id = await process.queue()
        await until(lambda: process.counted() == {"completed": 1})
    took = time.perf_counter() - began
    (line,) = [one for one in lines if one["event"] == "response"]
    assert (line["response_id"], line["door"], line["outcome"], line["attempt"]) == (
        response_id,
        "background",
        "completed",
        1,
    )
    assert 0 <= line["seconds"] <= took
    sums = [one for one in process.metrics.render().decode().splitlines() if "_seconds_sum" in one]
    assert sums and all(float(one.rpartition(" ")[2]) <= took for one in sums)
