"""Counts instructions per chunk and per request with valgrind; the counts are the same on a busy machine.

Lives here: the counted program (`python -m lab.bench.gate_instructions`), and reading valgrind's counts. Not here: the
path (`gate_path.py`), the limits (`gate.py`, `gate_limits.json`).

The program starts, and runs each part a few times to warm up the interpreter and Antiphon's caches. Then it makes
valgrind start counting with `vgdb`, because all code runs several times faster before that. The program calls `getsid`
between the parts, and callgrind begins a new count at each call. No other code of the program calls `getsid`. Log lines
go into a pipe, as in a container.

Each kind has several parts, and the smallest count is the result. On a busy machine, some requests take a longer path.
After two slow reads of SQLite in a row, for example, the sidecar reads in another thread for a while.

Invariant: two runs of the same code differ by less than 0.2 %. The request of 100 KB differs by up to 0.6 %.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from antiphon.observability.logs import configure
from antiphon.translation.answer import stream as chat_stream
from antiphon.translation.splice import splice, splice_in_python
from lab.bench.gate_path import CHUNKS, CONSOLE, QUOTAS, Paths, open_paths

_SECONDS = 540.0
_SUMMARY = re.compile(rb"^summary: (\d+)", re.MULTILINE)
CHUNK_KINDS = ("chunk", "chunk in a crowd")
KINDS = (
    *(*CHUNK_KINDS, "request", "request behind a stored turn", "request of 100 KB", "request with quotas"),
    "request with the console",
)
"""The measured kinds: a chunk in a message of one chunk, a chunk in a message of 64 chunks, and five whole requests.
The requests are a small one, the same behind a stored response, and one with 90 turns of 1 KB. The last two are the
small one with five limits, and with the console. They leave out what the process writes once a second."""
_PARTS = 4
_TIMES = dict(zip(KINDS, (2, 3, 20, 10, 5, 20, 20), strict=True))
"""The number of requests in each part."""
_LEARNING = dict(zip(KINDS, (6, 6, 100, 60, 20, 100, 100), strict=True))


def available() -> bool:
    """Whether valgrind is installed."""
    return all(map(shutil.which, ("valgrind", "vgdb")))


def interpreter() -> str:
    """The facts that determine the counts, apart from the code: the interpreter, its build, and Antiphon's compiled
    modules."""
    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    compiled = not (chat_stream.__file__ or "").endswith(".py")
    parts = [f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"]
    parts += ["with PGO" if optimised else "without PGO", platform.machine(), "compiled" if compiled else "pure"]
    if splice is not splice_in_python:
        parts.append("splice in C")
    return ", ".join(parts)


def count() -> dict[str, float]:
    """Instructions by kind, per chunk and per request. Takes less than a minute on a quiet machine."""
    with TemporaryDirectory(prefix="antiphon-gate-") as folder:
        counts = Path(folder) / "counts"
        command = (
            *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", "--dump-before=getsid"),
            *(f"--callgrind-out-file={counts}", sys.executable, "-m", "lab.bench.gate_instructions"),
        )
        # A different hash seed gives a different order in every set, and different collisions in every dictionary.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise SystemExit(f"bench: the counted program failed:\n{done.stderr.decode(errors='replace')[-1000:]}")
        found = {}
        for number, kind in enumerate(KINDS):
            # A call begins each part and ends the last one. The file before the first part covers what came earlier.
            first = number * (_PARTS + 1) + 2
            files = [counts.parent / f"counts.{first + part}" for part in range(_PARTS)]
            found[kind] = min(map(_sum, files)) / (_TIMES[kind] * _per(kind))
        return found


def _sum(file: Path) -> int:
    summary = _SUMMARY.search(file.read_bytes())
    assert summary is not None, "no sum in what callgrind wrote"
    return int(summary[1])


def _per(kind: str) -> int:
    return CHUNKS if kind in CHUNK_KINDS else 1


async def _serve_all() -> None:
    async with open_paths() as plain, open_paths(QUOTAS) as limited, open_paths(CONSOLE) as watched:
        of_features = {"request with quotas": limited, "request with the console": watched}
        for kind in KINDS:
            await _serve(of_features.get(kind, plain), kind, _LEARNING[kind])
        _begin_to_count()
        for kind in KINDS:
            paths = of_features.get(kind, plain)
            # The warm-up runs also make valgrind translate the code before the count.
            await _serve(paths, kind, 1)
            gc.collect()
            for _ in range(_PARTS):
                os.getsid(0)
                await _serve(paths, kind, _TIMES[kind])
            os.getsid(0)


def _begin_to_count() -> None:
    """Start valgrind's count. Valgrind reads commands only while the program executes code, not while it waits."""
    with subprocess.Popen(["vgdb", f"--pid={os.getpid()}", "instrumentation", "on"]) as command:
        while command.poll() is None:
            pass
    if command.returncode:
        raise SystemExit("bench: valgrind did not begin to count")


async def _serve(paths: Paths, kind: str, times: int) -> None:
    of_kinds = (paths.stream, paths.crowd, paths.short, paths.chained, paths.long, paths.short, paths.short)
    messages = dict(zip(KINDS, of_kinds, strict=True))[kind]
    for _ in range(times):
        await paths.relay(messages, _per(kind))
    paths.tell()


def main() -> None:
    """Run the counted program."""
    configure("info", "json")
    uvloop.run(_serve_all())


if __name__ == "__main__":
    main()
