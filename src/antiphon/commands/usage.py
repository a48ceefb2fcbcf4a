"""`antiphon admin usage`: what model calls took and cost, by owner, model, upstream and day.

Lives here: what stands in the table and in the JSON that are printed. Not here: the sums (`stores/usage.py`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TextIO, cast

import msgspec

from antiphon.commands.tables import printable, write_table
from antiphon.engine.ports.usage import KEY, By, UsageStore, UsageSum
from antiphon.errors import ConfigError

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_COUNTED = ("calls", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
_ESTIMATED = ("estimated_calls", "estimated_input_tokens", "estimated_output_tokens")


def read_by(text: str) -> tuple[By, ...]:
    """What sums are told apart by. Raises `ConfigError`."""
    named = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in named:
        if name not in KEY:
            raise ConfigError(f"--by {name}: there is {', '.join(KEY)}")
    return cast("tuple[By, ...]", named)


def read_day(flag: str, text: str) -> str:
    """A day, or nothing. Raises `ConfigError`."""
    if text and not _DAY.fullmatch(text):
        raise ConfigError(f"{flag} {text}: write the day as YYYY-MM-DD")
    return text


async def show(store: UsageStore, arguments: argparse.Namespace, owner: str, out: TextIO = sys.stdout) -> int:
    """Print what was asked for, or forget it. Raises `ConfigError` and `StoreError`."""
    if arguments.forget_before is not None:
        before = read_day("--forget-before", arguments.forget_before)
        if not arguments.yes:
            out.write(f"Would delete the sums of all days before {before}. Say --yes to do it.\n")
            return 1
        out.write(f"gone: {await store.forget(before)} sums\n")
        return 0
    by = read_by(arguments.by)
    since, until = read_day("--since", arguments.since), read_day("--until", arguments.until)
    sums = await store.sums(by, since=since, until=until, owner=owner)
    if arguments.json:
        for one in sums:
            told = msgspec.structs.asdict(one)
            named = {name: value for name, value in told.items() if name in by or name not in KEY}
            out.write(msgspec.json.encode({**named, "cost": one.cost / 1e6}).decode() + "\n")
    else:
        _table(sums, by, out)
    return 0


def _table(sums: Sequence[UsageSum], by: tuple[By, ...], out: TextIO) -> None:
    estimated = any(one.estimated_calls for one in sums)
    numbers = (*_COUNTED, *(_ESTIMATED if estimated else ()))
    rows = [[*by, *numbers, "cost"]]
    rows += [
        [
            *(printable(getattr(one, name)) for name in by),
            *(str(getattr(one, name)) for name in numbers),
            f"{one.cost / 1e6:.6f}",
        ]
        for one in sums
    ]
    write_table(rows, out, left=len(by))
    if estimated:
        out.write("(estimated: calls whose upstream did not say, a quarter of the bytes; the cost is of both)\n")
