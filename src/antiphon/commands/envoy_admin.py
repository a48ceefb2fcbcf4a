"""Envoy's admin port, as far as `antiphon up` asks it.

Lives here: one class with the five questions. Not here: when they are asked (`up.py`), the configuration (`envoy/`).

Invariant: an admin port that does not answer is no error here; it is "not ready", "unknown", or nothing at all.
"""

from __future__ import annotations

import json
from typing import Any

import aiohttp

__all__ = ["EnvoyAdmin"]

_SECONDS = 5.0


class EnvoyAdmin:
    """`address`: `unix:PATH` or `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._path = address.removeprefix("unix:") if address.startswith("unix:") else None
        self._base = f"http://{address}" if self._path is None else "http://admin"

    async def is_live(self) -> bool:
        """Whether Envoy has initialised and listens."""
        return await self._ask("GET", "/ready") is not None

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

    async def refuse_connections(self) -> None:
        """Close the public listener. What is in flight goes on, and so do the private listeners it may need."""
        await self._ask("POST", "/drain_listeners?inboundonly")

    async def requests_in_flight(self, stat_prefix: str) -> int:
        """Requests on the listener with this prefix that Envoy has not answered whole; 0 when Envoy is gone."""
        body = await self._ask("GET", f"/stats?filter=^http\\.{stat_prefix}\\.downstream_rq_active$") or b""
        number = body.decode().rpartition(":")[2].strip()
        return int(number) if number.isdigit() else 0

    async def _json(self, path: str) -> dict[str, Any]:
        body = await self._ask("GET", path)
        answer: dict[str, Any] = json.loads(body) if body else {}
        return answer

    async def _ask(self, method: str, path: str) -> bytes | None:
        """The body of a 200, else None."""
        connector = aiohttp.UnixConnector(self._path) if self._path is not None else None
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
                session.request(method, self._base + path) as answer,
            ):
                return await answer.read() if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
