"""One timer for all units that are waited for."""

from __future__ import annotations

import asyncio
import time

from antiphon.stores.sqlite.units import Deadlines, Unit


class Told:
    """Deadlines, and the units that they told of, with the seconds until then."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = time.monotonic()
        self.over: list[tuple[Unit, float]] = []
        self.deadlines = Deadlines(self.loop, self._note)

    def _note(self, unit: Unit) -> None:
        self.over.append((unit, time.monotonic() - self.began))

    def unit(self, seconds: float) -> Unit:
        unit = Unit((), (), self.loop.create_future(), self.loop)
        self.deadlines.wait(unit, seconds)
        return unit


async def test_each_is_told_of_at_its_time_whoever_came_first() -> None:
    told = Told()
    late, soon, soon_too = told.unit(0.2), told.unit(0.05), told.unit(0.05)
    await asyncio.sleep(0.4)
    assert {unit for unit, _ in told.over[:2]} == {soon, soon_too}
    assert [unit for unit, _ in told.over[2:]] == [late]
    assert all(seconds >= least for (_, seconds), least in zip(told.over, (0.045, 0.045, 0.19), strict=True))


async def test_what_is_forgotten_is_not_told_of_and_the_others_are() -> None:
    told = Told()
    forgotten, other = told.unit(0.02), told.unit(0.06)
    told.deadlines.forget(forgotten)
    await asyncio.sleep(0.15)
    assert [unit for unit, _ in told.over] == [other]
    again = told.unit(0.02)
    await asyncio.sleep(0.1)
    assert [unit for unit, _ in told.over] == [other, again]


async def test_a_unit_may_be_waited_for_anew_when_it_is_told_of() -> None:
    told = Told()
    unit = told.unit(0.02)
    while not told.over:
        await asyncio.sleep(0.01)
    told.deadlines.wait(unit, 0.02)
    await asyncio.sleep(0.1)
    assert [each for each, _ in told.over] == [unit, unit]


async def test_nothing_is_told_of_when_it_is_closed() -> None:
    told = Told()
    told.unit(0.02)
    told.deadlines.close()
    await asyncio.sleep(0.06)
    assert told.over == []
