"""Queries Envoy's admin port for `antiphon up`.

Lives here: one class with its questions. Not here: when they are asked (`generation.py`), the configuration (`envoy/`).

Invariants: an admin port that does not answer is no error here; it is "not ready", "unknown", or nothing at all. All
questions go over one connection, which an Envoy whose place another one takes still answers: its port is the other's.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from antiphon.supervisor.http_probe import NO_ANSWER, Connection

_SECONDS = 5.0


class EnvoyAdmin:
    """`address`: `unix:PATH` or `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        self._turn = asyncio.Lock()

    async def is_live(self, seconds: float = _SECONDS) -> bool:
        """Whether Envoy has initialised and listens, and says so within these seconds."""
        return await self._ask("GET", "/ready", seconds) is not None

    async def healthy_endpoints(self, *clusters: str) -> int:
        """How many endpoints of these clusters have passed their health check."""
        healthy = 0
        for cluster in (await self._json("/clusters?format=json")).get("cluster_statuses", ()):
            if cluster["name"] in clusters:
                for host in cluster.get("host_statuses", ()):
                    health = host.get("health_status", {})
                    healthy += not any(health.get(flag) for flag in ("failed_active_health_check", "pending_active_hc"))
        return healthy

    async def bound_port(self, listener: str) -> int | None:
        """The port a TCP listener has; None while it is unknown."""
        for entry in (await self._json("/listeners?format=json")).get("listener_statuses", ()):
            if entry["name"] == listener:
                port = entry.get("local_address", {}).get("socket_address", {}).get("port_value")
                return int(port) if port else None
        return None

    async def say_leaving(self, seconds: float) -> None:
        """`/ready` says no from now on, answers say `connection: close` and HTTP/2 connections get a GOAWAY, while
        everything is served."""
        await self._ask("POST", "/healthcheck/fail", seconds)

    async def refuse_connections(self, seconds: float) -> None:
        """Close the public listener. What is in flight goes on, and so do the private listeners it may need."""
        await self._ask("POST", "/drain_listeners?inboundonly", seconds)

    async def has_stopped_listening(self) -> bool:
        """Whether another Envoy has taken its listeners, or it is gone."""
        stopped = await self._stat("^listener_manager\\.listener_stopped$", _SECONDS)
        return stopped is None or stopped > 0

    async def requests_in_flight(self, seconds: float) -> int:
        """Requests on the public listener that Envoy has not answered whole; 0 when Envoy is gone."""
        return await self._stat("^http\\.antiphon\\.downstream_rq_active$", seconds) or 0

    def close(self) -> None:
        """Ask no more."""
        self._connection.close()

    async def _stat(self, pattern: str, seconds: float) -> int | None:
        body = await self._ask("GET", f"/stats?filter={pattern}", seconds)
        if body is None:
            return None
        number = body.decode().rpartition(":")[2].strip()
        return int(number) if number.isdigit() else 0

    async def _json(self, path: str) -> dict[str, Any]:
        body = await self._ask("GET", path)
        answer: dict[str, Any] = json.loads(body) if body else {}
        return answer

    async def _ask(self, method: str, path: str, seconds: float = _SECONDS) -> bytes | None:
        """The body of a 200, else None."""
        try:
            async with asyncio.timeout(seconds), self._turn:
                status, body = await self._connection.exchange(method, path)
        except NO_ANSWER:
            return None
        return body if status == 200 else None
