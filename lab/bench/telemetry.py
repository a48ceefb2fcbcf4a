"""Implements `scripts/bench telemetry`: measures the cost of telemetry per chunk and per small request, as ratios to a
run without telemetry.

Lives here: the variants (no telemetry; metrics and log lines, the default; in addition traces of 1 % and of all
requests), and the targets. Also: variants with the console's journal. The journal discards its entries, so its ratio
leaves out the writes to the store. Not here: the paths and the messages (`gate_path.py`).

All variants run in turn in one process without sockets. The divisor is only the processor's own work, so a real process
has smaller ratios. A reader consumes the log lines from a pipe, and a server accepts the spans. The CPU time of the
exporter's thread counts. The result is the minimum of each variant, as in the gate. The program computes the cost with
1 % traces. The program adds one hundredth of a sampled request's added cost to the cost of an unsampled request. A
batch would contain too few sampled requests.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from antiphon.app.build import App, build
from antiphon.app.owners import make_quotas
from antiphon.config.limits import QuotaSettings
from antiphon.config.operators import ConsoleSettings
from antiphon.config.processes import TracingSettings
from antiphon.config.settings import load_settings
from antiphon.doors.context import DoorContext
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.journal import Entry, Recording
from antiphon.engine.running.quotas import Quotas
from antiphon.observability.logs import configure
from antiphon.observability.observation import Observation, Telemetry
from antiphon.observability.otel import Tracer
from antiphon.supervisor.process import keep_what_there_is
from antiphon.types.transport import Headers
from lab.bench import telemetry_processes as processes
from lab.bench.gate_path import CHUNKS, QUOTAS, Paths
from lab.bench.unwatched import Nobody

_ROUNDS = 150
_STREAMS, _REQUESTS = 1, 25
_PLAIN, _LEFT_OUT = "metrics and logs", "left out"
_QUOTAS = "with quotas"
_JOURNAL, _RECORDED = "with the journal", "with recordings"
_FEW, _ALL = "with traces of 1 %", "with traces of all"
_FEATURE_AIM = 1.03
"""The maximum ratio of real processes with quotas, or with the console, to processes without, with Envoy's CPU time."""
_AIMS = {"chunk": 1.03, "request": 1.10}
"""The maximum ratio to no telemetry, for all variants except traces of all requests."""

_COLLECTOR = """
import asyncio
async def serve(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        size = int(head.lower().partition(b"content-length:")[2].partition(b"\\r")[0])
        await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(__import__("sys").stdin.read)
asyncio.run(main())
"""


class _Off(Telemetry):
    """A telemetry implementation that records nothing."""

    def observe(self, door: str, request_id: str, caller: Caller, headers: Headers | None = ()) -> Observation:
        return Nobody(request_id)


class _Discarding:
    """A journal that discards its entries."""

    def note(self, entry: Entry, recording: Recording | None) -> None:
        pass


class _Variant:
    def __init__(self, context: DoorContext, spans: BatchSpanProcessor | None = None) -> None:
        self.paths = Paths(context)
        self._endings = context.telemetry.endings
        self._spans = spans

    async def cpu(self, kind: str) -> float:
        """Microseconds of CPU for one chunk or one request."""
        messages, times, per = (
            (self.paths.stream, _STREAMS, CHUNKS) if kind == "chunk" else (self.paths.short, _REQUESTS, 1)
        )
        gc.collect()
        started = time.process_time()
        for _ in range(times):
            await self.paths.relay(messages, per)
        self._endings.tell()
        if self._spans is not None:
            self._spans.force_flush()
        return (time.process_time() - started) / (times * per) * 1e6


def _quotas(app: App) -> Quotas:
    """Quotas with every kind of limit for each owner, none of which is reached."""
    quotas = make_quotas(
        QuotaSettings.model_validate(QUOTAS["quotas"]),
        app.stores.quotas,
        lambda _: None,
        app.context.telemetry.metrics,
        app.context.telemetry.endings,
    )
    assert quotas is not None
    return quotas


async def _journaled(opened: AsyncExitStack, context: DoorContext, folder: Path, record: str) -> DoorContext:
    """`context` with a journal, and with the exchanges of a process that has the console. Of requests, the journal
    takes the contents that `record` names."""
    console = {"enabled": True, "record": record, "record_unstored": True}
    app = await build(load_settings({"data": str(folder / record), "console": console}), door="envoy")
    opened.push_async_callback(app.aclose)
    journal = {"journal": _Discarding(), "console": ConsoleSettings.model_validate(console), "in_flight": set()}
    telemetry = replace(context.telemetry, **journal)  # type: ignore[arg-type]
    return replace(context, new_exchange=app.context.new_exchange, telemetry=telemetry)


def _variants(
    app: App, collector: str, quotas: Quotas, journal: DoorContext, recorded: DoorContext
) -> dict[str, _Variant]:
    context = app.context

    def traced(share: float) -> _Variant:
        spans = BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{collector}/v1/traces"), max_queue_size=1 << 16)
        tracer = Tracer(TracingSettings(endpoint=collector, sample=share), "bench", spans)
        return _Variant(replace(context, telemetry=replace(context.telemetry, tracer=tracer)), spans)

    return {
        "nothing": _Variant(replace(context, telemetry=_Off(context.telemetry.metrics))),
        _PLAIN: _Variant(context),
        _QUOTAS: _Variant(replace(context, telemetry=replace(context.telemetry, reserve=quotas.open))),
        _JOURNAL: _Variant(journal),
        _RECORDED: _Variant(recorded),
        _LEFT_OUT: traced(0.0),
        _ALL: traced(1.0),
    }


async def _measure(collector: str, rounds: int) -> dict[str, dict[str, float]]:
    async with AsyncExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory(prefix="antiphon-bench-")))
        app = await build(load_settings({"data": str(folder / "data")}), door="envoy")
        quotas = _quotas(app)
        quotas.start()
        try:
            journals = [await _journaled(opened, app.context, folder, record) for record in ("off", "all")]
            variants = _variants(app, collector, quotas, *journals)
            keep_what_there_is()
            app.context.telemetry.endings.by_time(asyncio.get_running_loop())
            samples: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in variants} for kind in _AIMS}
            for number in range(rounds + 1):
                for kind, by_name in samples.items():
                    for name, variant in variants.items():
                        spent = await variant.cpu(kind)
                        if number:
                            by_name[name].append(spent)
            least = {kind: {name: min(all_of) for name, all_of in one.items()} for kind, one in samples.items()}
            for one in least.values():
                left_out = one.pop(_LEFT_OUT)
                one[_FEW] = left_out + (one[_ALL] - left_out) / 100
            return least
        finally:
            await quotas.aclose()
            await app.aclose()


@contextmanager
def _collector() -> Iterator[str]:
    """A process that accepts every POST. Returns its URL."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", _COLLECTOR], **pipes) as process:  # type: ignore[call-overload]
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def _log_reader() -> Iterator[None]:
    """Connect standard error to a pipe and read it, as a supervisor does."""
    before = os.dup(2)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        assert reader.stdin is not None
        os.dup2(reader.stdin.fileno(), 2)
        try:
            configure("info", "json")
            yield
        finally:
            os.dup2(before, 2)
            configure("error", "json")
            reader.stdin.close()


def _tell_in_process(found: dict[str, dict[str, float]]) -> bool:
    """Print the ratios. Returns whether every target is met."""
    met = True
    for kind, by_name in found.items():
        nothing = by_name["nothing"]
        print(f"CPU per {kind}, in process: {nothing:.2f} µs with nothing of it")
        for name, spent in by_name.items():
            if name == _QUOTAS:
                plain = by_name[_PLAIN]
                _tell(f"{name}, of {_PLAIN}", spent, spent / plain, None)
            elif name != "nothing":
                aim = None if name in (_ALL, _JOURNAL, _RECORDED) else _AIMS[kind]
                met &= _tell(name, spent, spent / nothing, aim)
    return met


def _tell_processes(found: dict[str, dict[str, list[processes.Spent]]]) -> bool:
    """Print the ratios. Returns whether every target is met."""
    met = True
    for door, by_name in found.items():
        if processes.NOTHING in by_name:
            nothing = processes.median(by_name, processes.NOTHING)
            print(f"CPU per request, {processes.DOORS[door]}: {nothing:.1f} µs with nothing of it")
        else:
            print(f"CPU per request, {processes.DOORS[door]}, with Envoy's, of the process without the feature:")
        for name in by_name:
            if name in processes.WITH_ENVOY:
                low, high = processes.spread(by_name, name)
                ratio = processes.ratio(by_name, name)
                met &= _tell(
                    name, processes.median(by_name, name), ratio, _FEATURE_AIM, f", quartiles {low:.3f} to {high:.3f}"
                )
            elif name != processes.NOTHING and processes.NOTHING in by_name:
                met &= _tell(name, processes.median(by_name, name), processes.ratio(by_name, name), _AIMS["request"])
    return met


def _tell(name: str, spent: float, ratio: float, aim: float | None, more: str = "") -> bool:
    met = aim is None or ratio <= aim
    verdict = "" if aim is None else f" (at most {aim:g}) {'good' if met else 'TOO MUCH'}"
    print(f"  {name:26} {spent:8.2f} µs  {ratio:.3f}x{more}{verdict}", flush=True)
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the ratios. The exit status is 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench telemetry", description="What metrics, logs and traces cost.")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="in process (0: none)")
    parser.add_argument("--process-rounds", type=int, default=20, help="of real processes (0: none)")
    parser.add_argument("--seconds", type=float, default=0.4, help="how long a real process is asked in a round")
    parser.add_argument("--connections", type=int, default=16, help="that ask a real process at once")
    parser.add_argument("--doors", default=",".join(processes.DOORS), help="which real processes")
    parser.add_argument("--features", action="store_true", help="only real processes with quotas and with the console")
    given = parser.parse_args(arguments)
    met = True
    if given.process_rounds:
        doors = given.doors.split(",")
        wanted = processes.ONLY_FEATURES if given.features else processes.ALL
        measured = processes.measure(doors, wanted, given.process_rounds, given.seconds, given.connections)
        met &= _tell_processes(asyncio.run(measured))
    if given.rounds and not given.features:
        with _collector() as collector, _log_reader(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            met &= _tell_in_process(runner.run(_measure(collector, given.rounds)))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
