"""The compiled wheel is installed, then the pure one in its place: each serves, and says which of the two it is.

It takes minutes to compile; so this runs where that is done already, by `scripts/test --compiled`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import antiphon
from antiphon.supervisor.http_probe import ask
from tests.support.chat_server import ChatServer
from tests.support.gateway import post, start_gateway
from tests.support.metrics import value_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not antiphon.compiled(), reason="there is no compiled wheel here: scripts/test --compiled"),
]

ROOT = Path(__file__).parents[2]
SECONDS = 240.0
# What is tested is what is installed, which the tests' own path would hide.
PLAIN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=ROOT, env=PLAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment(folder: Path) -> Path:
    """A new environment, with the packages of this one but Antiphon; its Python."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    # As a folder on the path: what stands there to make the source tree importable is not read.
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def _install(python: Path, wheel: Path) -> None:
    """As the pages say it."""
    _run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check", "--no-index"),
        *("--force-reinstall", "--no-deps", wheel),
    )


def _extensions(python: Path) -> list[Path]:
    return sorted(next(python.parents[1].glob("lib/python*/site-packages")).rglob("*.so"))


async def _serves(python: Path, server: ChatServer, data: Path) -> str:
    """It answers a request; the build, by the metrics."""
    environ = {"PYTHONPATH": "", "ANTIPHON_METRICS__LISTEN": "127.0.0.1:0"}
    gateway = await start_gateway(server.base_url, data, "--door", "http", python=python, environ=environ)
    try:
        answered = await post(gateway.base_url + "/responses", {"model": "m", "input": "hi"})
        assert answered.status == 200 and json.loads(answered.body)["status"] == "completed"
        listens = json.loads(await gateway.log_line('"metrics"'))["listen"]
        said = await ask(f"http://{listens}", "/metrics", SECONDS)
        assert said is not None
        (code,) = (
            code for code in ("compiled", "sources") if value_of(said.decode(), "antiphon_build_info", code=code)
        )
        return code
    finally:
        assert await gateway.stop() == 0


async def test_the_pure_wheel_takes_the_place_of_the_compiled_one(server: ChatServer, folder: Path) -> None:
    (compiled,) = Path(antiphon.__file__).parents[1].glob("wheel/*.whl")
    _run("scripts/lab", "build-wheel", folder / "dist")
    (pure,) = (folder / "dist").glob("antiphon-*-py3-none-any.whl")
    python = _environment(folder / "env")

    _install(python, compiled)
    assert _run(python, "-m", "antiphon", "--version").endswith(" (compiled)\n")
    assert _extensions(python)
    assert await _serves(python, server, folder / "one") == "compiled"

    _install(python, pure)
    assert _run(python, "-m", "antiphon", "--version") == f"antiphon {antiphon.__version__}\n"
    assert not _extensions(python)
    assert await _serves(python, server, folder / "two") == "sources"
