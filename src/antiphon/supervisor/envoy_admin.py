"""Queries Envoy's admin port for `antiphon up`.

`generation.py` decides when the queries run. The package `envoy` generates Envoy's configuration.

Invariants: a missing answer of the admin port raises no error and means "not ready" or "unknown". All queries use one
connection. So queries still reach the former Envoy after a hot restart, when the next Envoy owns the port.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from antiphon.config.section import parse_address
from antiphon.supervisor.http_probe import NO_ANSWER, Connection
from antiphon.supervisor.listen_address import join_address

_SECONDS = 5.0


class EnvoyAdmin:
    """A client of one Envoy's admin port. `address` is `unix:PATH` or `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        self._turn = asyncio.Lock()

    async def is_live(self, seconds: float = _SECONDS) -> bool:
        """Whether Envoy answers within `seconds` that it has initialized and listens."""
        return await self._ask("GET", "/ready", seconds) is not None

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
        """Begin Envoy's notice to clients. `/ready` fails, responses have `connection: close`, and HTTP/2 connections
        get a GOAWAY. Envoy still serves all requests."""
        await self._ask("POST", "/healthcheck/fail", seconds)

    async def refuse_connections(self, seconds: float) -> None:
        """Close the public listener. Requests in flight continue, and the private listeners that they may need stay
        open."""
        await self._ask("POST", "/drain_listeners?inboundonly", seconds)

    async def has_stopped_listening(self) -> bool:
        """Whether another Envoy has taken over this Envoy's listeners, or this Envoy has ended."""
        stopped = await self._stat("^listener_manager\\.listener_stopped$", _SECONDS)
        return stopped is None or stopped > 0

    async def requests_in_flight(self, seconds: float) -> int:
        """Return the number of incomplete requests on the listeners for clients and for the console. Returns 0 when
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

    async def _ask(self, method: str, path: str, seconds: float = _SECONDS) -> bytes | None:
        """Return the body of a response with status 200, else None."""
        try:
            async with asyncio.timeout(seconds), self._turn:
                status, body = await self._connection.exchange(method, path)
        except NO_ANSWER:
            return None
        return body if status == 200 else None
