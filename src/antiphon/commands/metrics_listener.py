"""Runs the listener for Prometheus scrapes and Kubernetes probes (`metrics.listen`).

The caller passes in the metrics, and the function that answers `/ready`.

Invariant: the listener serves only `GET /metrics` and `GET /ready`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from antiphon.config.section import parse_address
from antiphon.errors import ConfigError
from antiphon.observability.metrics import Metrics

if TYPE_CHECKING:
    from antiphon.api.router import ReadyProbe


@asynccontextmanager
async def metrics_listener(
    address: str | None, metrics: Metrics | Callable[[], Awaitable[bytes]], ready: ReadyProbe | None = None
) -> AsyncIterator[str]:
    """Listen on the address while the context is active, and yield the address with the actual port. If `address` is
    None, do nothing and yield an empty text.

    `ready` computes the answer to `GET /ready`. If `ready` is None, the listener does not serve this path. Raises
    `ConfigError` if the process cannot listen on the address.
    """
    if address is None:
        yield ""
        return

    async def show(_: web.Request) -> web.Response:
        body = await (metrics.scraped() if isinstance(metrics, Metrics) else metrics())
        return web.Response(body=body, headers={"content-type": Metrics.content_type()})

    async def say_ready(_: web.Request) -> web.Response:
        assert ready is not None
        answer = await ready.answer()
        return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))

    app = web.Application()
    app.router.add_get("/metrics", show)
    if ready is not None:
        app.router.add_get("/ready", say_ready)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        host, port = parse_address(address)
        site = web.TCPSite(runner, host, port, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"metrics.listen: cannot listen on {address}: {error.strerror or error}") from None
        name = runner.addresses[0]
        yield f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    finally:
        await runner.cleanup()
