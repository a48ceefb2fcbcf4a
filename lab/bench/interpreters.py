"""`scripts/bench interpreters`: what requests and chunks cost on another Python, beside the one of `.venv`.

Lives here: the rounds that take turns, and the table. Not here: the path (`gate_path.py`).

Each Python is a command (a `bin/python`, or a wrapper with arguments) that has Antiphon's dependencies. A turn is a
process of each, one after the other, which does the same fixed work and counts its own CPU time. Of all turns the least
counts: of the times, and of what a process held in memory at most.

Invariant: the Pythons do the same work, in turns: no figure is of a moment in which another one did not run.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from antiphon.observability.logs import configure
from lab.bench.gate_path import CHUNKS, Paths, in_crowds, open_paths

_ROOT = Path(__file__).parents[2]
_SECONDS = 300.0
_CROWDS = (1, 4, 64)
_REQUESTS = 150
_STREAMS = 6


async def _measure(rounds: int) -> dict[str, float]:
    """CPU microseconds by kind, the least of the rounds; the most resident MiB."""
    async with open_paths() as paths:
        work = {"small request": (paths.short, _REQUESTS, 1)}
        for crowd in _CROWDS:
            work[f"chunk, {crowd} in a message"] = (in_crowds(crowd), _STREAMS, CHUNKS)
        least: dict[str, float] = {}
        for number in range(rounds + 1):
            for kind, (messages, times, per) in work.items():
                spent = await _spend(paths, messages, times, per)
                # The first round is for the caches.
                if number:
                    least[kind] = min(spent, least.get(kind, spent))
        return least | {"memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


async def _spend(paths: Paths, messages: list[bytes], times: int, per: int) -> float:
    gc.collect()
    started = time.process_time()
    for _ in range(times):
        await paths.relay(messages, per)
    paths.tell()
    return (time.process_time() - started) / (times * per) * 1e6


def _ask(command: str, rounds: int) -> dict[str, float]:
    program = ("-m", "lab.bench.interpreters", "--child", "--rounds", str(rounds))
    words = [*shlex.split(command), *program]
    done = subprocess.run(words, cwd=_ROOT, check=True, stdout=subprocess.PIPE, timeout=_SECONDS)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _table(found: dict[str, dict[str, float]]) -> str:
    (first, base), *others = found.items()
    head = [f"CPU, µs: {first}", *(f"{name}, of that" for name, _ in others)]
    lines = ["| | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for kind, value in base.items():
        ratios = [f"{each[kind] / value:.2f}" for _, each in others]
        lines.append(f"| {kind} | " + " | ".join([f"{value:.1f}", *ratios]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench interpreters", description="What another Python costs.")
    parser.add_argument("python", nargs="*", metavar="NAME=COMMAND", help="another Python with the dependencies")
    parser.add_argument("--rounds", type=int, default=8, help="rounds within each process (default 8)")
    parser.add_argument("--turns", type=int, default=4, help="processes of each Python (default 4)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        configure("error", "json")
        print(json.dumps(uvloop.run(_measure(given.rounds))))
        return 0
    here = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    commands = {here: shlex.quote(sys.executable)}
    for text in given.python:
        name, equals, command = text.partition("=")
        if not equals:
            parser.error(f"{text}: write NAME=COMMAND")
        commands[name] = command
    found: dict[str, dict[str, float]] = {}
    for _ in range(given.turns):
        for name, command in commands.items():
            for kind, value in _ask(command, given.rounds).items():
                least = found.setdefault(name, {})
                least[kind] = min(value, least.get(kind, value))
    print(_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
