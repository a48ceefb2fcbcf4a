"""Starts the load generator (`load.c`), and gives it jobs.

Lives here: the fields of a job, and the measurements that the generator returns. Not here: CPU and memory (`cpu.py`),
comparison (`run.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

from lab.bench.native import program
from lab.bench.variants import Process


class Job(TypedDict):
    """One job. `chunks` is the expected number of chunks of a stream (0: the answers are JSON). `marker` is a text
    without spaces that occurs once in every event with text. `stamps`: the texts have the form `@NANOSECONDS@`. With
    `stagger`, each connection begins so many seconds after the one before."""

    port: int
    path: str
    body: str
    connections: int
    seconds: float
    grace: float
    chunks: int
    marker: str
    stamps: bool
    stagger: float


async def start_load(folder: Path, number: int = 0) -> Process:
    """Start a load generator, which ends with its standard input."""
    return await Process.start(folder / f"load-{number}.log", str(program("load")), wait=False)


async def ask_load(load: Process, job: Job) -> dict[str, Any]:
    """Run a job. Returns the numbers of requests, chunks and errors, and the first error as `complaint`. Rates count
    only what ended within the window, and waiting times are quantiles in microseconds."""
    fields = (
        *(job["port"], job["path"], job["connections"], job["seconds"], job["grace"], job["chunks"]),
        *(int(job["stamps"]), job["stagger"], job["marker"] or "-", job["body"]),
    )
    answer: dict[str, Any] = json.loads(await load.ask(" ".join(map(str, fields))))
    return answer
