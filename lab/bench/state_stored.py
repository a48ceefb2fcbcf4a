"""`scripts/bench state --stored N`: single operations on a store that holds so many responses already.

Lives here: the operations, each on chains of one turn and of many, and the tables. Not here: how the rows got there
(`state_filling.py`), turns as fast as they go (`state.py`).

Invariant: what is read is checked to be whole; each measurement picks what it reads at random, from all there is.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from antiphon.engine.ports.actions import ResponseRecord, StoredItem, Usage
from antiphon.ids import new_id
from antiphon.stores.responses import ResponseStore
from lab.bench.state_filling import ASKED, BODY, OWNERS, SAID, Chains, fill
from lab.bench.state_places import POOLED, Place, places
from lab.bench.state_rounds import Caller, Round, measured, median

_CHAINS = 100
"""Of each depth that is asked for."""
_COMMON_DEPTH = 10
"""Of all others."""

Key = tuple[str, int, str, int]
"""Place, stored, operation, callers."""


def turn(owner: str, previous: str | None) -> ResponseRecord:
    """A finished response with an item of each side."""
    now = time.time()
    asked = StoredItem(new_id("msg"), "message", ASKED)
    said = StoredItem(new_id("msg"), "message", SAID)
    usage = Usage(100, 100, 200)
    return ResponseRecord(
        new_id("resp"), owner, previous, "completed", "model", now, now, BODY, (asked,), (said,), usage
    )


def _operations(store: ResponseStore, stored: Chains, depths: Sequence[Chains]) -> dict[str, Caller]:
    def save(number: int) -> Callable[[], Awaitable[object]]:
        return lambda: store.save(turn(f"b:{number % OWNERS}", None))

    def read(_number: int) -> Callable[[], Awaitable[object]]:
        async def one() -> None:
            chain = random.randrange(stored.count)
            found = await store.get(stored.owner(chain), stored.response(chain, random.randrange(stored.depth)))
            assert found is not None and len(found.output_items) == 1

        return one

    def history(kind: Chains, *, continued: bool) -> Caller:
        async def one() -> None:
            chain = random.randrange(kind.count)
            owner, last = kind.owner(chain), kind.response(chain, kind.depth - 1)
            found = await store.load_chain(owner, last)
            assert found is not None and len(found.items) == 2 * kind.depth
            if continued:
                await store.save(turn(owner, last))

        return lambda _number: one

    found: dict[str, Caller] = {"save a turn": save, "read a response": read}
    for kind in depths:
        found[f"read a chain of {kind.depth}"] = history(kind, continued=False)
    for kind in depths:
        found[f"continue a chain of {kind.depth}"] = history(kind, continued=True)
    return found


async def measure_stored(
    stored: int, depths: Sequence[int], callers: Sequence[int], rounds: int, seconds: float
) -> dict[Key, list[Round]]:
    """All operations on all places, with so many responses stored beforehand."""
    results: defaultdict[Key, list[Round]] = defaultdict(list)
    kinds = [Chains(_CHAINS, depth) for depth in depths]
    rest = stored - sum(kind.count * kind.depth for kind in kinds)
    others = Chains(max(1, rest // _COMMON_DEPTH), _COMMON_DEPTH)
    async with places() as found:
        for place in found:
            async with place.responses():
                pass  # makes the schema
            if place.name != POOLED:  # whose database is PostgreSQL's
                began = time.perf_counter()
                await fill(place, *kinds, others)
                print(f"{place.name}: {stored:,} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        for number in range(rounds + 1):
            for place in found:
                await _round(place, number, kinds, others, stored, callers, seconds, results)
    return results


async def _round(
    place: Place,
    number: int,
    kinds: Sequence[Chains],
    others: Chains,
    stored: int,
    callers: Sequence[int],
    seconds: float,
    results: dict[Key, list[Round]],
) -> None:
    async with place.responses() as store:
        for name, caller in _operations(store, others, kinds).items():
            for count in callers:
                figures = await measured(place, caller, count, seconds)
                if number:  # the first one warms up
                    results[place.name, stored, name, count].append(figures)
                told = f"{figures.rate:.0f}/s, {figures.p50:.1f} / {figures.p99:.1f} ms"
                print(f"{number} {place.name}, {stored:,}: {name}, {count}: {told}", file=sys.stderr, flush=True)


def stored_tables(results: dict[Key, list[Round]]) -> str:
    """A table for each number of callers: a row for each operation, a column for each place and number stored."""
    tables = []
    for count in sorted({key[3] for key in results}):
        names = list(dict.fromkeys(key[0] for key in results))
        columns = sorted({(key[0], key[1]) for key in results}, key=lambda column: (names.index(column[0]), column[1]))
        heads = [f"{name}, {stored:,}" for name, stored in columns]
        title = f"{count} callers: a second" if count > 1 else "1 caller: a second"
        lines = [
            f"| {title} (CPU µs of this process + the database's; p50 / p99 ms) | {' | '.join(heads)} |",
            f"| --- |{' --- |' * len(columns)}",
        ]
        for operation in dict.fromkeys(key[2] for key in results):
            cells = [told(median(results[name, stored, operation, count])) for name, stored in columns]
            lines.append(f"| {operation} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def told(figures: Round) -> str:
    """One cell."""
    server = f" + {figures.server:,.0f}" if figures.server else ""
    return f"{figures.rate:,.0f} ({figures.cpu:,.0f}{server}; {figures.p50:.1f} / {figures.p99:.1f})"
