"""When a process looks at what others do, and what it does with news: with a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from antiphon.engine.ports.jobs import News, Pace, Progress, Seen
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.signal_watcher import ClaimPace, SignalWatcher
from antiphon.engine.running.workers import Workers
from antiphon.errors import StoreError
from tests.support.fake_time import in_fake_time

_ASKING = Pace(0.05, 0.25, 1.0)


@dataclass
class Script:
    """`Signals` that note when they were asked what, and fail as often as they are told."""

    pace: Pace = _ASKING
    asked: list[tuple[float, tuple[str, ...], str | None]] = field(default_factory=list)
    failures: int = 0
    held: frozenset[str] = frozenset()
    hear: Callable[[News], None] = lambda news: None

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        self.asked.append((round(asyncio.get_running_loop().time(), 6), tuple(followed), worker))
        if self.failures:
            self.failures -= 1
            raise StoreError("locked")
        return Seen({name: Progress("in_progress", 3) for name in followed}, self.held)

    def tell_queued(self) -> None: ...

    def listen(self, hear: Callable[[News], None]) -> None:
        self.hear = hear

    @property
    def times(self) -> list[float]:
        return [at for at, _, _ in self.asked]


@dataclass
class Waits:
    """What one process follows and runs, and what it was told of it."""

    followed: list[str] = field(default_factory=list)
    running: frozenset[str] = frozenset()
    changes: list[str] = field(default_factory=list)
    looks: list[Mapping[str, Progress]] = field(default_factory=list)
    kept: list[tuple[set[str], set[str]]] = field(default_factory=list)
    jobs: int = 0


class Following(Followers):
    """The streams of these."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    def elsewhere(self) -> list[str]:
        return list(self._waits.followed)

    def changed(self, response_id: str) -> None:
        self._waits.changes.append(response_id)

    def seen(self, asked: Collection[str], progress: Mapping[str, Progress]) -> None:
        self._waits.looks.append(progress)


class Running(Workers):
    """The jobs of these."""

    def __init__(self, waits: Waits) -> None:
        self.name = "worker_1"
        self._waits = waits

    @property
    def running(self) -> frozenset[str]:
        return self._waits.running

    def keep(self, asked: Collection[str], held: Collection[str]) -> None:
        self._waits.kept.append((set(asked), set(held)))

    def heard_of_jobs(self) -> None:
        self._waits.jobs += 1


def signal_watcher(signals: Script, waits: Waits) -> SignalWatcher:
    made = SignalWatcher(signals)
    made.following, made.holding = Following(waits), Running(waits)
    made.start()
    return made


def test_one_question_for_all_that_is_waited_for_as_often_as_the_pace_says() -> None:
    async def scenario() -> None:
        signals, waits = Script(held=frozenset({"resp_r"})), Waits(["resp_a", "resp_b"], frozenset({"resp_r"}))
        signal_watcher(signals, waits).wake()
        await asyncio.sleep(0.12)
        assert signals.asked == [(at, ("resp_a", "resp_b"), "worker_1") for at in (0.0, 0.05, 0.1)]
        assert waits.looks[0]["resp_b"].last_event == 3 and waits.kept[0] == ({"resp_r"}, {"resp_r"})
        waits.running = frozenset()
        await asyncio.sleep(0.05)
        assert signals.asked[-1] == (0.15, ("resp_a", "resp_b"), None) and len(waits.kept) == 3
        waits.followed.clear()
        await asyncio.sleep(60)
        assert len(signals.asked) == 4, "nothing is waited for"

    in_fake_time(scenario())


def test_what_this_process_did_is_looked_at_at_once_and_what_others_did_not_more_often_than_bearable() -> None:
    async def scenario() -> None:
        signals, waits = Script(Pace(10.0, 1.0, 1.0)), Waits(["resp_a"], frozenset({"resp_r"}))
        watch = signal_watcher(signals, waits)
        watch.wake()
        await asyncio.sleep(0.01)
        watch.wake()
        await asyncio.sleep(0.01)
        assert signals.times == [0.0, 0.01]
        for _ in range(100):
            signals.hear(News(frozenset({"resp_r"})))
            watch.wake_soon()
            await asyncio.sleep(0.001)
        assert signals.times == [0.0, 0.01, 0.06, 0.11]
        await asyncio.sleep(30)
        assert signals.times == [0.0, 0.01, 0.06, 0.11, 0.16, 10.16, 20.16]

    in_fake_time(scenario())


@pytest.mark.parametrize(
    ("news", "changes", "jobs", "looks"),
    [
        (News(frozenset({"resp_a"})), ["resp_a"], 0, 0),
        (News(frozenset({"resp_other"})), ["resp_other"], 0, 0),
        (News(frozenset({"resp_r"})), ["resp_r"], 0, 1),
        (News(queued=True), [], 1, 0),
        (News(anything=True), [], 1, 1),
        (News(frozenset({"resp_r"}), queued=True, anything=True), ["resp_r"], 1, 1),
    ],
)
def test_who_is_woken_by_what_others_say(news: News, changes: list[str], jobs: int, looks: int) -> None:
    async def scenario() -> None:
        signals, waits = Script(Pace(10.0, 1.0, 1.0)), Waits(["resp_a"], frozenset({"resp_r"}))
        signal_watcher(signals, waits).wake()
        await asyncio.sleep(1)
        signals.hear(news)
        await asyncio.sleep(1)
        assert (waits.changes, waits.jobs, len(signals.asked) - 1) == (changes, jobs, looks)

    in_fake_time(scenario())


def test_a_store_that_fails_is_asked_less_and_less_often() -> None:
    async def scenario() -> None:
        signals, waits = Script(failures=6), Waits(["resp_a"])
        with capture_logs() as lines:
            signal_watcher(signals, waits).wake()
            await asyncio.sleep(3.85)
        gaps = [round(later - earlier, 6) for earlier, later in zip(signals.times, signals.times[1:], strict=False)]
        assert gaps[:8] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.05, 0.05]
        assert [line["event"] for line in lines] == ["progress_not_read", "progress_read_again"]
        assert lines[1]["failures"] == 6 and len(waits.looks) > 1

    in_fake_time(scenario())


def test_a_worker_asks_less_and_less_often_until_there_is_something() -> None:
    pace = ClaimPace(lambda: Pace(0.05, 0.25, 1.0), lambda: 0.5)
    now, gaps = 0.0, []
    for _ in range(6):
        pace.asks(now)
        gaps.append(pace.left(now))
        now += gaps[-1]
    assert gaps == pytest.approx([0.25, 0.375, 0.5625, 0.84375, 1.0, 1.0])
    pace.found()
    pace.asks(now)
    assert pace.left(now) == pytest.approx(0.25)
    pace.soon()
    assert pace.left(now) == 0
    pace.hold_off(now + 7)
    assert pace.left(now) == 7


@pytest.mark.parametrize("draw", [0.0, 0.7, 1.0])
def test_what_others_say_of_jobs_makes_nobody_ask_more_often_than_before(draw: float) -> None:
    pace = ClaimPace(lambda: Pace(2.0, 1.0, 4.0), lambda: draw)
    times: list[float] = []
    for tick in range(10_000):
        now = tick / 1000
        pace.heard(now)
        if not pace.left(now):
            pace.asks(now)
            times.append(now)
    assert len(times) == 40, "every quarter of a second, not for each of ten thousand notes"
    pace.asks(100.0)
    pace.heard(101.0)
    assert pace.left(101.0) == pytest.approx(0.03 * draw)
