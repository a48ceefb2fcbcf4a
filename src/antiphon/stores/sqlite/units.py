"""Units of writes, and the transaction that runs a group of them.

Lives here: what is known of a unit, how long one is waited for, running its steps, and the steps of units that are
alike as one. Not here: the transaction and its thread (`writer.py`), what steps are (`statements.py`).

For each statement that runs, Python's sqlite3 gives up the interpreter several times, and gets it back from a busy
event loop by way of the kernel. So rows that several units add to the same table are added by one statement. It
succeeds for all of them or fails for all of them; which unit it was is found out by running them apart.

Invariant: what a group does together is what its units do one after the other, in some order, unless that fails. Nobody
hears of one before all are committed, so their order is nobody's business.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

from antiphon.errors import StoreError
from antiphon.stores.sqlite.statements import Insertion, Rows, Step
from antiphon.stores.tables import Counts, RowsMissing

Undo = Sequence[Step] | Callable[[], Sequence[Step]]
Answer = tuple[asyncio.Future[Any], Any, StoreError | None]

# Each number of rows is a statement of its own, which is kept prepared: any number up to the first, or one of these.
_FEW: Final = 8
_MANY: Final = (32, 16)


class Unit:
    """Steps that happen all or not at all, and who waits for that.

    The flags are guarded by the writer's lock. `withdrawn`: must not take effect. `committing`: cannot be taken back
    any more. `committed`: took effect. `over`: its outcome is known. `forsaken`: its caller was told that nobody knows.
    """

    def __init__(
        self, steps: Sequence[Step], undo: Undo, future: asyncio.Future[Counts], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.steps = steps
        self.undo = undo
        self.future = future
        self.loop = loop
        self.due = 0.0
        self.late = False
        self.result: Counts = ()
        self.error: StoreError | None = None
        self.withdrawn = False
        self.committing = False
        self.committed = False
        self.over = False
        self.forsaken = False


class Deadlines:
    """What a writer has of one event loop: calls `over` with each unit whose time is over, once for each time that it
    is waited for, unless it is forgotten before.

    A timer for each unit would be made and cancelled with every write. This one looks, when it runs out, whose time is
    over, and goes on for the rest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[Unit], None]) -> None:
        self.loop = loop
        self.releasing = False
        """Whether what came of this turn of the loop will be let go at its end."""
        self._over = over
        self._waiting: set[Unit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def wait(self, unit: Unit, seconds: float) -> None:
        """From now on for so long."""
        unit.due = self.loop.time() + seconds
        self._waiting.add(unit)
        self._ring_by(unit.due)

    def forget(self, unit: Unit) -> None:
        """It is waited for no longer."""
        self._waiting.discard(unit)

    def close(self) -> None:
        """Nothing is told any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring_by(self, when: float) -> None:
        if self._timer is not None:
            if self._rings_at <= when:
                return
            self._timer.cancel()
        self._rings_at = when
        self._timer = self.loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        for unit in [unit for unit in self._waiting if unit.due <= now]:
            self._waiting.discard(unit)
            self._over(unit)
        if self._waiting:
            self._ring_by(min(unit.due for unit in self._waiting))


def run_steps(connection: sqlite3.Connection, steps: Sequence[Step]) -> Counts:
    """Run them in their order. Raises `RowsMissing` and `sqlite3.Error`; the caller's transaction undoes them then."""
    return tuple([_run(connection, step) for step in steps])


def run_together(connection: sqlite3.Connection, units: Sequence[Unit]) -> bool:
    """Run them all; False when one failed, and the transaction is to be rolled back."""
    try:
        for alike in _bunches(units):
            if len(alike) == 1:
                alike[0].result = run_steps(connection, alike[0].steps)
            else:
                _run_alike(connection, alike)
    except Exception:
        if not connection.in_transaction:
            # A full disk or an I/O error has ended it: there is no use in another try.
            raise
        return False
    return True


def answers_of(group: Sequence[Unit], error: StoreError | None) -> dict[asyncio.AbstractEventLoop, list[Answer]]:
    """What is to be told to whom: one wake-up per event loop and group, not one per unit."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for unit in group:
        failure = unit.error if error is None else error.again()
        answers = by_loop.get(unit.loop)
        if answers is None:
            answers = by_loop[unit.loop] = []
        answers.append((unit.future, unit.result, failure))
    return by_loop


def settle(answers: Sequence[Answer]) -> None:
    """In the event loop: hand results over; a future whose caller left is already done."""
    for future, result, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def adds(unit: Unit) -> bool:
    """Whether it takes room."""
    return any(_adds(step) for step in unit.steps)


def _adds(step: Step) -> bool:
    if isinstance(step, Rows):
        return bool(step.values)
    return step.sql.lstrip()[:6].upper() == "INSERT" and bool(step.parameters)


def _run(connection: sqlite3.Connection, step: Step) -> int:
    if isinstance(step, Rows):
        return _add(connection, step.insertion, step.values)
    if step.into is not None:
        step.into[:] = connection.execute(step.sql, step.parameters).fetchall()
        changed = len(step.into)
    elif step.many:
        changed = connection.executemany(step.sql, step.parameters).rowcount if step.parameters else 0
    else:
        changed = connection.execute(step.sql, step.parameters).rowcount
    if step.rows is not None and changed != step.rows:
        raise RowsMissing("A row that must be there is missing.")
    return changed


def _add(connection: sqlite3.Connection, insertion: Insertion, values: Sequence[Any]) -> int:
    """Add the rows in as few statements as there are for their number."""
    width = insertion.width
    count = len(values) // width
    at = 0
    while at < count:
        some = count - at
        if some > _FEW:
            some = next((many for many in _MANY if many <= some), _FEW)
        given = values if some == count else values[at * width : (at + some) * width]
        if connection.execute(insertion.sql(some), given).rowcount != some:
            raise RowsMissing("A row that must be there is missing.")
        at += some
    return count


def _bunches(units: Sequence[Unit]) -> list[list[Unit]]:
    """The units, those that are alike together."""
    bunches: list[list[Unit]] = []
    adding: list[list[Unit]] = []
    for unit in units:
        found: list[Unit] | None = None
        for bunch in adding:
            if _alike(bunch[0].steps, unit.steps):
                found = bunch
                break
        if found is not None:
            found.append(unit)
            continue
        bunches.append([unit])
        if unit.steps and isinstance(unit.steps[0], Rows):
            adding.append(bunches[-1])
    return bunches


def _alike(one: Sequence[Step], other: Sequence[Step]) -> bool:
    """Whether two units do the same with other values, and all their rows may be added together."""
    if len(one) != len(other):
        return False
    for step, beside in zip(one, other, strict=True):
        if isinstance(step, Rows):
            if not isinstance(beside, Rows) or step.insertion is not beside.insertion:
                return False
            if not step.light or not beside.light:
                return False
        elif isinstance(beside, Rows) or step.sql is not beside.sql:
            return False
    return True


def _run_alike(connection: sqlite3.Connection, units: Sequence[Unit]) -> None:
    """Run units that are alike, step by step of all of them."""
    counts: list[list[int]] = [[] for _ in units]
    for number, first in enumerate(units[0].steps):
        if isinstance(first, Rows):
            values: list[Any] = []
            for unit, counted in zip(units, counts, strict=True):
                step = unit.steps[number]
                assert isinstance(step, Rows)
                values.extend(step.values)
                counted.append(len(step.values) // first.insertion.width)
            _add(connection, first.insertion, values)
        else:
            for unit, counted in zip(units, counts, strict=True):
                counted.append(_run(connection, unit.steps[number]))
    for unit, counted in zip(units, counts, strict=True):
        unit.result = tuple(counted)
