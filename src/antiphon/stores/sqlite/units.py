"""Defines units of writes, and runs a group of units in one transaction.

Lives here: the steps of a unit (a statement, or rows to insert), a unit's state and deadline, and running the steps.
This module also merges the INSERT statements of similar units, and the rows of one INSERT statement. Not here: the
transaction and its thread (`writer.py`), the class `Statement` (`../tables.py`), SQL of any store.

For each statement, Python's sqlite3 releases the GIL several times. To acquire the GIL again, the thread must wait
while the event loop is busy. Beside a busy event loop, one statement for each row took 144 µs a row, and one statement
for 32 rows about 20 µs. So this module merges INSERT statements. One statement inserts the rows that several units add
to the same table, or 32 rows of a statement with `light`. If a merged statement fails, the writer runs the units one by
one to find the failing unit.

Invariants: a step may run again after its transaction was rolled back, and produces the same results. A group that
succeeds has the same effect as its units would have if they ran one after the other, in some order. No caller gets a
result before the whole group is committed, so callers cannot observe the order.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from antiphon.errors import StoreError
from antiphon.stores.tables import PARAMETER, Counts, RowsMissing, Statement


class Insertion:
    """An INSERT statement for any number of rows. Each row of parameters inserts one table row or none."""

    def __init__(self, before: str, row: str, behind: str = "") -> None:
        """`row`: the placeholders of one row in brackets, such as `(?, ?)`. `sql` repeats `row` between `before` and
        `behind`."""
        self.width = row.count("?")
        self._before = before
        self._row = row
        self._behind = behind
        self._made: dict[int, str] = {}

    def sql(self, count: int) -> str:
        """Return the SQL that inserts `count` rows."""
        sql = self._made.get(count)
        if sql is None:
            sql = self._made[count] = f"{self._before} {', '.join([self._row] * count)} {self._behind}"
        return sql


class Rows:
    """Rows that a unit of writes inserts. If one row cannot be inserted, the unit fails with `RowsMissing`. `values`:
    the values of all rows in one flat tuple.

    `light`: one statement may insert these rows together with rows of other units. Set `light` only for small rows,
    because SQLite keeps the last values of a cached statement in memory.
    """

    def __init__(self, insertion: Insertion, values: tuple[object, ...], light: bool = False) -> None:
        self.insertion = insertion
        self.values = values
        self.light = light

    @property
    def sql(self) -> str:
        """The SQL that inserts one of the rows."""
        return self.insertion.sql(1)


Step = Statement | Rows
Undo = Sequence[Step] | Callable[[], Sequence[Step]]
Answer = tuple[asyncio.Future[Any], object, StoreError | None]

# SQLite prepares a separate statement for each number of rows. To limit the number of prepared statements, an INSERT
# has 1 to `_FEW` rows, or one of the numbers in `_MANY`.
_FEW: Final = 8
_MANY: Final = (32, 16)


class Unit:
    """A list of steps that take effect together or not at all, and the future of the caller that waits for them.

    The writer's lock guards the following flags. `withdrawn`: the unit must not be committed. `committing`: the commit
    has begun, so the unit can no longer be withdrawn. `committed`: the commit succeeded. `over`: the transaction has
    ended, so the outcome is known. `forsaken`: the caller got an error with an unknown outcome.
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
    """The deadlines of all units that callers of one event loop wait for. Calls `over(unit)` once when a unit's
    deadline passes, unless `forget` has removed the deadline.

    One timer serves all units, because a timer per unit would be created and cancelled with every write. When the timer
    fires, it checks every deadline, and restarts for the earliest remaining deadline.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[Unit], None]) -> None:
        self.loop = loop
        self.releasing = False
        """Whether the writer has scheduled `_release` for the current iteration of the event loop."""
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
        """Remove all deadlines and cancel the timer: `over` is not called again."""
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
    """Run the steps in order. Returns the number of changed rows of each step. Raises `RowsMissing` and
    `sqlite3.Error`, after which the caller rolls back its transaction."""
    return tuple([_run(connection, step) for step in steps])


def run_together(connection: sqlite3.Connection, units: Sequence[Unit]) -> bool:
    """Run all units in the current transaction. Returns False when one unit failed: the caller must roll back."""
    try:
        for alike in _bunches(units):
            if len(alike) == 1:
                alike[0].result = run_steps(connection, alike[0].steps)
            else:
                _run_alike(connection, alike)
    except Exception:
        if not connection.in_transaction:
            # SQLite rolls back the transaction on a full disk or an I/O error, so a second attempt is useless.
            raise
        return False
    return True


def answers_of(group: Sequence[Unit], error: StoreError | None) -> dict[asyncio.AbstractEventLoop, list[Answer]]:
    """Group the results of units by the event loop of their callers, so that a group wakes each event loop only
    once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for unit in group:
        failure = unit.error if error is None else error.again()
        answers = by_loop.get(unit.loop)
        if answers is None:
            answers = by_loop[unit.loop] = []
        answers.append((unit.future, unit.result, failure))
    return by_loop


def settle(answers: Sequence[Answer]) -> None:
    """Set the results of the callers' futures. Runs in the event loop. Skips futures of cancelled callers, which are
    already done."""
    for future, result, error in answers:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def adds(unit: Unit) -> bool:
    """Return whether the unit inserts rows, and so needs disk space."""
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
        changed = _run_many(connection, step)
    else:
        changed = connection.execute(step.sql, step.parameters).rowcount
    if step.rows is not None and changed != step.rows:
        raise RowsMissing("A statement did not change the number of rows that it requires.")
    return changed


def _run_many(connection: sqlite3.Connection, step: Statement) -> int:
    if not step.parameters:
        return 0
    found = insertion_of(step.sql) if step.light else None
    if found is None:
        return connection.executemany(step.sql, step.parameters).rowcount
    insertion, names = found
    assert not isinstance(step.parameters, Mapping)
    return _insert(connection, insertion, [row[name] for row in step.parameters for name in names])


@lru_cache(maxsize=64)
def insertion_of(sql: str) -> tuple[Insertion, tuple[str, ...]] | None:
    """Return the INSERT statement with named parameters as an `Insertion`, and the names of the parameters of one row
    in order. Returns None if parameters stand outside the row after `VALUES`."""
    before, _, rest = sql.partition("VALUES ")
    end = _end_of_brackets(rest)
    row, behind = rest[:end], rest[end:]
    if not row or PARAMETER.search(before) or PARAMETER.search(behind):
        return None
    return Insertion(f"{before}VALUES", PARAMETER.sub("?", row), behind), tuple(PARAMETER.findall(row))


def _end_of_brackets(sql: str) -> int:
    """Return the position after the bracket that closes the first one."""
    depth = 0
    for at, letter in enumerate(sql):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at + 1 if letter == ")" else 0
    return 0


def _add(connection: sqlite3.Connection, insertion: Insertion, values: Sequence[object]) -> int:
    """Insert the rows in few statements. Returns the number of rows. Raises `RowsMissing` if a row was not inserted."""
    count = len(values) // insertion.width
    if _insert(connection, insertion, values) != count:
        raise RowsMissing("A statement did not change the number of rows that it requires.")
    return count


def _insert(connection: sqlite3.Connection, insertion: Insertion, values: Sequence[object]) -> int:
    """Insert the rows in few statements. Returns the number of inserted or updated rows."""
    width = insertion.width
    count = len(values) // width
    at = changed = 0
    while at < count:
        some = count - at
        if some > _FEW:
            some = next((many for many in _MANY if many <= some), _FEW)
        given = values if some == count else values[at * width : (at + some) * width]
        changed += connection.execute(insertion.sql(some), given).rowcount
        at += some
    return changed


def _bunches(units: Sequence[Unit]) -> list[list[Unit]]:
    """Group the units so that `_run_alike` can run each group with merged INSERT statements. A unit without similar
    units is a group of one."""
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
    """Return whether two units have the same statements (with any values), and all their rows are `light`."""
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
    """Run similar units step by step. One statement inserts the rows of all units, and other statements run once per
    unit."""
    counts: list[list[int]] = [[] for _ in units]
    for number, first in enumerate(units[0].steps):
        if isinstance(first, Rows):
            values: list[object] = []
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
