"""What waits to be stored on PostgreSQL: nobody is forgotten, nothing is stored twice, every outcome is true."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import pytest

from antiphon.errors import StoreError, StoreReason
from antiphon.stores.postgres.group_commit import GroupCommit, GroupLimits


@dataclass(frozen=True)
class Thing:
    id: str
    size: int = 1


def fails(reason: StoreReason) -> StoreError:
    return StoreError(reason, reason=reason)


@dataclass
class Scripted:
    """Units that follow a script: before each write one step is taken, an error is raised after what it did."""

    steps: list[Callable[[Sequence[Thing]], None]] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    unanswered: int = 0
    """How often nobody can be asked."""
    groups: list[list[str]] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    gate: asyncio.Event | None = None

    def store(self, group: Sequence[Thing]) -> list[str]:
        done = [each.id for each in group if each.id not in self.left_out and not self.kept[each.id]]
        self.kept.update(done)
        return done

    async def write(self, group: Sequence[Thing]) -> Collection[str]:
        self.groups.append([each.id for each in group])
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if self.steps:
            self.steps.pop(0)(group)
        return self.store(group)

    async def stored(self, group: Sequence[Thing]) -> Collection[str]:
        self.asked += 1
        if self.unanswered:
            self.unanswered -= 1
            raise fails("unavailable")
        return [each.id for each in group if self.kept[each.id]]

    async def explain(self, unit: Thing) -> Exception:
        return StoreError(f"{unit.id} cannot be stored")

    def withdraw(self, unit: Thing) -> None:
        self.withdrawn.append(unit.id)

    def lost(self, *, done: bool) -> Callable[[Sequence[Thing]], None]:
        """The connection is lost behind a statement that took effect, or not."""

        def step(group: Sequence[Thing]) -> None:
            if done:
                self.store(group)
            raise fails("unknown")

        return step


def refused(reason: StoreReason) -> Callable[[Sequence[Thing]], None]:
    def step(group: Sequence[Thing]) -> None:
        raise fails(reason)

    return step


@pytest.mark.parametrize("seed", range(20))
async def test_nobody_is_forgotten(seed: int) -> None:
    """Whoever comes while a writer ends, at whatever moment, is written."""
    random.seed(seed)
    units = Scripted()
    groups = GroupCommit(units, GroupLimits(group=random.choice((1, 2, 8)), writers=random.choice((1, 2, 3))))

    async def come(name: str) -> None:
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
        await groups.run(Thing(name))

    async with asyncio.timeout(20):
        for wave in range(20):
            await asyncio.gather(*[come(f"{wave} {n}") for n in range(random.randrange(1, 12))])
    assert set(units.kept.values()) == {1} and groups.waiting == 0
    await groups.aclose()


async def test_what_waits_goes_together() -> None:
    units = Scripted()
    groups = GroupCommit(units, GroupLimits(writers=1, group=3, group_bytes=10))
    sizes = (1, 1, 1, 9, 2, 50, 1)
    await asyncio.gather(*[groups.run(Thing(str(n), size)) for n, size in enumerate(sizes)])
    assert units.groups == [["0", "1", "2"], ["3"], ["4"], ["5"], ["6"]]


async def test_two_with_one_id_never_go_together() -> None:
    units = Scripted()
    groups = GroupCommit(units, GroupLimits(writers=1))
    results = await asyncio.gather(*[groups.run(Thing("a")) for _ in range(3)], return_exceptions=True)
    assert results.count(None) == 1 and units.kept == {"a": 1}


async def test_only_so_many_and_so_much_waits() -> None:
    units = Scripted(gate=asyncio.Event())
    groups = GroupCommit(units, GroupLimits(writers=1, group=1, waiting=2, waiting_bytes=10))
    running = [asyncio.ensure_future(groups.run(Thing("0")))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.append(asyncio.ensure_future(groups.run(Thing("1", 6))))
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="overloaded") as told:
        await groups.run(Thing("2", 5))
    assert told.value.reason == "busy"
    running.append(asyncio.ensure_future(groups.run(Thing("3", 4))))
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="overloaded"):
        await groups.run(Thing("4", 0))
    assert units.gate is not None
    units.gate.set()
    await asyncio.gather(*running)
    # All that was accepted is counted down again.
    await groups.run(Thing("5", 10))


async def test_closing_finishes_what_was_accepted() -> None:
    units = Scripted(gate=asyncio.Event())
    groups = GroupCommit(units, GroupLimits(writers=2, group=2))
    running = [asyncio.ensure_future(groups.run(Thing(str(n)))) for n in range(20)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(groups.aclose())
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="closed"):
        await groups.run(Thing("late"))
    assert units.gate is not None
    units.gate.set()
    await asyncio.gather(closing, *running)
    assert len(units.kept) == 20


async def test_what_does_not_begin_in_time_has_failed() -> None:
    units = Scripted(gate=asyncio.Event())
    groups = GroupCommit(units, GroupLimits(writers=1, group=1, seconds=0.01))
    first = asyncio.ensure_future(groups.run(Thing("first")))
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="did not begin") as told:
        await groups.run(Thing("second"))
    assert (told.value.reason, told.value.setting) == ("slow", "timeouts.save")
    assert units.gate is not None
    units.gate.set()
    await first
    await groups.aclose()
    assert units.kept == {"first": 1}


async def test_a_caller_that_leaves_takes_back_what_has_not_begun() -> None:
    units = Scripted(gate=asyncio.Event())
    groups = GroupCommit(units, GroupLimits(writers=1, group=1))
    running = [asyncio.ensure_future(groups.run(Thing(str(n)))) for n in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running[1].cancel()
    assert units.gate is not None
    units.gate.set()
    await asyncio.wait(running)
    assert running[1].cancelled() and units.kept == {"0": 1, "2": 1}


async def test_one_that_cannot_be_stored_fails_alone() -> None:
    units = Scripted(left_out={"bad"})
    groups = GroupCommit(units, GroupLimits(writers=1))
    results = await asyncio.gather(*[groups.run(Thing(name)) for name in ("a", "bad", "b")], return_exceptions=True)
    assert [str(result) for result in results] == ["None", "bad cannot be stored", "None"]
    assert len(units.groups) == 1 and units.withdrawn == []


async def test_a_value_that_fails_the_group_is_found_one_by_one() -> None:
    units = Scripted()

    def step(group: Sequence[Thing]) -> None:
        units.steps.append(step)
        if any(each.id == "bad" for each in group):
            raise fails("failed")

    units.steps = [step]
    groups = GroupCommit(units, GroupLimits(writers=1))
    results = await asyncio.gather(*[groups.run(Thing(name)) for name in ("a", "bad", "b")], return_exceptions=True)
    assert [str(result) for result in results] == ["None", "failed", "None"]
    assert units.kept == {"a": 1, "b": 1} and units.withdrawn == []


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("unanswered", [0, 2])
async def test_a_lost_statement_is_asked_for(done: bool, unanswered: int) -> None:
    units = Scripted(unanswered=unanswered)
    units.steps = [units.lost(done=done)]
    groups = GroupCommit(units, GroupLimits(writers=1))
    await asyncio.gather(groups.run(Thing("a")), groups.run(Thing("b")))
    assert units.kept == {"a": 1, "b": 1} and units.withdrawn == []
    assert len(units.groups) == (1 if done else 2)


async def test_a_lost_statement_that_takes_effect_beside_the_second_is_asked_for_again() -> None:
    units = Scripted()

    def finds_it_done(group: Sequence[Thing]) -> None:
        units.store(group)

    # Asked at once it is not there; the second statement waits for the first.
    units.steps = [units.lost(done=False), finds_it_done]
    groups = GroupCommit(units, GroupLimits(writers=1))
    await groups.run(Thing("a"))
    assert units.kept == {"a": 1} and units.asked == 2


async def test_what_stays_unknown_is_withdrawn() -> None:
    units = Scripted(unanswered=1000)
    units.steps = [units.lost(done=False)]
    groups = GroupCommit(units, GroupLimits(writers=1, seconds=5, settle_seconds=0.05))
    with pytest.raises(StoreError, match=r"timeouts\.settle") as told:
        await groups.run(Thing("a"))
    assert told.value.reason == "unknown" and units.withdrawn == ["a"]


async def test_so_is_what_is_refused_after_a_lost_statement() -> None:
    """It may be carried out yet, when what refused it is gone."""
    units = Scripted(left_out={"a"})
    units.steps = [units.lost(done=False)]
    groups = GroupCommit(units, GroupLimits(writers=1))
    with pytest.raises(StoreError, match="cannot be stored"):
        await groups.run(Thing("a"))
    assert units.withdrawn == ["a"]


async def test_a_group_that_the_server_does_not_survive_is_taken_apart() -> None:
    units = Scripted()

    def step(group: Sequence[Thing]) -> None:
        units.steps.append(step)
        if any(each.id == "bad" for each in group):
            raise fails("unknown")

    units.steps = [step]
    groups = GroupCommit(units, GroupLimits(writers=1, settle_seconds=0.3))
    results = await asyncio.gather(*[groups.run(Thing(name)) for name in ("a", "bad", "b")], return_exceptions=True)
    assert results[0] is None and results[2] is None and isinstance(results[1], StoreError)
    assert units.kept == {"a": 1, "b": 1} and units.withdrawn == ["bad"]


async def test_a_server_that_is_away_is_waited_for() -> None:
    units = Scripted(steps=[refused("unavailable")] * 3)
    groups = GroupCommit(units, GroupLimits(writers=1))
    await groups.run(Thing("a"))
    assert units.kept == {"a": 1} and len(units.groups) == 4
    units.steps = [refused("unavailable")]
    with pytest.raises(StoreError, match="unavailable") as told:
        await GroupCommit(units, GroupLimits(seconds=0)).run(Thing("b"))
    assert told.value.reason == "unavailable" and units.withdrawn == []


async def test_what_no_second_try_mends_fails_at_once() -> None:
    units = Scripted(steps=[refused("read_only")])
    with pytest.raises(StoreError, match="read_only"):
        await GroupCommit(units).run(Thing("a"))
    assert len(units.groups) == 1


async def test_a_mistake_of_the_program_leaves_nobody_waiting() -> None:
    def step(group: Sequence[Thing]) -> None:
        raise ZeroDivisionError

    units = Scripted(steps=[step])
    groups = GroupCommit(units, GroupLimits(writers=1))
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await groups.run(Thing("a"))
    await groups.run(Thing("b"))
