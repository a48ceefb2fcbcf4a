"""Creates the commands that start Envoy for `antiphon up`, and queries Envoy's admin port.

This module also writes Envoy's configuration file, which the package `envoy` generates. `generation.py` and
`supervision.py` decide when to start Envoy and when to query it.

After a reload, a new Envoy process replaces the old one by Envoy's hot restart. The new Envoy finds the old Envoy by a
base id and a restart number (epoch). It takes over the listeners and counters, and makes the old Envoy drain. After
`RELEASE_SECONDS` the new Envoy sends SIGTERM to the old Envoy, which may still have requests in flight. So every Envoy
runs with SIGTERM blocked (`parent_guard.py`), and the parent process ends it with SIGINT after its last request. If the
old Envoy ended before `RELEASE_SECONDS`, the new Envoy would abort. If an Envoy died, its successor starts without hot
restart. Hot restart needs Linux with shared memory (`/dev/shm`).

An Envoy that is killed during its start leaves a flag in the shared memory, because of which every later Envoy exits.
Only an Envoy with restart number 0 removes the flag, because it recreates the shared memory. So before the next hot
restart, the parent process starts and ends an Envoy without listeners (`renewing_command`). The serving Envoy is not
affected, because it still has the old memory mapped, and the Envoy without listeners uses a different socket.

Invariants: only this user can access the hot restart socket of a running Envoy. If the admin port does not answer, a
query raises no error, and its result means "not ready" or "unknown". All queries to an Envoy use one connection, so
they reach the old Envoy even after the new Envoy listens on the admin port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.versions import EnvoyVersion, find_envoy, version_of
from antiphon.errors import ConfigError
from antiphon.supervisor.child_settings import envoy_environment
from antiphon.supervisor.http_probe import NO_ANSWER, Connection
from antiphon.supervisor.listen_address import join_address
from antiphon.supervisor.run_folder import write_private

_LOG = '{"timestamp":"%Y-%m-%dT%H:%M:%S.%fZ","level":"%l","logger":"envoy.%n","message":"%j"}'
_FLUSH_MILLISECONDS = "200"
_VALIDATE_SECONDS = 30.0
_ADMIN_SECONDS = 5.0
_SHARED = Path("/dev/shm")
_BASE = "envoy-base"
"""The name of the file with the base id. All Envoys of one `antiphon up` share this id."""
RELEASE_SECONDS = 3
_COUNTERS_SECONDS = "1s"
"""The interval at which a new Envoy copies the counters of the old Envoy."""


class EnvoyProcess:
    """Creates the start commands for the Envoy of one generation. At the first start, this Envoy replaces the Envoy of
    the former generation (`_follows`). Later starts are restarts after a crash."""

    def __init__(self, binary: Path, version: EnvoyVersion, settings: Settings, folder: Path, shared: Path) -> None:
        self._command = [str(binary), "-c", str(folder / "envoy.yaml"), *_options(settings, shared)]
        self._version = version
        self._config = folder / "envoy.yaml"
        self._base = shared / _BASE
        self._follows: EnvoyProcess | None = None
        self._epoch = 0
        self._was_followed = False

    @classmethod
    async def prepare(cls, settings: Settings, folder: Path, shared: Path, former: EnvoyProcess | None) -> EnvoyProcess:
        """Write Envoy's configuration file, and return an `EnvoyProcess`. Raises `ConfigError` when Envoy rejects the
        configuration, or when hot restart is not possible."""
        binary = find_envoy(settings.envoy.binary)
        version = await asyncio.to_thread(version_of, binary)
        made = cls(binary, version, settings, folder, shared)
        made.write(settings)
        if former is not None:
            if not former._base_id():
                raise ConfigError(
                    "this Envoy does not support hot restart, which needs Linux and a writable /dev/shm. Restart "
                    "Antiphon"
                )
            made._follows = former
            await asyncio.to_thread(made._validate, settings)
        return made

    def write(self, settings: Settings) -> None:
        """Write Envoy's configuration file for the next start."""
        whole = bootstrap(settings, sidecars=endpoints(settings), version=self._version)
        whole["stats_flush_interval"] = _COUNTERS_SECONDS
        write_private(self._config, fill_in_secret(to_yaml(whole), settings))

    @property
    def renewing_admin(self) -> str:
        """The admin address of the short-lived Envoy that recreates the shared memory."""
        return f"unix:{self._base.parent}/new.sock"

    def renewing_command(self) -> list[str] | None:
        """Return the command of a short-lived Envoy, which recreates the shared memory before the next hot restart.
        Return None if no earlier hot restart can have left a flag in the memory."""
        if self._follows is None or not self._follows._was_followed:
            return None
        config = f"admin: {{address: {{pipe: {{path: {self.renewing_admin.removeprefix('unix:')}}}}}}}"
        # The name of the other socket is as long as that of the serving Envoy's socket, because a longer path would not
        # fit.
        own = ["--config-yaml", config, "--socket-path", str(self._base.with_name("new")), "--log-level", "error"]
        return [self._command[0], *own, "--base-id", self._base_id(), "--restart-epoch", "0", "--concurrency", "1"]

    def next_command(self) -> list[str]:
        """Return the command for the next start of Envoy."""
        former, self._follows = self._follows, None
        self._was_followed = False
        if former is not None:
            former._was_followed = True
            self._epoch = former._epoch + 1
            chosen = ["--base-id", self._base_id()]
        elif not os.access(_SHARED, os.W_OK | os.X_OK):
            # Some containers have no writable `/dev/shm`. Without `/dev/shm`, a change of settings needs a restart.
            self._base.write_text("")
            return [*self._command, "--disable-hot-restart"]
        else:
            self.forget()
            self._base.touch(mode=0o600)
            self._epoch = 0
            chosen = ["--use-dynamic-base-id", "--base-id-path", str(self._base)]
        return [*self._command, *chosen, "--restart-epoch", str(self._epoch)]

    def _base_id(self) -> str:
        return self._base.read_text().strip()

    def forget(self) -> None:
        """Remove the shared memory of all Envoys of this `antiphon up`."""
        forget(self._base.parent)

    def _validate(self, settings: Settings) -> None:
        command = [*self._command[:3], "--mode", "validate", "--log-level", "error"]
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=_VALIDATE_SECONDS, env=envoy_environment(settings)
        )
        if ran.returncode:
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise ConfigError(f"Envoy rejects its configuration: {said[-1] if said else ran.returncode}")


def forget(shared: Path) -> None:
    """Remove the shared memory of all Envoys of the `antiphon up` whose run folder is `shared`. All these Envoys must
    have ended."""
    with contextlib.suppress(OSError):
        if base := (shared / _BASE).read_text().strip():
            (_SHARED / f"envoy_shared_memory_{base}0").unlink()


def _options(settings: Settings, shared: Path) -> list[str]:
    command = ["--log-level", settings.envoy.log_level]
    # Sidecars wait for some of Envoy's log lines, and Envoy's default interval of ten seconds is too long for them.
    command += ["--file-flush-interval-msec", _FLUSH_MILLISECONDS]
    # After a replacement, each response of the former Envoy closes its connection. The parent ends the former Envoy
    # when that Envoy has no requests.
    command += ["--socket-path", str(shared / "hot"), "--drain-strategy", "immediate"]
    command += ["--parent-shutdown-time-s", str(RELEASE_SECONDS)]
    if settings.log.format == "json":
        command += ["--log-format", _LOG]
    if settings.envoy.log_level in ("info", "warning"):
        # With the default level Envoy logs every stream that a dead sidecar leaves. The access log already has a line
        # for each request of a dead sidecar.
        command += ["--component-log-level", "ext_proc:error"]
    if settings.envoy.concurrency is not None:
        command += ["--concurrency", str(settings.envoy.concurrency)]
    return command


class EnvoyAdmin:
    """A client of one Envoy's admin port. `address` is `unix:PATH` or `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        self._turn = asyncio.Lock()

    async def is_live(self, seconds: float = _ADMIN_SECONDS) -> bool:
        """Whether Envoy answers within `seconds` that it has initialized. An Envoy that drains is live too: after
        `say_leaving` it answers 503 with the text `DRAINING`."""
        status, body = await self._exchange("GET", "/ready", seconds)
        return status == 200 or body.startswith(b"DRAINING")

    async def healthy_endpoints(self, *clusters: str) -> int:
        """Return the number of endpoints in these clusters that passed their health check."""
        healthy = 0
        for cluster in (await self._json("/clusters?format=json")).get("cluster_statuses", ()):
            if cluster["name"] in clusters:
                for host in cluster.get("host_statuses", ()):
                    health = host.get("health_status", {})
                    healthy += not any(health.get(flag) for flag in ("failed_active_health_check", "pending_active_hc"))
        return healthy

    async def bound_port(self, listener: str) -> int | None:
        """Return the port of a TCP listener, or None while it is unknown."""
        for entry in (await self._json("/listeners?format=json")).get("listener_statuses", ()):
            if entry["name"] == listener:
                port = entry.get("local_address", {}).get("socket_address", {}).get("port_value")
                return int(port) if port else None
        return None

    async def bound_address(self, listener: str, address: str) -> str:
        """Return the TCP address of a listener, with the port that Envoy chose for port 0."""
        host, port = parse_address(address)
        return join_address(host, port or await self.bound_port(listener) or 0)

    async def say_leaving(self, seconds: float) -> None:
        """Let Envoy announce to clients that it will stop. `/ready` fails, responses have `connection: close`, and
        HTTP/2 connections get a GOAWAY. Envoy still serves all requests."""
        await self._ask("POST", "/healthcheck/fail", seconds)

    async def refuse_connections(self, seconds: float) -> None:
        """Close Envoy's listener for clients. Requests in flight continue. The private listeners stay open, because
        these requests may need them."""
        await self._ask("POST", "/drain_listeners?inboundonly", seconds)

    async def has_stopped_listening(self) -> bool:
        """Whether another Envoy has taken over this Envoy's listeners, or this Envoy has ended."""
        stopped = await self._stat("^listener_manager\\.listener_stopped$", _ADMIN_SECONDS)
        return stopped is None or stopped > 0

    async def requests_in_flight(self, seconds: float) -> int:
        """Return the number of requests in flight on the listeners for clients and for the console. Returns 0 when
        Envoy does not answer."""
        return await self._stat("^http\\.(antiphon|console)\\.downstream_rq_active$", seconds) or 0

    def close(self) -> None:
        """Close the connection to the admin port."""
        self._connection.close()

    async def _stat(self, pattern: str, seconds: float) -> int | None:
        body = await self._ask("GET", f"/stats?filter={pattern}", seconds)
        if body is None:
            return None
        numbers = (line.rpartition(":")[2].strip() for line in body.decode().splitlines())
        return sum(int(number) for number in numbers if number.isdigit())

    async def _json(self, path: str) -> dict[str, Any]:
        body = await self._ask("GET", path)
        answer: dict[str, Any] = json.loads(body) if body else {}
        return answer

    async def _ask(self, method: str, path: str, seconds: float = _ADMIN_SECONDS) -> bytes | None:
        """Query the admin port. Return the response body if the status is 200, else None."""
        status, body = await self._exchange(method, path, seconds)
        return body if status == 200 else None

    async def _exchange(self, method: str, path: str, seconds: float) -> tuple[int, bytes]:
        """Query the admin port. Return the status and the response body. Without an answer the status is 0."""
        try:
            async with asyncio.timeout(seconds), self._turn:
                return await self._connection.exchange(method, path)
        except NO_ANSWER:
            return 0, b""
