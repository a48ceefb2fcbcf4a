"""`scripts/bench state`: how many turns a second are stored, on SQLite, on PostgreSQL, and through pgbouncer.

Lives here: callers that each store one turn after another of a chain of their own, their table, and the command line.
Not here: single operations beside many stored responses (`--stored`: `state_stored.py`), what a request costs
(`run.py`), how fast histories are read (`history.py`).

All states run the same turns in turn, round by round, so that a slow moment of the machine meets all of them; of the
rounds the median counts. Both databases wait for the disk (`fsync`), and run on this machine.

Invariant: every turn that counts is there afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

from antiphon.stores.responses import ResponseStore
from lab.bench.state_places import Place, places
from lab.bench.state_rounds import Round, measured, median
from lab.bench.state_stored import Key, measure_stored, stored_tables, told, turn

_OWNERS = 20
_LENGTH = 20
"""Turns of a chain."""


async def _round(place: Place, store: ResponseStore, callers: int, seconds: float) -> Round:
    last: dict[str, str] = {}

    def caller(number: int) -> Callable[[], Awaitable[None]]:
        owner, previous, turns = f"b:{number % _OWNERS}", "", 0

        async def one() -> None:
            nonlocal previous, turns
            made = turn(owner, previous if turns % _LENGTH else None)
            await store.save(made)
            previous, turns = made.id, turns + 1
            last[made.id] = owner

        return one

    figures = await measured(place, caller, callers, seconds)
    for response_id, owner in last.items():
        assert await store.get(owner, response_id) is not None
    return figures


async def _measure(given: argparse.Namespace, found: Sequence[Place]) -> dict[tuple[str, int], list[Round]]:
    results: defaultdict[tuple[str, int], list[Round]] = defaultdict(list)
    for number in range(given.rounds + 1):
        for callers in given.callers:
            for place in found:
                async with place.responses() as store:
                    result = await _round(place, store, callers, given.seconds)
                if number:  # the first one warms up
                    results[place.name, callers].append(result)
                print(f"{number} {place.name}, {callers} callers: {result.rate:.0f}/s", file=sys.stderr, flush=True)
    return results


def _table(results: dict[tuple[str, int], list[Round]], callers: Sequence[int]) -> str:
    heads = [f"{number} callers" if number > 1 else "1 caller" for number in callers]
    lines = [
        f"| turns/s (CPU µs of this process + the database's; p50 / p99 ms) | {' | '.join(heads)} |",
        f"| --- |{' --- |' * len(callers)}",
    ]
    for name in dict.fromkeys(name for name, _ in results):
        lines.append(f"| {name} | {' | '.join(told(median(results[name, number])) for number in callers)} |")
    return "\n".join(lines)


async def _run(given: argparse.Namespace) -> None:
    figures: dict[str, list[Round]] = {}

    def keep(results: Mapping[Any, list[Round]]) -> None:
        figures.update({", ".join(map(str, key)): rounds for key, rounds in results.items()})

    if given.stored:
        single: dict[Key, list[Round]] = {}
        for stored in given.stored:
            single.update(await measure_stored(stored, given.depth, given.callers, given.rounds, given.seconds))
        print(stored_tables(single))
        keep(single)
    else:
        async with places() as found:
            turns = await _measure(given, found)
        print(_table(turns, given.callers))
        keep(turns)
    if given.json:
        told_all = {name: [asdict(each) for each in rounds] for name, rounds in figures.items()}
        given.json.write_text(json.dumps(told_all, indent=1))


def main(arguments: Sequence[str] | None = None) -> None:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(prog="scripts/bench state", description="How many turns a second are stored.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--callers", type=numbers, help="default 1,32,200; with --stored 1,32")
    parser.add_argument(
        "--stored", type=numbers, metavar="N,…", help="single operations with so many responses stored, each in turn"
    )
    parser.add_argument("--depth", type=numbers, default=[1, 200], help="of the chains of --stored (default 1,200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all rounds")
    given = parser.parse_args(arguments)
    given.callers = given.callers or ([1, 32] if given.stored else [1, 32, 200])
    uvloop.run(_run(given))


if __name__ == "__main__":
    main()
