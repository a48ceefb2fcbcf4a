"""Implements `antiphon admin usage`: prints or deletes the sums of token usage, as a table, as CSV or as JSON.

This module interprets the flags and prints the result. `engine/running/usage_report.py` reads the sums, and
`command.py` opens the database.

Invariant: without `--yes` no sum is deleted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

import msgspec

from antiphon.commands.terminal import printable, write_table
from antiphon.engine.ports import usage_sums
from antiphon.engine.ports.usage_sums import GROUPS, By, FindNames, OwnerName, UsageSum
from antiphon.engine.running.usage_report import usage_report
from antiphon.errors import ConfigError
from antiphon.stores.owner_usage import UsageStore

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_COUNTED = ("calls", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
_ESTIMATED = ("estimated_calls", "estimated_input_tokens", "estimated_output_tokens")
_FORMULA = ("=", "+", "-", "@")
"""The characters with which a cell begins that a spreadsheet program treats as a formula."""


def read_by(text: str) -> tuple[By, ...]:
    """The fields in the flag `--by`, by which the command groups the sums of usage. Raises `ConfigError`."""
    try:
        return usage_sums.read_by(text)
    except ValueError as unknown:
        raise ConfigError(f"--by: {unknown} is not a column; choose from {', '.join(GROUPS)}") from None


def read_day(flag: str, text: str) -> str:
    """Check the value of a flag: a day (`YYYY-MM-DD`), or an empty text. Raises `ConfigError`."""
    if text and not _DAY.fullmatch(text):
        raise ConfigError(f"{flag} {text}: write the day as YYYY-MM-DD")
    return text


async def show_usage(
    store: UsageStore, arguments: argparse.Namespace, owner: str, out: TextIO, find: FindNames | None = None
) -> int:
    """Print the requested sums of usage, or delete old sums of usage. `find` returns the names of owners by their ids.
    Raises `ConfigError` and `StoreError`."""
    if arguments.forget_before is not None:
        before = read_day("--forget-before", arguments.forget_before)
        if not arguments.yes:
            would = f"Would delete the sums of all days before {before}. To delete them, run the command with --yes."
            out.write(f"{json.dumps({'before': before, 'deleted': None}) if arguments.json else would}\n")
            return 1
        forgotten = await store.forget(before)
        done = json.dumps({"before": before, "deleted": forgotten})
        out.write(f"{done if arguments.json else f'deleted: {forgotten} daily sums'}\n")
        return 0
    if arguments.json and arguments.csv:
        raise ConfigError("--csv and --json are two forms of the same output: remove one of them")
    by = read_by(arguments.by)
    since, until = read_day("--since", arguments.since), read_day("--until", arguments.until)
    sums, names = await usage_report(store, by, find, since=since, until=until, owner=owner)
    if owner and not sums:
        advice = "'antiphon admin owners' lists the owners"
        print(f"antiphon: the owner {printable(owner)} has no usage in these days; {advice}", file=sys.stderr)
    if arguments.json:
        for one in sums:
            out.write(msgspec.json.encode(one.shown(by, names)).decode() + "\n")
    elif arguments.csv:
        _write_csv(sums, by, names, out)
    else:
        _usage_table(sums, by, names, out)
    return 0


def _whose(by: Sequence[By]) -> tuple[str, ...]:
    """The columns with the name and the team of an owner, unless `by` has them."""
    return tuple(name for name in ("owner_name", "team") if name not in by) if "owner" in by else ()


def _text(one: UsageSum, name: str, names: Mapping[str, OwnerName]) -> str:
    """The cell of one of the columns `_whose`."""
    found = names.get(one.owner, OwnerName(""))
    return found.name if name == "owner_name" else found.team


def _write_csv(sums: Sequence[UsageSum], by: tuple[By, ...], names: Mapping[str, OwnerName], out: TextIO) -> None:
    """Write the sums as CSV. The columns depend only on `by`."""
    whose, numbers = _whose(by), (*_COUNTED, *_ESTIMATED)
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([*by, *whose, *numbers, "cost"])
    for one in sums:
        texts = [*(str(getattr(one, name)) for name in by), *(_text(one, name, names) for name in whose)]
        cells = [printable(text) for text in texts]
        # Clients choose the names of models. A spreadsheet program must not run such a name as a formula.
        safe = [f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells]
        rows.writerow([*safe, *(getattr(one, name) for name in numbers), f"{one.cost / 1e6:.6f}"])


def _usage_table(sums: Sequence[UsageSum], by: tuple[By, ...], names: Mapping[str, OwnerName], out: TextIO) -> None:
    estimated = any(one.estimated_calls for one in sums)
    numbers = (*_COUNTED, *(_ESTIMATED if estimated else ()))
    # If an owner id is a hash, the owner has no name.
    whose = _whose(by) if names else ()
    rows = [[*by, *whose, *numbers, "cost"]]
    rows += [
        [
            *(printable(getattr(one, name)) for name in by),
            *(printable(_text(one, name, names)) for name in whose),
            *(str(getattr(one, name)) for name in numbers),
            f"{one.cost / 1e6:.6f}",
        ]
        for one in sums
    ]
    write_table(rows, out, left=len(by) + len(whose))
    if estimated:
        out.write(
            "(estimated: the upstream reported no tokens, so Antiphon counts a quarter of the bytes; the cost includes "
            "these calls)\n"
        )
