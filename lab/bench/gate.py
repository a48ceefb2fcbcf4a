"""Implements `scripts/bench --gate`: fails when a chunk or a request costs more than its limit.

Lives here: the choice of the measurement, the limits' file, and the verdict. Not here: counting instructions
(`gate_instructions.py`), CPU time as the fallback (`gate_time.py`).

The gate compares instructions with absolute limits, 5 % above the count at the time of writing. The limits hold for one
kind of interpreter. Without valgrind, or without limits for this interpreter, the gate compares CPU time with the
echo's, and the output reports this.

Invariant: the gate never passes without a measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.bench import gate_instructions, gate_time

LIMITS = Path(__file__).with_name("gate_limits.json")
_ROOM = 1.05
_STALE = 0.9
"""The share of a limit below which the limit is too loose to detect a regression."""


@dataclass(frozen=True)
class Measures:
    """The functions with which the gate measures, and the file of its limits."""

    limits: Path = LIMITS
    available: Callable[[], bool] = gate_instructions.available
    interpreter: Callable[[], str] = gate_instructions.interpreter
    count: Callable[[], dict[str, float]] = gate_instructions.count
    time: Callable[[], dict[str, tuple[float, float]]] = gate_time.measure


def main(arguments: Sequence[str] | None = None, measures: Measures = Measures()) -> int:
    """Print each cost next to its limit. The exit status is 1 if a cost exceeds its limit."""
    parser = argparse.ArgumentParser(prog="scripts/bench --gate", description="What a chunk and a request may cost.")
    parser.add_argument(
        "--renew",
        nargs="*",
        metavar="KIND",
        help="write the limits (of these kinds) anew, 5 %% above what is counted now",
    )
    parser.add_argument("--time", action="store_true", help="by CPU time, as where there is no valgrind")
    given = parser.parse_args(arguments)
    limits = json.loads(measures.limits.read_text())
    if given.renew is not None:
        if not measures.available():
            parser.error("--renew counts instructions: install valgrind")
        return _renew(limits, measures, given.renew)
    known = limits["limits"].get(measures.interpreter())
    if given.time:
        return _by_time(measures)
    if not measures.available():
        print("gate: valgrind is not installed (Debian: apt install valgrind): CPU TIME INSTEAD, WHICH SEES LESS")
        return _by_time(measures)
    if known is None:
        here = measures.interpreter()
        print(f"gate: no limits for {here} (scripts/bench --gate --renew): CPU TIME INSTEAD, WHICH SEES LESS")
        return _by_time(measures)
    return _by_instructions(known, measures)


def _by_instructions(known: dict[str, Any], measures: Measures) -> int:
    status = 0
    for kind, spent in measures.count().items():
        limit = known[kind]
        good = spent <= limit
        status |= not good
        print(f"gate: instructions per {kind}: {spent:,.0f} (at most {limit:,}) {'good' if good else 'TOO MANY'}")
        if spent < limit * _STALE:
            print(f"gate: {spent / limit:.0%} of the limit of {known['counted']}: scripts/bench --gate --renew")
    return status


def _renew(limits: dict[str, Any], measures: Measures, kinds: Sequence[str]) -> int:
    """Write new limits from the counts with this interpreter, and only for it. Without kinds, all are renewed."""
    counted = measures.count()
    entry: dict[str, Any] = limits["limits"].get(measures.interpreter(), {}) if kinds else {}
    entry["counted"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    for kind, spent in counted.items():
        if kinds and kind not in kinds:
            continue
        entry[kind] = round(spent * _ROOM)
        print(f"gate: instructions per {kind}: {spent:,.0f}; from now on at most {entry[kind]:,}")
    limits["limits"][measures.interpreter()] = entry
    measures.limits.write_text(json.dumps(limits, indent=2) + "\n")
    return 0


def _by_time(measures: Measures) -> int:
    status = 0
    for kind, (ours, echo) in measures.time().items():
        bound = gate_time.BOUNDS[kind]
        good = ours / echo <= bound
        status |= not good
        said = f"{ours:.1f} µs, echo {echo:.1f} µs: {ours / echo:.1f}x (at most {bound:g}x)"
        print(f"gate: CPU time per {kind}: {said} {'good' if good else 'TOO MUCH'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
