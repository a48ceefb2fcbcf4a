"""The page on an existing Envoy: its blocks print, validate and start an Envoy as they stand.

Only addresses, folders and the version of Envoy are the test's. Not here: what the merged Envoy does
(`tests/e2e/test_foreign_envoy.py`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
import yaml

from antiphon.config.settings import load_settings
from tests.docs.blocks import REPOSITORY, blocks_named, commands
from tests.docs.running import printed
from tests.support import commands as processes
from tests.support.envoy_binary import envoy_binary, envoy_version
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_PAGE = "docs/how-to/existing-envoy.md"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def _envoy_yaml(port: int) -> str:
    """An Envoy that answers every request itself."""
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 404}}
    manager = {
        "@type": f"type.googleapis.com/{_MANAGER}",
        "stat_prefix": "own",
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"type.googleapis.com/{_ROUTER}"}}
        ],
        "route_config": {"virtual_hosts": [{"name": "own", "domains": ["*"], "routes": [route]}]},
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {
        "name": "own",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [network]}],
    }
    return yaml.safe_dump({"static_resources": {"listeners": [listener]}})


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """`envoy` is the tests' Envoy, and `antiphon` the command of this Python."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "envoy").symlink_to(envoy_binary())
    path = os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**{key: value for key, value in os.environ.items() if not key.startswith("ANTIPHON_")}, "PATH": path}


def _lines(name: str, port: int) -> list[str]:
    version = envoy_version()
    return [
        line.replace("--envoy-version 1.39", f"--envoy-version {version.major}.{version.minor}")
        .replace("https://your.host", f"http://127.0.0.1:{port}")
        .partition("      #")[0]
        for line in commands(blocks_named(_PAGE, name)[0])
    ]


async def _background(line: str, folder: Path, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    words = ("bash", "-c", f"exec env {line}")
    with (folder / "log").open("ab") as log:
        return await asyncio.create_subprocess_exec(*words, cwd=folder, env=environ, stdout=log, stderr=log)


async def test_the_page(folder: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    text = (REPOSITORY / _PAGE).read_text().partition("```yaml\n")[2].partition("```")[0]
    assert load_settings(yaml.safe_load(text))
    started: list[asyncio.subprocess.Process] = []
    async with processes.commands() as own:
        demo = await processes.run_command(own, "demo-upstream", "--listen", "127.0.0.1:0")
        url = await demo.line("ready: ")
        text = text.replace("/run/antiphon", str(folder)).replace("http://127.0.0.1:8081/v1", url)
        (tmp_path / "settings.yaml").write_text(text)
        (tmp_path / "envoy.yaml").write_text(_envoy_yaml(port))
        try:
            (sidecar,) = _lines("existing-envoy-sidecar", port)
            started.append(await _background(sidecar, tmp_path, environ))
            await until(lambda: any(folder.glob("*.sock")), processes.SECONDS)
            *prepare, start = _lines("existing-envoy-merge", port)
            told = await printed(("bash", "-euo", "pipefail", "-c", "\n".join(prepare)), tmp_path, environ)
            assert "configuration" in told and "OK" in told
            started.append(await _background(f"{start} --disable-hot-restart --concurrency 1", tmp_path, environ))
            await _ready(f"http://127.0.0.1:{port}/ready", started, tmp_path / "log")
            requests = _lines("existing-envoy-requests", port)
            answers = [await printed(("bash", "-c", line), tmp_path, environ) for line in requests]
        finally:
            for process in started:
                if process.returncode is None:
                    process.terminate()
                await process.wait()
    assert len(answers) == 3 and '"completed"' in answers[1] and "You said: hi" in answers[1]
    assert '"queued"' in answers[2]


async def _ready(url: str, started: list[asyncio.subprocess.Process], log: Path) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(processes.SECONDS):
        while True:
            assert all(process.returncode is None for process in started), log.read_text()[-3000:]
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
