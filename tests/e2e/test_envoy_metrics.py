"""The port on which Envoy shows its own metrics: they are there, it says that it lives, and nothing else is served."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from tests.support.real_envoy import real_envoy

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


async def test_metrics_and_liveness_and_nothing_else(tmp_path: Path, unused_tcp_port: int) -> None:
    at = f"http://127.0.0.1:{unused_tcp_port}"
    own = {"envoy": {"metrics": f"127.0.0.1:{unused_tcp_port}"}}
    async with real_envoy(tmp_path, settings=own), aiohttp.ClientSession() as session:

        async def ask(path: str, method: str = "GET") -> tuple[int, str]:
            async with session.request(method, URL(at + path, encoded=True)) as got:
                return got.status, await got.text()

        assert await ask("/live") == (200, "")
        status, text = await ask("/stats/prometheus?usedonly")
        assert status == 200 and "# TYPE envoy_http_downstream_rq_total counter" in text
        for path in ("/", "/stats", "/config_dump", "/stats/prometheus/../../config_dump", "/v1/models"):
            assert (await ask(path))[0] == 404, path
        assert (await ask("/quitquitquit", "POST"))[0] == 404
        # Draining closes the public listener alone.
        admin = aiohttp.UnixConnector(str(tmp_path / "envoy-admin.sock"))
        async with (
            aiohttp.ClientSession(connector=admin) as to_admin,
            to_admin.post("http://envoy/drain_listeners?inboundonly") as drained,
        ):
            assert drained.status == 200
        assert await ask("/live") == (200, "")
