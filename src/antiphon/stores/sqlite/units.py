"""Defines units of writes, and runs a group of them in one transaction.

Lives here: the state of a unit, its deadline, running its steps, and merging the inserts of similar units. Not here:
the transaction and its thread (`writer.py`), the steps (`statements.py`).

For each statement, Python's sqlite3 releases the interpreter lock several times, and must wait for a busy event loop to
get it back. So one statement inserts the rows that several units add to the same table. It succeeds or fails for all of
them; running the units one by one then finds the failing one.

Invariant: unless it fails, a group has the same effect as its units one after the other, in some order. No caller gets
a result before all are committed, so the order is not observable.
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

# Each number of rows is a separate prepared statement: any number up to the first constant, or one of the second.
_FEW: Final = 8
_MANY: Final = (32, 16)


class Unit:
    """Steps that all take effect or none, and the caller that waits for them.

    The writer's lock guards the flags. `withdrawn`: must not take effect. `committing`: too late to withdraw.
    `committed`: took effect. `over`: the outcome is known. `forsaken`: its caller got an error with an unknown outcome.
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
    """The deadlines of one event loop's units. Calls `over` once per `wait` for each unit whose deadline passes, unless
    `forget` removed it before.

    A timer per unit would be created and cancelled with every write. Instead, one timer checks which deadlines have
    passed, and restarts for the rest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[Unit], None]) -> None:
        self.loop = loop
        self.releasing = False
        """Whether this turn of the loop will release its units at its end."""
        self._over = over
        self._waiting: set[Unit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def wait(self, unit: Unit, seconds: float) -> None:
        """Set the unit's deadline to `seconds` from now."""
        unit.due = self.loop.time() + seconds
        self._waiting.add(unit)
        self._ring_by(unit.due)

    def forget(self, unit: Unit) -> None:
        """Remove the unit's deadline."""
        self._waiting.discard(unit)

    def close(self) -> None:
        """Stop: no further call of `over`."""
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
    """Run the steps in order. Raises `RowsMissing` and `sqlite3.Error`; then the caller's transaction rolls back."""
    return tuple([_run(connection, step) for step in steps])


def run_together(connection: sqlite3.Connection, units: Sequence[Unit]) -> bool:
    """Run all units; False when one failed and the caller must roll back."""
    try:
        for alike in _bunches(units):
            if len(alike) == 1:
                alike[0].result = run_steps(connection, alike[0].steps)
            else:
                _run_alike(connection, alike)
    except Exception:
        if not connection.in_transaction:
            # A full disk or an I/O error has ended the transaction, so a second try is useless.
            raise
        return False
    return True


def answers_of(group: Sequence[Unit], error: StoreError | None) -> dict[asyncio.AbstractEventLoop, list[Answer]]:
    """The results by event loop: one wake-up per event loop and group, not one per unit."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for unit in group:
        failure = unit.error if error is None else error.again()
        answers = by_loop.get(unit.loop)
        if answers is None:
            answers = by_loop[unit.loop] = []
        answers.append((unit.future, unit.result, failure))
    return by_loop


def settle(answers: Sequence[Answer]) -> None:
    """In the event loop: set the results; the future of a cancelled caller is already done."""
    for future, result, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def adds(unit: Unit) -> bool:
    """Whether the unit needs disk space."""
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
    """Insert the rows in as few statements as possible."""
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
    """The units, grouped by similarity."""
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
    """Whether two units differ only in their values, and all their rows may be inserted together."""
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
    """Run similar units together, step by step."""
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
