"""`antiphon up`: everything, started, watched and drained.

Lives here: which processes there are, when they count as ready, and the order in which they stop. Not here: when a
child is started again (`supervisor.py`), one child's life (`children.py`) and settings (`child_settings.py`), Envoy's
configuration (`envoy/`) and admin port (`envoy_admin.py`), forwarding output (`child_output.py`), adding up metrics
(`up_metrics.py`).

Invariants: `ready: URL` is the one line on standard output, printed after a request through the listener was answered;
a signal lets requests in flight finish and refuses new ones; a child that dies or hangs is replaced, Envoy too, and the
others go on; when that is of no use all stop, and the exit status says so.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import structlog

from antiphon.app.data_folder import prepare_data
from antiphon.commands.asking import ask, own_tls
from antiphon.commands.child_output import ENVOY, ChildOutput
from antiphon.commands.child_settings import envoy_environment, placed_in
from antiphon.commands.children import Child, ParentPipe, describe_status
from antiphon.commands.early_ends import pass_on
from antiphon.commands.envoy_admin import EnvoyAdmin
from antiphon.commands.flags import settings_file
from antiphon.commands.listen_address import answers, free_address, join_address, refuse_own_upstream
from antiphon.commands.process import CLOSING_SECONDS, end_at_the_latest, hears_hangup, on_terminal
from antiphon.commands.readiness import START_SECONDS, announce, poll
from antiphon.commands.reloading import SettingsFile
from antiphon.commands.run_folder import run_folder, write_private
from antiphon.commands.service_manager import tell
from antiphon.commands.starting import check_named_files, warn
from antiphon.commands.supervisor import GivenUp, NotStarted, RestartPolicy, Supervised, tell_first
from antiphon.commands.up_reload import UpReload, read_settings
from antiphon.commands.worker_reload import swap_workers
from antiphon.commands.worker_starts import WorkerStarts
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.envoy.binary import find_envoy, version_of
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.versions import NEWEST
from antiphon.errors import AntiphonError, ConfigError
from antiphon.observability.logs import configure
from antiphon.types.transport import SECRET_HEADER

if TYPE_CHECKING:
    from antiphon.commands.up_metrics import UpMetrics

_log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0
_CLOSING_SECONDS = 1.7
"""From the end of the drain, or a second signal, to the end of all children."""
_END_SECONDS = 1.8
"""... and to the end of this process, by force if need be; two seconds are promised, and ending takes a moment."""
_ENVOY_SECONDS = 0.3
_LATE_SECONDS = 0.1
_HURRY_SECONDS = 0.5
"""While everything stops: an Envoy that hangs must not hold that up."""
_MEASURE_SECONDS = 2.0
_ENVOY_LOG = '{"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","logger":"envoy.%n","message":"%j"}'

_ENVOY_FLUSH_MILLISECONDS = "200"

_T = TypeVar("_T")


def run(arguments: argparse.Namespace) -> int:
    file = SettingsFile.of(settings_file(arguments))
    given = settings = read_settings(arguments)
    configure(settings.log.level, settings.log.format)
    check_named_files(settings)
    refuse_own_upstream(settings)
    settings = settings.model_copy(update={"listen": free_address(settings.listen)})
    warn(settings)

    async def serve() -> int:
        return await _Up(settings, UpReload(given, partial(read_settings, arguments), file)).run()

    # Not on uvloop: its subprocesses inherit descriptors they were not given.
    try:
        return asyncio.run(serve())
    except (ConfigError, NotStarted):
        raise
    except AntiphonError as error:
        if settings.log.format == "console":
            raise
        # Whoever collects the log of a running gateway wants its last line to be like the others.
        which = {"name": error.name, "deaths": error.deaths} if isinstance(error, GivenUp) else {}
        _log.error("gave_up", problem=str(error), **which)
        return 1


def _worker_start(settings: Settings) -> float:
    """How long a worker may take to start: a worker that waits for its database is not hung."""
    of_database = settings.state.start_within if settings.state.place.kind == "postgresql" else 0.0
    return START_SECONDS + of_database


class _Up:
    def __init__(self, settings: Settings, reload: UpReload) -> None:
        self._settings = settings
        self._reload = reload
        self._metrics_at = settings.metrics.listen
        self._pipe = ParentPipe()
        self._workers: list[Supervised] = []
        self._output = ChildOutput(settings, self._pass_on)
        self._envoy: Supervised | None = None
        self._envoy_version = NEWEST
        self._admin: EnvoyAdmin | None = None
        self._keeping: set[asyncio.Task[NoReturn]] = set()
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._clock = asyncio.get_running_loop().time
        self._last: float | None = None
        self._signalled = 0.0
        self._drain_seconds = settings.timeouts.drain
        # Workers of the HTTP door give notice themselves.
        self._notice = min(settings.timeouts.notice or 0.0, self._drain_seconds)
        self._metrics: UpMetrics | None = None

    async def run(self) -> int:
        stop, cut = asyncio.Event(), asyncio.Event()

        def on_signal() -> None:
            if stop.is_set():
                self._end_at(self._clock() + _CLOSING_SECONDS)
            else:
                self._signalled = self._clock()
            drain = 0.0 if stop.is_set() else self._drain_seconds
            end_at_the_latest(asyncio.get_running_loop(), drain + _END_SECONDS)
            (cut if stop.is_set() else stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
        terminal = on_terminal()
        if hears_hangup():
            # A terminal that was closed means the end.
            def on_hangup() -> None:
                (on_signal if terminal and not on_terminal() else self._reload.hangup.set)()

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
        prepare_data(self._settings.data)
        with run_folder(self._settings.data) as folder:
            self._starts = WorkerStarts(folder, self._pipe, self._output.take)
            try:
                async with self._showing_metrics():
                    return await self._serve(folder, stop, cut)
            finally:
                await self._stop_all()

    async def _serve(self, folder: Path, stop: asyncio.Event, cut: asyncio.Event) -> int:
        where = await self._until(stop, self._start(folder))
        if where is None:
            return 0
        for process in self._processes():
            process.everything_is_ready()
        self._output.everything_is_ready = True
        announce(self._settings, where)
        tell("READY=1")
        await self._until(stop, self._reload.run(partial(self._take, folder)))
        tell("STOPPING=1")
        # Each worker says what it has to finish, and what became of it; of what passes through, only Envoy knows.
        seconds = self._drain_seconds
        _log.info("draining", seconds=seconds, processes=len(self._processes()), **await self._in_flight("in_flight"))
        await self._keep_no_more()
        drained = await self._until(cut, self._drain())
        if drained:
            _log.info("drained")
        else:
            # After the drain's time each worker has reported what it cut, and Envoy alone serves what passes through. A
            # second signal comes before these reports: every request is one of Envoy's then, or its worker reports it.
            passing = sum((await self._in_flight("cut")).values())
            if self._admin is None:
                await self._stop_workers()
            _log.warning("stopped_with_requests_in_flight", cut=self._output.cut + passing)
        return 0 if drained else 1

    async def _in_flight(self, name: str) -> dict[str, int]:
        """How many requests Envoy has not answered whole, where there is an Envoy."""
        if self._admin is None:
            return {}
        return {name: await self._admin.requests_in_flight("antiphon", self._hurry())}

    async def _until(self, stop: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T | None:
        """What `work` returns; None when `stop` is set first. Raises `GivenUp` when a process is given up."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({task, stopped, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                raise self._failed.result()
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stopped.cancel()
            await asyncio.wait({task, stopped})

    async def _take(self, folder: Path, settings: Settings) -> None:
        """Have all workers serve with other settings. Raises `ConfigError` when one cannot; then none does."""
        taken = placed_in(settings.model_copy(update={"listen": self._settings.listen}), folder)

        def commit() -> None:
            self._settings = taken

        await swap_workers(self._workers, taken, commit)

    # Start

    async def _start(self, folder: Path) -> str:
        """Start everything; the address at which it answers."""
        self._settings = placed_in(self._settings, folder)
        if self._settings.door == "envoy":
            return await self._start_envoy(folder)
        return await self._start_http(folder)

    async def _start_envoy(self, folder: Path) -> str:
        settings = self._settings
        binary = find_envoy(settings.envoy.binary)
        self._envoy_version = await asyncio.to_thread(version_of, binary)
        # A configuration that cannot be made is told before anything is started.
        self._envoy_command(binary, folder)
        for number, place in enumerate(endpoints(settings)):
            self._add_worker(folder, f"sidecar {number}", place.http, "extproc", "--worker", str(number))
        # The sidecars first: Envoy's first health check then finds them.
        await poll(self._all_serving, "the sidecar processes", _worker_start(settings))
        admin = self._admin = EnvoyAdmin(settings.place(settings.envoy.admin))

        async def start() -> Child:
            command, environ = self._envoy_command(binary, folder), envoy_environment(settings)
            return await Child.start(
                ENVOY, command, environ, pipe=self._pipe, write_line=self._output.take, foreign=True
            )

        self._envoy = self._supervise(ENVOY, start, is_ready=admin.is_live, is_alive=admin.is_live)
        await poll(admin.is_live, "Envoy")
        all_healthy = 2 * settings.workers

        async def healthy() -> bool:
            return await admin.healthy_endpoints("sidecar_grpc", "sidecar_http") == all_healthy

        await poll(healthy, "the sidecar processes, as Envoy sees them,")
        host, port = parse_address(settings.listen)
        where = join_address(host, port or await admin.bound_port("public") or 0)
        # Another Envoy must listen where this one does.
        self._settings = settings.model_copy(update={"listen": where})
        await poll(lambda: answers(where, _STOP_SECONDS), f"http://{where}/ready")
        return where

    def _envoy_command(self, binary: Path, folder: Path) -> list[str]:
        settings = self._settings
        config = folder / "envoy.yaml"
        whole = bootstrap(settings, sidecars=endpoints(settings), version=self._envoy_version)
        write_private(config, fill_in_secret(to_yaml(whole), settings))
        command = [str(binary), "-c", str(config), "--disable-hot-restart", "--log-level", settings.envoy.log_level]
        # Sidecars wait for some of Envoy's lines, and its default is ten seconds.
        command += ["--file-flush-interval-msec", _ENVOY_FLUSH_MILLISECONDS]
        if settings.log.format == "json":
            command += ["--log-format", _ENVOY_LOG]
        if settings.envoy.log_level in ("info", "warning"):
            # It tells of every stream that a dead sidecar leaves, and each such request has a line with the same words.
            command += ["--component-log-level", "ext_proc:error"]
        if settings.envoy.concurrency is not None:
            command += ["--concurrency", str(settings.envoy.concurrency)]
        return command

    async def _start_http(self, folder: Path) -> str:
        host, port = parse_address(self._settings.listen)
        # The port is held here while the workers start, so that with port 0 all of them get the same one.
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
            if self._settings.workers > 1:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                holder.bind((host, port))
                port = int(holder.getsockname()[1])
            self._settings = self._settings.model_copy(update={"listen": join_address(host, port)})
            shared = ("--shared-port",) if self._settings.workers > 1 else ()
            for number in range(self._settings.workers):
                private = f"unix:{folder}/http-{number}.sock"
                name = f"http door {number}"
                self._add_worker(folder, name, private, "serve", *shared, "--private-port", private)
            await poll(self._all_serving, "the HTTP door", _worker_start(self._settings))
        where = join_address(host, port or self._output.port)
        # Another worker must listen where this one does.
        self._settings = self._settings.model_copy(update={"listen": where})
        await poll(lambda: answers(where, _STOP_SECONDS), f"http://{where}/ready")
        return where

    def _add_worker(self, folder: Path, name: str, private: str, *command: str) -> None:
        """A worker that we can ask on a port of its own."""
        files = self._settings.sidecar.tls
        tls: ssl.SSLContext | None = None
        if files.cert is not None and not private.startswith("unix:"):
            private, tls = f"https://{private}", own_tls(files)
        secret = self._settings.sidecar_secret()
        headers = {SECRET_HEADER: secret} if secret else None
        path = "/health" if self._metrics_at is None else "/metrics"

        asking = [] if self._workers else ["--ask-upstreams"]

        async def start() -> Child:
            while True:
                given = self._settings
                self._output.serving.discard(name)
                child = await self._starts.start(name, [*command, *asking], given)
                asking.clear()
                if given is self._settings:
                    return child
                # Others came meanwhile.
                child.kill()
                await child.wait()

        async def is_ready() -> bool:
            return name in self._output.serving

        async def is_alive(seconds: float) -> bool:
            life = process.life
            text = await ask(private, path, seconds, headers=headers, tls=tls)
            # What answered after a replacement may be either of the two.
            if text is not None and self._metrics is not None and process.life == life:
                self._metrics.take(name, life, text.decode())
            return text is not None

        process = self._supervise(name, start, is_ready=is_ready, is_alive=is_alive)
        self._workers.append(process)

    def _supervise(
        self,
        name: str,
        start: Callable[[], Awaitable[Child]],
        *,
        is_ready: Callable[[], Awaitable[bool]],
        is_alive: Callable[[float], Awaitable[bool]],
    ) -> Supervised:
        policy = RestartPolicy(hung=self._settings.timeouts.hung, starting=_worker_start(self._settings))
        process = Supervised(name, start, is_ready=is_ready, is_alive=is_alive, policy=policy)

        def gave_up(task: asyncio.Task[NoReturn]) -> None:
            self._keeping.discard(task)
            tell_first(self._failed, task)

        task = asyncio.ensure_future(process.keep())
        self._keeping.add(task)
        task.add_done_callback(gave_up)
        return process

    def _pass_on(self, line: str) -> bool:
        """Pass a line of Envoy's to the sidecars if it is for them; return whether it is."""
        children = [worker.child for worker in self._workers]
        return pass_on(line, [child.orders for child in children if child is not None and child.orders is not None])

    def _processes(self) -> list[Supervised]:
        return [*self._workers, *([self._envoy] if self._envoy is not None else [])]

    async def _all_serving(self) -> bool:
        return len(self._output.serving) == self._settings.workers

    # Numbers

    @asynccontextmanager
    async def _showing_metrics(self) -> AsyncIterator[None]:
        if self._metrics_at is None:
            yield
            return
        # Most gateways need not load this.
        from antiphon.commands.metrics_listener import metrics_listener
        from antiphon.commands.up_metrics import UpMetrics

        metrics = self._metrics = UpMetrics()

        async def measured() -> bytes:
            await asyncio.gather(*(process.is_alive(_MEASURE_SECONDS) for process in self._workers))
            return metrics.render(self._processes(), self._reload.counts)

        async with metrics_listener(self._metrics_at, measured) as at:
            _log.info("metrics", listen=at)
            yield

    # Stop

    async def _keep_no_more(self) -> None:
        """From now on what ends is not started again."""
        for task in self._keeping:
            task.cancel()
        if self._keeping:
            await asyncio.wait(self._keeping)

    async def _drain(self) -> bool:
        """After the notice refuse what is new, let what is in flight finish; False when the time was not enough."""
        seconds = self._drain_seconds
        last = self._signalled + seconds
        self._end_at(last + _CLOSING_SECONDS)
        if self._admin is not None:
            if self._notice:
                await self._admin.say_leaving(_HURRY_SECONDS)
                await asyncio.sleep(self._signalled + self._notice - self._clock())
            await self._admin.refuse_connections(_HURRY_SECONDS)
        children = [
            process.child for process in self._workers if process.child is not None and process.child.status is None
        ]
        for child in children:
            child.signal(signal.SIGTERM)
        # The workers know how long they may take, and end by themselves; one that cannot is killed.
        ends = [asyncio.ensure_future(child.wait()) for child in children]
        if ends:
            await asyncio.wait(ends, timeout=last + CLOSING_SECONDS + _LATE_SECONDS - self._clock())
        for child in children:
            if child.status is None:
                _log.error("killed", process=child.name, seconds=seconds + CLOSING_SECONDS)
                child.kill()
        if ends:
            # Those that were killed; what they had started may hold their output open for longer.
            await asyncio.wait(ends, timeout=_LATE_SECONDS)
        # What they finished may still be on its way through Envoy.
        if self._admin is not None:
            while await self._admin.requests_in_flight("antiphon", self._hurry()):
                if self._clock() > last:
                    return False
                await asyncio.sleep(_POLL_SECONDS)
        # One that knew no signals yet had served nobody.
        badly = [child for child in children if child.status not in (0, -signal.SIGTERM)]
        for child in badly:
            _log.warning("ended_badly", process=child.name, how=describe_status(child.status or 0))
        return not badly

    def _hurry(self) -> float:
        """How long Envoy, which may stand still, is waited for: the end of everything needs some time too."""
        return min(_HURRY_SECONDS, max(_LATE_SECONDS, self._left() - _ENVOY_SECONDS))

    def _left(self) -> float:
        """Until all children must have ended."""
        return math.inf if self._last is None else max(_LATE_SECONDS, self._last - self._clock())

    def _end_at(self, moment: float) -> None:
        self._last = moment if self._last is None else min(self._last, moment)

    async def _stop_all(self) -> None:
        """Stop what still runs, at once. Envoy first: the sidecars then see their clients leave, and note it."""
        await self._keep_no_more()
        self._end_at(self._clock() + _STOP_SECONDS)
        if self._envoy is not None and self._envoy.child is not None:
            await self._envoy.child.stop(min(_ENVOY_SECONDS, self._left()))
        await self._stop_workers()
        self._pipe.close()

    async def _stop_workers(self) -> None:
        self._end_at(self._clock() + _STOP_SECONDS)
        children = [process.child for process in self._workers if process.child is not None]
        for child in children:
            # Two different signals, so that they are two even if it was draining already or gets both at once.
            child.signal(signal.SIGINT)
        left = self._left()
        await asyncio.gather(*(child.stop(left) for child in children))
