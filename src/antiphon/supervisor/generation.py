"""Manages one generation of `antiphon up`: the processes that serve with one set of settings.

A reload of the settings starts a new generation, which takes over from the former generation.

`commands/up.py` starts a new generation, and `supervision.py` restarts a process that dies. `children.py` manages one
process, `child_settings.py` creates its settings, and `child_output.py` forwards its output. `envoy_process.py` queries
Envoy, and `merged_metrics.py` merges the workers' metrics.

Invariants: if `start` fails, the former generation continues to serve. The generation that began a request also ends
it. If a worker or Envoy dies or hangs, the parent process replaces it, and the other processes continue.

A handover loses no connection. The workers of the HTTP server inherit the listening sockets of the former workers
(`HeldPorts`). Envoy's hot restart passes Envoy's listeners to the next Envoy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import shutil
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from antiphon.config.settings import Settings
from antiphon.envoy.sidecars import endpoints
from antiphon.errors import AntiphonError
from antiphon.supervisor.child_output import ENVOY, ChildOutput
from antiphon.supervisor.child_settings import envoy_environment, file_values, placed_in, worker_environment
from antiphon.supervisor.children import Child, ParentPipe, describe_status
from antiphon.supervisor.envoy_process import RELEASE_SECONDS, EnvoyAdmin, EnvoyProcess
from antiphon.supervisor.http_probe import ask, own_tls
from antiphon.supervisor.listen_address import HeldPorts, SocketFlags, answers, at_addresses, inherited
from antiphon.supervisor.process import CLOSING_SECONDS, COUNTS_SECONDS, QUIET_SECONDS
from antiphon.supervisor.run_folder import write_private
from antiphon.supervisor.supervision import POLL_SECONDS, START_SECONDS, RestartPolicy, Supervised, poll, tell_first
from antiphon.supervisor.worker_orders import ENVOY_ENDED, outlive_envoy, pass_on_line
from antiphon.types.transport import SECRET_HEADER

if TYPE_CHECKING:
    from antiphon.supervisor.merged_metrics import MergedMetrics

_log = structlog.get_logger(__name__)

_STOP_SECONDS = 5.0
_ENVOY_SECONDS = 0.3
_LATE_SECONDS = 0.1
_HURRY_SECONDS = 0.5
"""The timeout in seconds for queries to Envoy during a stop, because an Envoy that hangs must not delay the stop."""
_GIVE_WAY_SECONDS = 5.0
_MEASURE_SECONDS = COUNTS_SECONDS / 2


@dataclass(frozen=True)
class Surroundings:
    """The objects that all generations of one `antiphon up` share. `folder` is the run folder, `port` keeps the HTTP
    server's ports open, and `numbers` yields the number of the next generation."""

    folder: Path
    pipe: ParentPipe
    port: HeldPorts
    metrics: MergedMetrics | None
    numbers: Iterator[int] = field(default_factory=itertools.count)


class Generation:
    """The processes that serve with one set of settings. `former` is the generation that this generation replaces."""

    def __init__(self, settings: Settings, around: Surroundings, former: Generation | None = None) -> None:
        self.number = next(around.numbers)
        self.given = settings
        """The settings as the operator set them."""
        self._around = around
        self._former = former
        folder = around.folder / str(self.number)
        folder.mkdir(mode=0o700)
        self.settings = placed_in(settings, folder, around.folder)
        """The settings that the child processes get."""
        self._folder = folder
        self._output = ChildOutput(settings, self._pass_on)
        self.workers: list[Supervised] = []
        self.envoy: Supervised | None = None
        self._binary: EnvoyProcess | None = None
        self._admin: EnvoyAdmin | None = None
        self._keeping: set[asyncio.Task[NoReturn]] = set()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """A future with the error, when the parent process gives up restarting a process."""
        self._clock = asyncio.get_running_loop().time
        self._last: float | None = None

    @property
    def processes(self) -> list[Supervised]:
        """The workers and Envoy, which the parent process restarts when they end."""
        return [*self.workers, *([self.envoy] if self.envoy is not None else [])]

    # The methods below start the processes.

    async def start(self) -> None:
        """Start all processes and wait until they serve. From then on, new clients reach these processes instead of the
        former generation.

        Raises `AntiphonError`.
        """
        with self._around.port.for_two_generations():
            await self._start()
            for process in self.processes:
                process.everything_is_ready()
            self._output.everything_is_ready = True
            if self._former is not None:
                await self._former.give_way()
                self._former = None

    async def _start(self) -> None:
        envoy = self.settings.door == "envoy"
        starting = asyncio.ensure_future(self._start_envoy() if envoy else self._start_http())
        both: set[asyncio.Future[Any]] = {starting, self.failed}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self.failed.done():
                raise self.failed.result()
            starting.result()
        finally:
            starting.cancel()
            await asyncio.wait({starting})

    async def _start_envoy(self) -> None:
        settings, former = self.settings, self._former
        admin = self._admin = EnvoyAdmin(settings.place(settings.envoy.admin))
        before = None
        if former is not None:
            assert former._admin is not None
            # The next Envoy closes the admin listener, so this process opens its connection to the former Envoy first.
            await former._admin.is_live()
            before = former._binary
        # `prepare` raises `ConfigError` before any process starts, if the configuration is wrong.
        binary = self._binary = await EnvoyProcess.prepare(settings, self._folder, self._around.folder, before)
        for number, place in enumerate(endpoints(settings)):
            self._add_worker(f"sidecar {number}", place.http, "extproc", "--worker", str(number))
        # The sidecars start first, so that Envoy's first health check finds them.
        await poll(self._all_serving, "the sidecar processes", _worker_start(settings))

        def run(command: list[str]) -> Awaitable[Child]:
            environ, pipe = envoy_environment(settings), self._around.pipe
            return Child.start(ENVOY, command, environ, pipe=pipe, write_line=self._output.take, foreign=True)

        async def start() -> Child:
            return await run(binary.next_command())

        if (command := binary.renewing_command()) is not None:
            renewing, its_admin = await run(command), EnvoyAdmin(binary.renewing_admin)
            try:
                await poll(its_admin.is_live, "the Envoy that recreates the shared memory")
            finally:
                its_admin.close()
                await renewing.stop(_STOP_SECONDS, foreign=True)
        self.envoy = self._supervise(ENVOY, start, is_ready=admin.is_live, is_alive=admin.is_live)
        await poll(admin.is_live, "Envoy")
        if former is not None:
            return
        all_healthy = 2 * settings.workers

        async def healthy() -> bool:
            return await admin.healthy_endpoints("sidecar_grpc", "sidecar_http") == all_healthy

        await poll(healthy, "the sidecar processes, as Envoy sees them,")
        at = settings.console.listen if settings.console.enabled else None
        console = await admin.bound_address("console", at) if at is not None else None
        await self._answers(await admin.bound_address("public", settings.listen), console)
        # A restarted Envoy must listen on the same port, which may have been chosen at the first start.
        binary.write(self.settings)

    async def _start_http(self) -> None:
        workers = self.settings.workers
        for number in range(workers):
            private = f"unix:{self._folder}/http-{number}.sock"
            name = f"http door {number}"
            self._add_worker(name, private, "serve", "--private-port", private, sockets=(number, workers))
        await poll(self._all_serving, "the HTTP server", _worker_start(self.settings))
        console = self._around.port.console
        await self._answers(self._around.port.clients.address, console.address if console else None)

    async def _answers(self, where: str, console: str | None) -> None:
        """Wait until this generation answers a request at the clients' address `where`. `console` is the console's
        address."""
        self.settings = at_addresses(self.settings, where, console)
        await poll(lambda: answers(where, _STOP_SECONDS), f"http://{where}/ready")

    def _add_worker(self, name: str, private: str, *command: str, sockets: tuple[int, int] | None = None) -> None:
        """Add a worker with a private port for health checks. `sockets` is (the worker's number, the number of
        workers), from which `HeldPorts` chooses the sockets of the worker."""
        settings, metrics = self.settings, self._around.metrics
        files = settings.sidecar.tls
        tls: ssl.SSLContext | None = None
        if files.cert is not None and not private.startswith("unix:"):
            private, tls = f"https://{private}", own_tls(files)
        secret = settings.sidecar_secret()
        headers = {SECRET_HEADER: secret} if secret else None
        path = "/health" if metrics is None else "/metrics"
        asking = [] if self.workers else ["--ask-upstreams"]

        async def start() -> Child:
            self._output.serving.discard(name)
            if sockets is not None and process.life:
                # The sockets are renewed, because connections in the dead worker's queue would wait for the new worker.
                self._around.port.renew(*sockets)
            given = self._around.port.of_worker(*sockets) if sockets is not None else {}
            child = await self._start_worker(name, [*command, *asking], given)
            asking.clear()
            return child

        async def is_ready() -> bool:
            return name in self._output.serving

        async def is_alive(seconds: float) -> bool:
            life = process.life
            text = await ask(private, path, seconds, headers=headers, tls=tls)
            # The worker may be replaced during the query, so the answer may come from either process.
            if text is not None and metrics is not None and process.life == life:
                metrics.take(f"{self.number} {name}", life, text.decode())
            return text is not None

        process = self._supervise(name, start, is_ready=is_ready, is_alive=is_alive)
        self.workers.append(process)

    async def _start_worker(self, name: str, command: Sequence[str], sockets: SocketFlags) -> Child:
        """Start a worker. It reads its settings from a file that only this user can read, and its secrets from
        environment variables."""
        file = self._folder / "settings.json"
        write_private(file, json.dumps(file_values(self.settings)))
        words = [sys.executable, "-m", "antiphon", *command, "--config", str(file), *inherited(sockets)]
        files = [one.fileno() for some in sockets.values() for one in some]
        environ, write_line = worker_environment(self.settings), self._output.take
        return await Child.start(name, words, environ, pipe=self._around.pipe, write_line=write_line, files=files)

    def _supervise(
        self,
        name: str,
        start: Callable[[], Awaitable[Child]],
        *,
        is_ready: Callable[[], Awaitable[bool]],
        is_alive: Callable[[float], Awaitable[bool]],
    ) -> Supervised:
        policy = RestartPolicy(hung=self.settings.timeouts.hung, starting=_worker_start(self.settings))
        process = Supervised(name, start, is_ready=is_ready, is_alive=is_alive, policy=policy)
        for former in self._former.processes if self._former is not None else ():
            if former.name == name:
                process.died, process.hung = former.died, former.hung

        def gave_up(task: asyncio.Task[NoReturn]) -> None:
            self._keeping.discard(task)
            tell_first(self.failed, task)

        task = asyncio.ensure_future(process.keep())
        self._keeping.add(task)
        task.add_done_callback(gave_up)
        return process

    def _pass_on(self, line: str) -> bool:
        """If a line of Envoy's log reports an event that sidecars need to know, pass the line to the sidecars. Returns
        whether the sidecars log the event."""
        return pass_on_line(line, [child.orders for child in self._living() if child.orders is not None])

    def _living(self) -> list[Child]:
        """Return the running worker processes."""
        found = (worker.child for worker in self.workers)
        return [child for child in found if child is not None and child.status is None]

    async def _all_serving(self) -> bool:
        return len(self._output.serving) == self.settings.workers

    # The methods below hand over to the next generation.

    async def give_way(self) -> None:
        """Hand over to the next generation. From then on, it serves all new clients, and the parent process restarts
        none of these processes."""
        await self._keep_no_more()
        if self._admin is not None:
            with contextlib.suppress(AntiphonError):
                await poll(self._admin.has_stopped_listening, "the former Envoy", _GIVE_WAY_SECONDS)
        await asyncio.gather(*(self._tell_to_give_way(child) for child in self._living()))

    async def _tell_to_give_way(self, child: Child) -> None:
        assert child.orders is not None
        try:
            await child.orders.give("give_way", _GIVE_WAY_SECONDS)
        except OSError as error:
            # The order also fails when a worker has just ended, because its end of the socket is closed.
            if child.name not in self._output.serving:
                # The worker was still starting. SIGTERM ends this worker next.
                return
            _log.error("worker_replaced", name=child.name, problem=str(error) or "no answer")
            child.kill()

    async def retire(self, successor: Generation) -> None:
        """After the handover, let requests in flight finish (`timeouts.response`), and then end all processes."""
        seconds = self.settings.timeouts.response
        began = self._clock()
        last = began + seconds
        measuring = asyncio.ensure_future(self._measure())
        try:
            if self._admin is not None:
                if not await self._quiet(last):
                    _log.warning("old_settings_ended", seconds=seconds)
                await successor.lets_go(began)
                await self._stop_envoy(_STOP_SECONDS)
            await self._drain_workers(last)
        finally:
            measuring.cancel()
        await self.stop()

    async def withdraw(self) -> None:
        """After a failed handover, let requests in flight finish, and then end all processes."""
        await self._keep_no_more()
        last = self._clock() + self.settings.timeouts.response
        # A worker may listen before it reports ready. Such a worker handles the order when it is ready.
        await asyncio.gather(*(self._tell_to_give_way(child) for child in self._living()))
        if self._admin is not None:
            await self._admin.refuse_connections(_HURRY_SECONDS)
        await self._drain_workers(last)
        await self._all_answered(last)
        await self.stop()

    async def listen_again(self) -> None:
        """Serve again after the next generation has failed. If the next Envoy has taken over the listeners, kill this
        generation's Envoy. It then restarts and listens again, but its streams are cut."""
        envoy = self.envoy.child if self.envoy is not None else None
        if self._admin is not None and envoy is not None and await self._admin.has_stopped_listening():
            problem = "the next Envoy took over the listeners of this Envoy, and then failed"
            _log.error("envoy_begins_anew", pid=envoy.pid, problem=problem)
            envoy.kill()

    async def lets_go(self, began: float) -> None:
        """Wait until the former Envoy may end: `RELEASE_SECONDS` after this generation's Envoy has begun to serve.
        `began` is a time at which it already served."""
        await asyncio.sleep(began + RELEASE_SECONDS + _LATE_SECONDS - self._clock())
        # If Envoy answers a query now, Envoy has also run all timers that were due earlier.
        if self._admin is not None:
            with contextlib.suppress(AntiphonError):
                await poll(self._admin.is_live, "Envoy")

    async def _measure(self) -> None:
        """Query the workers for metrics until they end. The parent process keeps the last counts of each worker."""
        while self._around.metrics is not None:
            await asyncio.gather(*(process.is_alive(_MEASURE_SECONDS) for process in self.workers))
            await asyncio.sleep(_MEASURE_SECONDS)

    async def _quiet(self, last: float) -> bool:
        """Wait until Envoy has had no request for `QUIET_SECONDS`. Return False if this does not happen before the time
        `last`."""
        busy_at = self._clock()
        while self._clock() < busy_at + QUIET_SECONDS:
            if self._clock() > last:
                return False
            if await self.requests_in_flight():
                busy_at = self._clock()
            await asyncio.sleep(POLL_SECONDS)
        return True

    # The methods below stop the processes.

    async def requests_in_flight(self) -> int:
        """Return the number of requests in flight in Envoy, or 0 without Envoy."""
        return await self._admin.requests_in_flight(self._hurry()) if self._admin is not None else 0

    @property
    def cut(self) -> int:
        """The number of requests that the workers of this generation cut when they stopped."""
        return self._output.cut

    async def drain(self, began: float) -> bool:
        """After the notice period (`timeouts.notice`), refuse new requests and let requests in flight finish. Returns
        False if this takes more than `timeouts.drain` seconds from `began`."""
        await self._keep_no_more()
        times = self.given.timeouts
        last = began + times.drain
        if self._admin is None:
            # Workers of the HTTP server give notice to their clients themselves.
            return await self._drain_workers(last)
        # From now on, each response closes its connection, so clients send few requests that Antiphon must refuse.
        await self._admin.say_leaving(_HURRY_SECONDS)
        await asyncio.sleep(began + min(times.notice or 0.0, times.drain) - self._clock())
        await self._admin.refuse_connections(_HURRY_SECONDS)
        sidecars = [child.orders for child in self._living() if child.orders is not None]
        await outlive_envoy(sidecars, _HURRY_SECONDS)
        draining = asyncio.ensure_future(self._drain_workers(last))
        try:
            answered = await self._all_answered(last)
            if answered:
                await self._stop_envoy(_HURRY_SECONDS)
            for sidecar in sidecars:
                sidecar.tell({"do": ENVOY_ENDED})
            return await draining and answered
        finally:
            draining.cancel()

    async def _all_answered(self, last: float) -> bool:
        """Wait until Envoy has sent all responses, and every worker has drained or ended. Return False if this does not
        happen before the time `last`."""
        while any(one.name not in self._output.drained for one in self._living()) or await self.requests_in_flight():
            if self._clock() > last:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def _drain_workers(self, last: float) -> bool:
        """Send SIGTERM to the workers, which then drain, and kill a worker that does not end by its deadline. Returns
        whether all workers ended cleanly."""
        children = self._living()
        for child in children:
            child.signal(signal.SIGTERM)
        ends = [asyncio.ensure_future(child.wait()) for child in children]
        if ends:
            await asyncio.wait(ends, timeout=last + CLOSING_SECONDS + _LATE_SECONDS - self._clock())
        for child in children:
            if child.status is None:
                _log.error("killed", process=child.name)
                child.kill()
        if ends:
            # Wait for the killed workers. The wait is short, because processes that they started may keep their output
            # open.
            await asyncio.wait(ends, timeout=_LATE_SECONDS)
        # A worker that ended by SIGTERM had no signal handler yet, so it served no request.
        badly = [child for child in children if child.status not in (0, -signal.SIGTERM)]
        for child in badly:
            _log.warning("ended_badly", process=child.name, how=describe_status(child.status or 0))
        return not badly

    async def stop(self) -> None:
        """Stop all running processes immediately. Envoy stops first, so that the sidecars see their clients disconnect
        and store the responses as failed."""
        await self._keep_no_more()
        self.end_at(self._clock() + _STOP_SECONDS)
        await self._stop_envoy(min(_ENVOY_SECONDS, self._left()))
        await self.stop_workers()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._around.metrics is not None:
            self.forget_ended(self._around.metrics)

    def forget_ended(self, metrics: MergedMetrics) -> None:
        """Tell `metrics` which workers have ended. It keeps their counters and drops their gauges."""
        for process in self.workers:
            ended = process.child is not None and process.child.status is not None
            metrics.forget(f"{self.number} {process.name}", process.life + ended)

    def forget(self) -> None:
        """Remove the shared memory of Envoy's hot restart, because no further generation follows."""
        if self._binary is not None:
            self._binary.forget()

    async def stop_workers(self) -> None:
        """Stop the running workers immediately."""
        self.end_at(self._clock() + _STOP_SECONDS)
        children = [process.child for process in self.workers if process.child is not None]
        for child in children:
            # Send SIGINT before SIGTERM, because the kernel may merge two equal signals.
            child.signal(signal.SIGINT)
        left = self._left()
        await asyncio.gather(*(child.stop(left) for child in children))

    async def _stop_envoy(self, seconds: float) -> None:
        if self.envoy is not None and self.envoy.child is not None:
            await self.envoy.child.stop(seconds, foreign=True)
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    async def _keep_no_more(self) -> None:
        """Stop restarting processes that end."""
        for task in self._keeping:
            task.cancel()
        if self._keeping:
            await asyncio.wait(self._keeping)

    def end_at(self, moment: float) -> None:
        """Set the deadline for the end of all processes."""
        self._last = moment if self._last is None else min(self._last, moment)

    def _hurry(self) -> float:
        """Return the timeout for a query to Envoy, which may hang. The timeout leaves enough time to stop Envoy."""
        return min(_HURRY_SECONDS, max(_LATE_SECONDS, self._left() - _ENVOY_SECONDS))

    def _left(self) -> float:
        """Return the seconds until the deadline for the end of all processes."""
        return math.inf if self._last is None else max(_LATE_SECONDS, self._last - self._clock())


def _worker_start(settings: Settings) -> float:
    """Return the maximum duration of a worker's start in seconds. With PostgreSQL, a worker may also wait for the
    database."""
    of_database = settings.state.start_within if settings.state.place.kind == "postgresql" else 0.0
    return START_SECONDS + of_database
