"""Measures the cost of telemetry in real processes, per small request: `antiphon serve`, and `antiphon extproc` behind
Envoy.

Lives here: the processes, their order and the ratios. Also: processes with quotas and with the console, whose CPU time
includes Envoy's. Not here: the measurement without sockets (`telemetry.py`), the process without telemetry
(`unwatched.py`).

All processes run during the whole benchmark, and get requests in turn over the same number of connections. The figure
is the CPU time of all threads of the process per request. The program computes ratios within a round and reports the
median over the rounds, which other load affects less than sums. Envoy's CPU time counts only in the ratios of quotas
and of the console (`WITH_ENVOY`).

Invariant: the benchmark stops each process that it started. Each process also ends by itself when the benchmark ends.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from antiphon.config.settings import load_settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.versions import find_envoy
from antiphon.supervisor.children import ParentPipe
from antiphon.supervisor.envoy_process import EnvoyAdmin
from lab.bench import cpu, priority
from lab.bench.load import Job, ask_load, start_load
from lab.bench.upstream import start_upstream
from lab.bench.variants import FEATURES, RESPONSES, Process, poll

DOORS = {"serve": "antiphon serve", "extproc": "antiphon extproc, behind Envoy"}
NOTHING, PIPE = "nothing", "on, lines to a pipe"
QUOTAS, MINUTE_QUOTAS, CONSOLE = "with five quotas", "with two quotas per minute", "with the console"
_WATCHED = {
    PIPE: ("antiphon", "info", True),
    QUOTAS: ("antiphon", "info", True),
    MINUTE_QUOTAS: ("antiphon", "info", True),
    CONSOLE: ("antiphon", "info", True),
    "on, lines to a file": ("antiphon", "info", False),
    "on, without lines": ("antiphon", "error", True),
    NOTHING: ("lab.bench.unwatched", "error", True),
}
"""For each process: the program, its `log.level`, and whether a reader consumes its standard error through a pipe, as
under a supervisor."""

_PIPED = 'exec "$@" 2> >(exec cat > "$0")'


WITH_ENVOY = {
    QUOTAS: FEATURES["-quotas"],
    MINUTE_QUOTAS: {name: value for name, value in FEATURES["-quotas"].items() if name.endswith("PER_MINUTE")},
    CONSOLE: FEATURES["-console"],
}
"""The environment of the processes with a feature: quotas, or the console."""
ALL = tuple(_WATCHED)
"""The names of all processes."""
ONLY_FEATURES = (PIPE, *WITH_ENVOY)
"""The processes with a feature, and the process with which they are compared. None of them replaces code, so they can
be compiled."""


@dataclass
class Asked:
    """A process, its address, and the Envoy in front of it."""

    process: Process
    port: int
    envoy: Process | None = None


class Spent(NamedTuple):
    """Microseconds of CPU time per request, of the process alone and together with its Envoy."""

    process: float
    both: float


async def measure(
    doors: list[str], wanted: Sequence[str], rounds: int, seconds: float, connections: int
) -> dict[str, dict[str, list[Spent]]]:
    """The CPU time per request by server, process and round. `wanted`: the names of the processes to measure."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="antiphon-bench-")))
        pipe = ParentPipe()
        stack.callback(pipe.close)
        upstream, load = await start_helpers(stack, folder)
        asked: dict[str, dict[str, Asked]] = {door: {} for door in doors}
        for door in doors:
            for number, name in enumerate(wanted):
                place = folder / f"{door}-{number}"
                place.mkdir()
                asked[door][name] = await _start(stack, door, name, int(upstream.ready), place, pipe)
        found: dict[str, dict[str, list[Spent]]] = {door: {name: [] for name in wanted} for door in doors}
        for number in range(rounds + 1):
            for door in doors:
                # The order changes with each round.
                first = number % len(wanted)
                for name in (*wanted[first:], *wanted[:first]):
                    spent = await _ask(load, asked[door][name], seconds, connections)
                    if number:
                        found[door][name].append(spent)
        return found


def ratio(by_name: dict[str, list[Spent]], name: str) -> float:
    """The median of the rounds' ratios to the process without telemetry. For quotas and the console: the ratios to the
    process with telemetry, with Envoy's CPU time."""
    if name in WITH_ENVOY:
        return statistics.median(one.both / plain.both for one, plain in zip(by_name[name], by_name[PIPE], strict=True))
    return statistics.median(
        one.process / none.process for one, none in zip(by_name[name], by_name[NOTHING], strict=True)
    )


def spread(by_name: dict[str, list[Spent]], name: str) -> tuple[float, float]:
    """The quartiles of the rounds' ratios of a process with a feature."""
    pairs = zip(by_name[name], by_name[PIPE], strict=True)
    low, _, high = statistics.quantiles((one.both / plain.both for one, plain in pairs), n=4)
    return low, high


def median(by_name: dict[str, list[Spent]], name: str) -> float:
    """The median CPU time in the rounds, which `ratio` compares."""
    return statistics.median(one.both if name in WITH_ENVOY else one.process for one in by_name[name])


async def start_helpers(stack: AsyncExitStack, folder: Path) -> tuple[Process, Process]:
    """The upstream and the load generator."""
    helpers = await start_upstream(folder), await start_load(folder)
    priority.lift(process.pid for process in helpers)
    for process in helpers:
        stack.push_async_callback(process.stop)
    return helpers


async def _start(stack: AsyncExitStack, door: str, name: str, upstream: int, folder: Path, pipe: ParentPipe) -> Asked:
    program, level, piped = _WATCHED[name]
    before = ("/bin/bash", "-c", _PIPED, str(folder / "lines")) if piped else ()
    command = (*before, sys.executable, "-m", program)
    return await start(stack, door, command, level, upstream, folder, pipe, WITH_ENVOY.get(name))


async def start(
    stack: AsyncExitStack,
    door: str,
    program: Sequence[str],
    level: str,
    upstream: int,
    folder: Path,
    pipe: ParentPipe,
    environment: Mapping[str, str] | None = None,
) -> Asked:
    """Start a server's process, with an Envoy in front of it if needed, and wait until it serves."""
    command = [
        *(*program, door, "--upstream", f"http://127.0.0.1:{upstream}/v1", "--auth", "none"),
        *("--listen", "127.0.0.1:0", "--data", str(folder / "data"), "--log-level", level, "--log-format", "json"),
    ]
    process = await Process.start(folder / "log", *command, wait=door == "serve", pipe=pipe, environment=environment)
    stack.push_async_callback(process.stop)
    priority.lift([process.pid, *cpu.children(process.pid)])
    if door == "serve":
        return Asked(process, int(process.ready.removesuffix("/v1").rpartition(":")[2]))
    grpc, http = folder / "data" / "sidecar-0.grpc.sock", folder / "data" / "sidecar-0.http.sock"
    await poll(process, lambda: _there(grpc, http))
    settings = load_settings(
        {
            "upstream": {"url": f"http://127.0.0.1:{upstream}/v1", "auth": "none"},
            "data": str(folder / "data"),
            "listen": "127.0.0.1:0",
        }
    )
    config = bootstrap(settings, sidecars=[SidecarEndpoint(f"unix:{grpc}", f"unix:{http}")])
    (folder / "envoy.yaml").write_text(to_yaml(config))
    envoy = await Process.start(
        folder / "envoy.log",
        *(str(find_envoy(None)), "-c", str(folder / "envoy.yaml"), "--disable-hot-restart", "--log-level", "warning"),
        wait=False,
        pipe=pipe,
    )
    stack.push_async_callback(envoy.stop)
    admin = EnvoyAdmin(settings.place(settings.envoy.admin))
    await poll(envoy, admin.is_live)
    priority.lift([envoy.pid, *cpu.children(envoy.pid)])
    return Asked(process, await admin.bound_port("public") or 0, envoy)


async def _there(*sockets: Path) -> bool:
    return all(socket.exists() for socket in sockets)


async def _ask(load: Process, asked: Asked, seconds: float, connections: int) -> Spent:
    """Send requests to one process."""
    job = Job(
        port=asked.port,
        path=RESPONSES.path,
        body=RESPONSES.body("json", stream=False),
        connections=connections,
        seconds=seconds,
        grace=5.0,
        chunks=0,
        marker="",
        stamps=False,
        stagger=0.0,
    )
    processes = [asked.process.pid] if asked.envoy is None else [asked.process.pid, asked.envoy.pid]
    before = [cpu.cpu_seconds([pid]) for pid in processes]
    answer = await ask_load(load, job)
    if answer["errors"] or answer["unfinished"] or not answer["requests"]:
        raise SystemExit(f"bench: {answer['complaint'] or 'requests were not answered'}")
    spent = [cpu.cpu_seconds([pid]) - was for pid, was in zip(processes, before, strict=True)]
    return Spent(*(seconds / int(answer["requests"]) * 1e6 for seconds in (spent[0], sum(spent))))
