"""Starts and stops the compared variants.

Lives here: the processes of every variant, their requests, and which processes count as sidecar and which as Envoy. Not
here: the load (`load.py`), the measurements (`run.py`).

The variants without Antiphon use Antiphon's Envoy configuration with only one route. This configuration has the same
connection manager, cluster and number of threads. So only the external processor differs.

Invariant: the benchmark stops each process that it started, by its id. Each process also ends by itself when the
benchmark ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import antiphon
from antiphon.config.settings import load_settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.versions import find_envoy
from antiphon.supervisor import parent_guard
from antiphon.supervisor.children import ParentPipe
from antiphon.supervisor.envoy_process import EnvoyAdmin
from lab.bench import cpu, priority

Values = dict[str, float]

_START_SECONDS = 30.0
_STOP_SECONDS = 8.0
CHAINS = (1, 50, 200)
"""The numbers of stored turns of the chains that a request continues."""
_SOURCES = Path(__file__).parents[2] / "src"
_PROCESSOR, _ROUTER = "envoy.filters.http.ext_proc", "envoy.filters.http.router"

LABELS = {
    "direct": "no proxy (client to upstream)",
    "envoy": "Envoy alone",
    "echo": "Envoy + no-op ext_proc",
    "echo-grpcio": "Envoy + no-op ext_proc, grpc.aio",
    "relay": "Antiphon, relay",
    "relay-grpcio": "Antiphon, relay, grpc.aio",
    "drive": "Antiphon, drive",
    "drive-grpcio": "Antiphon, drive, grpc.aio",
    "http": "Antiphon, HTTP server (no Envoy)",
    "relay-pure": "Antiphon, relay, not compiled",
    "http-pure": "Antiphon, HTTP server, not compiled",
    "relay-quotas": "Antiphon, relay, with quotas",
    "relay-console": "Antiphon, relay, with the console",
}

_PURE = "-pure"
_PLENTY = 1_000_000
_RATES = ("REQUESTS_PER_MINUTE", "TOKENS_PER_MINUTE", "TOKENS_PER_MONTH", "COST_PER_MONTH")
FEATURES = {
    _PURE: {"PYTHONPATH": str(_SOURCES)},
    "-quotas": {
        **{f"ANTIPHON_QUOTAS__EACH_OWNER__{limit}": str(1000 * _PLENTY) for limit in _RATES},
        "ANTIPHON_QUOTAS__EACH_OWNER__PARALLEL_REQUESTS": str(_PLENTY),
    },
    "-crowd": {"ANTIPHON_LIMITS__OWNER_REQUESTS": "0"},
    "-console": {"ANTIPHON_CONSOLE__ENABLED": "true", "ANTIPHON_CONSOLE__LISTEN": "127.0.0.1:0"},
}
"""The environment of the variants of another build or with another feature, by the end of the variant's name. No
request reaches a quota. The console records no contents."""
_SPECIAL = tuple(ending for ending in FEATURES if ending != _PURE)


def usual() -> list[str]:
    """The default variants: both builds if Antiphon is compiled, without the variants of a feature."""
    left_out = _SPECIAL if antiphon.compiled() else tuple(FEATURES)
    return [name for name in LABELS if not name.endswith(left_out)]


@dataclass(frozen=True)
class Protocol:
    """The request format of a variant, and a marker that occurs once in every event with a fragment of output.

    `markers` has one marker for each kind of stream. In `burst` and `paced` the marker counts text events. `prefix` is
    put before a model's name.
    """

    path: str
    markers: dict[str, str]
    fields: Callable[[str | list[dict[str, str]]], dict[str, Any]]
    prefix: str = ""

    def body(self, model: str, *, stream: bool, size: int = 0, turns: bool = False, **more: Any) -> str:
        """The body of a request for this model, with `size` bytes of user text, or with turns of 1 KB each instead of
        one text."""
        said: str | list[dict[str, str]] = _SAID if not size else _long(size)
        if turns:
            said = [
                {"role": ("user", "assistant")[at % 2], "content": _long(_TURN)} for at in range(size // _TURN_BYTES)
            ]
            said.append({"role": "user", "content": _SAID})
        return json.dumps({"model": self.prefix + model, "stream": stream, **self.fields(said), **more})

    def marker(self, model: str) -> str:
        """The marker that the load generator counts in the answers of this model."""
        kind = model.partition("-")[0]
        return self.markers.get(kind, self.markers["burst"])


_SAID = "Say something that is long enough to be worth streaming. "
# A turn of 1,055 characters takes about 1,100 bytes in a body.
_TURN, _TURN_BYTES = 1055, 1100


def _long(size: int) -> str:
    return (_SAID * (size // len(_SAID) + 1))[:size]


def _messages(said: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Be brief."},
        *([{"role": "user", "content": said}] if isinstance(said, str) else said),
    ]


CHAT = Protocol(
    "/v1/chat/completions",
    {"burst": '"content":"', "tools": '"arguments":"', "reasoning": '"reasoning_content":"'},
    lambda said: {"messages": _messages(said)},
)
# Requests do not store their response unless a job requests this, because the comparison excludes the disk.
RESPONSES = Protocol(
    "/v1/responses",
    {"burst": '"delta":"'},
    lambda said: {"instructions": "Be brief.", "input": said, "store": False},
)


@dataclass
class Process:
    """A process of the benchmark, with its standard streams."""

    handle: asyncio.subprocess.Process
    ready: str = ""
    log: Path | None = None
    reader: asyncio.subprocess.Process | None = None
    """The process that reads the log lines from the pipe, if there is one."""

    @classmethod
    async def start(
        cls,
        log: Path,
        *command: str,
        wait: bool = True,
        pipe: ParentPipe | None = None,
        piped: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a process. With `wait`, returns when the process prints `ready: …`. `pipe` is for programs that do not
        read their standard input.

        `piped`: the log lines go into a pipe with a reader, as in a container, instead of directly into the file.
        """
        if pipe is not None:
            # Wait a moment, because a program that is starting may miss a SIGTERM.
            command = (
                sys.executable,
                "-I",
                "-S",
                str(Path(parent_guard.__file__)),
                str(pipe.reading),
                "0.05",
                *command,
            )
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        reader = None
        with log.open("wb") as file, contextlib.ExitStack() as ends:
            errors: BinaryIO = file
            if piped:
                read_end, write_end = os.pipe()
                source = ends.enter_context(os.fdopen(read_end, "rb"))
                errors = ends.enter_context(os.fdopen(write_end, "wb"))
                reader = await asyncio.create_subprocess_exec("cat", stdin=source, stdout=file, start_new_session=True)
            handle = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**plain, **(environment or {})},
                limit=1 << 22,
                pass_fds=(pipe.reading,) if pipe is not None else (),
                # Ctrl-C reaches only the benchmark, which then stops its processes in order.
                start_new_session=True,
            )
        self = cls(handle, log=log, reader=reader)
        if wait:
            assert handle.stdout is not None
            try:
                async with asyncio.timeout(_START_SECONDS):
                    line = (await handle.stdout.readline()).decode()
            except BaseException:
                await self.stop()
                raise
            if not line.startswith("ready: "):
                await self.stop()
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-4000:]}")
            self.ready = line.removeprefix("ready: ").strip()
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        return self.handle.pid

    async def ask(self, line: str) -> str:
        """Write a line to the process. Returns the line that it answers."""
        assert self.handle.stdin is not None
        assert self.handle.stdout is not None
        self.handle.stdin.write(line.encode() + b"\n")
        answer = await self.handle.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process of the benchmark ended:\n{self.log.read_text()[-4000:] if self.log else ''}")
        return answer.decode()

    async def stop(self) -> None:
        """Close the standard input and send SIGTERM. Kill the process if it does not end."""
        if self.handle.stdin is not None:
            self.handle.stdin.close()
        for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
            if self.handle.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                self.handle.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.handle.wait()
        if self.reader is not None:
            # The log reader ends when the last writer of the pipe has ended.
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self.reader.wait()
            except TimeoutError:
                self.reader.kill()


@dataclass
class Variant:
    """A running variant: its address, and the processes of its sidecar and its Envoy."""

    name: str
    protocol: Protocol
    port: int
    peer: bool = False
    """Whether the variant is another program, which runs only some of the jobs."""
    chains: dict[int, str] = field(default_factory=dict)
    """The last response of each stored chain by its turns, if the variant stores."""
    processes: list[Process] = field(default_factory=list)
    sidecar: list[int] = field(default_factory=list)
    """All processes except Envoy's. For a peer these are its root processes, and their descendants count too."""
    envoy: list[int] = field(default_factory=list)

    def cpu_seconds(self) -> Values:
        """The CPU seconds so far of `sidecar` and `envoy`, where such processes exist."""
        count = cpu.tree_seconds if self.peer else cpu.cpu_seconds
        parts = {"sidecar": self.sidecar, "envoy": self.envoy}
        return {part: count(pids) for part, pids in parts.items() if pids}

    async def stop(self) -> None:
        """Stop all processes of the variant, Envoy first."""
        for process in reversed(self.processes):
            await process.stop()


async def start_variant(name: str, upstream: int, folder: Path, pipe: ParentPipe, *, workers: int = 1) -> Variant:
    """Start one variant in front of the upstream on this port. The variant ends when the pipe is closed, or earlier.

    `workers` is the number of Antiphon's processes behind one Envoy.
    """
    folder.mkdir(exist_ok=True)
    if name == "direct":
        return Variant(name, CHAT, upstream)
    if name == "envoy" or name.startswith("echo"):
        return await _start_envoy(name, upstream, folder, pipe)
    return await _start_antiphon(name, upstream, folder, pipe, workers)


async def _start_antiphon(name: str, upstream: int, folder: Path, pipe: ParentPipe, workers: int) -> Variant:
    mode, transport = _mode_and_transport(name)
    environment = next((values for ending, values in FEATURES.items() if name.endswith(ending)), {})
    door = ("--door", "http") if mode == "http" else ("--mode", mode, "--transport", transport)
    process = await Process.start(
        folder / "log",
        *(sys.executable, "-m", "antiphon", "up", "--upstream", f"http://127.0.0.1:{upstream}/v1"),
        *("--listen", "127.0.0.1:0", "--data", str(folder / "data"), *door),
        *("--workers", str(workers)),
        pipe=pipe,
        piped=True,
        environment=environment,
    )
    port = int(process.ready.removesuffix("/v1").rpartition(":")[2])
    variant = Variant(name, RESPONSES, port, processes=[process])
    # The parent process copies its children's log lines, so its CPU time is part of the cost of a request.
    for pid in (process.pid, *cpu.children(process.pid)):
        (variant.envoy if cpu.program(pid).startswith("envoy") else variant.sidecar).append(pid)
    if len(variant.sidecar) <= workers or bool(variant.envoy) == (mode == "http"):
        await variant.stop()
        raise RuntimeError(f"{name}: its processes were not recognised")
    priority.lift([*variant.sidecar, *variant.envoy])
    variant.chains = await asyncio.to_thread(store_chains, port, CHAINS)
    return variant


def store_chains(port: int, depths: Sequence[int]) -> dict[int, str]:
    """Store a chain of responses as the load generator's owner. Returns the ids of the turns in `depths`."""
    last, found = "", {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
    with contextlib.closing(connection):
        for turn in range(max(depths)):
            more: dict[str, Any] = {"previous_response_id": last} if last else {}
            headers = {"content-type": "application/json", "authorization": "Bearer bench"}
            body = RESPONSES.body("json", stream=False, store=True, **more)
            connection.request("POST", RESPONSES.path, body, headers)
            last = json.load(connection.getresponse())["id"]
            if turn + 1 in depths:
                found[turn + 1] = last
    return found


def _mode_and_transport(name: str) -> tuple[str, str]:
    """The mode and transport in a variant's name; the default transport is the fast one."""
    for ending in FEATURES:
        name = name.removesuffix(ending)
    mode, _, transport = name.partition("-")
    return mode, transport or "http2"


async def _start_envoy(name: str, upstream: int, folder: Path, pipe: ParentPipe) -> Variant:
    variant = Variant(name, CHAT, 0)
    try:
        mode, transport = _mode_and_transport(name)
        if mode == "echo":
            sidecar = await Process.start(
                folder / "echo.log",
                *(sys.executable, "-m", "lab.bench.echo", str(folder / "echo.sock"), transport),
            )
            variant.processes.append(sidecar)
            variant.sidecar.append(sidecar.pid)
        config = folder / "envoy.yaml"
        config.write_text(to_yaml(plain_bootstrap(upstream, folder, with_filter=mode == "echo")))
        envoy = await Process.start(
            folder / "envoy.log",
            *(str(find_envoy(None)), "-c", str(config), "--disable-hot-restart", "--log-level", "warning"),
            wait=False,
            pipe=pipe,
        )
        variant.processes.append(envoy)
        admin = EnvoyAdmin(f"unix:{folder / 'envoy-admin.sock'}")
        await poll(envoy, admin.is_live)
        variant.port = await admin.bound_port("public") or 0
        variant.envoy = [pid for pid in (envoy.pid, *cpu.children(envoy.pid)) if cpu.program(pid).startswith("envoy")]
        if not variant.port or not variant.envoy:
            raise RuntimeError(f"{name}: Envoy was not recognised")
        priority.lift([*variant.sidecar, *variant.envoy])
    except BaseException:
        await variant.stop()
        raise
    return variant


def plain_bootstrap(upstream: int, folder: Path, *, with_filter: bool) -> dict[str, Any]:
    """Antiphon's bootstrap with one route to the upstream, with or without its filter."""
    settings = load_settings(
        {"upstream": {"url": f"http://127.0.0.1:{upstream}/v1"}, "data": str(folder), "listen": "127.0.0.1:0"}
    )
    config = bootstrap(settings, sidecars=[SidecarEndpoint(f"unix:{folder}/echo.sock", f"unix:{folder}/none.sock")])
    static = config["static_resources"]
    static["listeners"] = static["listeners"][:1]
    wanted = ("model", "sidecar_grpc") if with_filter else ("model",)
    static["clusters"] = [cluster for cluster in static["clusters"] if cluster["name"] in wanted]
    for cluster in static["clusters"]:
        cluster.pop("health_checks", None)
    manager = static["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    # Omit the other functions of Antiphon's Envoy, such as answering health checks.
    filters = {one["name"]: one for one in manager["http_filters"]}
    filters[_PROCESSOR].pop("disabled", None)
    manager["http_filters"] = [filters[name] for name in ((_PROCESSOR, _ROUTER) if with_filter else (_ROUTER,))]
    for host in manager["route_config"]["virtual_hosts"]:
        host["routes"] = [route for route in host["routes"] if route.get("name") == "model/chat/completions"]
    return config


async def poll(process: Process, ready: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `ready` returns true. Raises if the process ends first."""
    async with asyncio.timeout(_START_SECONDS):
        while not await ready():
            if process.handle.returncode is not None:
                raise RuntimeError(
                    f"a process did not start:\n{process.log.read_text()[-4000:] if process.log else ''}"
                )
            await asyncio.sleep(0.05)
