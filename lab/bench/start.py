"""Implements `scripts/bench start`: measures the time until `antiphon up` and its workers serve, and their memory at
that time.

Lives here: starting the processes, killing a worker, reading the system's data about the processes. Not here: the cost
of load (`run.py`).

With `--against` the sources of another revision and of this one start alternately. Other load on the machine affects
wall time. Other load hardly affects CPU time, and does not affect memory. There is no upstream, because the benchmark
sends no request.

Invariant: the benchmark stops every process that it started, and a start that takes longer than `_SECONDS` is a
failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.bench.core import source_of

_ROOT = Path(__file__).parents[2]
_SECONDS = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_SETTINGS = {"ANTIPHON_TIMEOUTS__CHECK": "0"}

Figures = dict[str, float]


class _Up:
    """One `antiphon up` of a source tree, after it became ready."""

    def __init__(self, source: Path, folder: str, workers: int) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        words = ["up", "--workers", str(workers), "--listen", "127.0.0.1:0", "--data", folder, "--log-format", "json"]
        began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "antiphon", *words, "--upstream", "http://127.0.0.1:9/v1"],
            env={**plain, **_SETTINGS, "PYTHONPATH": str(source)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._serving: dict[str, list[float]] = defaultdict(list)
        self._told = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._process.stdout is not None
        ending = threading.Timer(_SECONDS, self._process.kill)
        ending.start()
        if not self._process.stdout.readline().startswith("ready: "):
            raise SystemExit("antiphon up did not start")
        ending.cancel()
        self.seconds = time.monotonic() - began

    def serving(self, worker: str, life: int) -> float:
        """The time at which the process of a worker with this number (from 0) reported that it serves, in seconds since
        the machine's start."""
        with self._told:
            if not self._told.wait_for(lambda: len(self._serving[worker]) > life, _SECONDS):
                raise SystemExit(f"{worker} did not serve")
            return self._serving[worker][life]

    def workers(self) -> dict[str, int]:
        """The process ids of the workers by name."""
        commands = {pid: _command(pid) for pid in _children(self.pid)}
        found = {}
        for pid, words in commands.items():
            if "extproc" in words and "--worker" in words and not any("guard.py" in word for word in words):
                found[f"sidecar {words[words.index('--worker') + 1]}"] = pid
        return found

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            said: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if said.get("message") == "serving":
                # The result uses the machine's boot clock, like the start times of processes.
                ago = time.time() - datetime.fromisoformat(said["timestamp"]).timestamp()
                with self._told:
                    self._serving[said["process"]].append(time.clock_gettime(time.CLOCK_BOOTTIME) - ago)
                    self._told.notify_all()


def measure(source: Path, count: int) -> Figures:
    """Start everything once, and replace one worker once. Returns the figures."""
    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="antiphon-start-") as folder:
        up = _Up(source, folder, count)
        try:
            found["`up` to ready, s"] = up.seconds
            workers = up.workers()
            found["a worker to ready, s"] = up.serving("sidecar 0", 0) - _started(workers["sidecar 0"])
            everybody = [up.pid, *_descendants(up.pid)]
            found["CPU of all until then but Envoy's, s"] = sum(_cpu(pid) for pid in everybody if not _is_envoy(pid))
            for what, pids in (("parent", [up.pid]), ("a worker", list(workers.values()))):
                memories = [_memory(pid) for pid in pids]
                found[f"{what}, MiB resident"] = statistics.mean(each["Rss"] for each in memories)
                found[f"{what}, MiB private"] = statistics.mean(
                    each["Private_Clean"] + each["Private_Dirty"] for each in memories
                )
            shares = {pid: _memory(pid)["Pss"] for pid in everybody}
            found["everything but Envoy, MiB (shares of what is shared)"] = sum(
                share for pid, share in shares.items() if not _is_envoy(pid)
            )
            last = f"sidecar {count - 1}"
            os.kill(workers[last], signal.SIGKILL)
            serves = up.serving(last, 1)
            replaced = up.workers()[last]
            found["a worker that replaces another to ready, s"] = serves - _started(replaced)
            found["its CPU, s"] = _cpu(replaced)
        finally:
            up.stop()
    return found


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _descendants(pid: int) -> list[int]:
    return [each for child in _children(pid) for each in (child, *_descendants(child))]


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def _is_envoy(pid: int) -> bool:
    return Path(_command(pid)[0]).name == "envoy"


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started(pid: int) -> float:
    """The start time of a process, in seconds since the machine's start."""
    return int(_fields(pid)[19]) / _TICKS


def _cpu(pid: int) -> float:
    """The CPU time of a process and of its ended children."""
    return sum(map(int, _fields(pid)[11:15])) / _TICKS


def _memory(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def _table(now: dict[str, list[float]], before: dict[str, list[float]], revision: str | None) -> str:
    columns = ["", "now", *([f"at {revision}", "now / then"] if revision else [])]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, values in now.items():
        value = statistics.median(values)
        cells = [name, f"{value:.2f}" if name.endswith(" s") else f"{value:.0f}"]
        if revision:
            then = statistics.median(before[name])
            cells += [f"{then:.2f}" if name.endswith(" s") else f"{then:.0f}", f"{value / then:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: medians of the rounds."""
    parser = argparse.ArgumentParser(prog="scripts/bench start", description="How antiphon up starts.")
    parser.add_argument("--workers", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each (default 5), and one before them")
    parser.add_argument("--against", metavar="REVISION", help="compare with this commit")
    given = parser.parse_args(arguments)
    found: list[dict[str, list[float]]] = [defaultdict(list), defaultdict(list)]
    with tempfile.TemporaryDirectory(prefix="antiphon-bench-") as folder:
        sources = [_ROOT / "src", *([source_of(given.against, Path(folder))] if given.against else [])]
        for number in range(given.rounds + 1):
            for figures, source in zip(found, sources, strict=False):
                for name, value in measure(source, given.workers).items():
                    # The first start compiles bytecode, so it is not measured.
                    if number:
                        figures[name].append(value)
    print(_table(found[0], found[1], given.against))
    return 0


if __name__ == "__main__":
    sys.exit(main())
