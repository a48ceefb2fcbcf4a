"""Of a folder with compiled wheels and the pure one, pip installs the compiled one that fits, or else the pure one.
Then the pure wheel takes the place of the compiled one, as the page says. Each serves, and says which of the two it is.

It takes minutes to compile; so this runs where that is done already, by `scripts/test --compiled`, and for another
Python by `scripts/test --python python3.14 --compiled`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import antiphon
from antiphon.supervisor.http_probe import ask
from tests.docs.blocks import block
from tests.support.chat_server import ChatServer
from tests.support.gateway import post, start_gateway
from tests.support.metrics import value_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not antiphon.compiled(), reason="there is no compiled wheel here: scripts/test --compiled"),
]

ROOT = Path(__file__).parents[2]
PAGE = "docs/how-to/troubleshooting.md"
SECONDS = 240.0
# What is tested is what is installed, which the tests' own path would hide.
PLAIN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _run(*words: str | Path, cwd: Path = ROOT, path: str = "") -> str:
    environ = {**PLAIN, "PATH": os.pathsep.join([path, PLAIN["PATH"]])} if path else PLAIN
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=cwd, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment(folder: Path) -> Path:
    """A new environment, with the packages of this one but Antiphon; its Python."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    # As a folder on the path: what stands there to make the source tree importable is not read.
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def _compiled_wheel() -> Path:
    (wheel,) = Path(antiphon.__file__).parents[1].glob("wheel/*.whl")
    return wheel


def _wheels(folder: Path) -> Path:
    """A folder with the pure wheel, and with every compiled one that was built here."""
    dist = folder / "dist"
    _run("scripts/lab", "build-wheel", dist)
    for wheel in {_compiled_wheel(), *ROOT.glob(".compiled*/wheel/*.whl")}:
        shutil.copy(wheel, dist)
    return dist


def _install(python: Path, dist: Path) -> None:
    """By the name alone: pip chooses."""
    _run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check", "--no-index"),
        *("--force-reinstall", "--no-deps", "--find-links", dist, "antiphon"),
    )


def _chosen_for(version: str, dist: Path, folder: Path) -> str:
    """The wheel that pip downloads for another Python on this platform."""
    _run(
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-index", "--no-deps"),
        *("--find-links", dist, "--only-binary", ":all:", "--python-version", version, "--dest", folder, "antiphon"),
    )
    (wheel,) = folder.glob("*.whl")
    return wheel.name


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
    dist = _wheels(folder)
    python = _environment(folder / "env")

    _install(python, dist)
    assert _run(python, "-m", "antiphon", "--version").endswith(" (compiled)\n")
    assert "_splice.abi3.so" in {path.name for path in _extensions(python)}
    assert await _serves(python, server, folder / "one") == "compiled"

    # The page's commands, with the new environment's programs.
    (python.parent / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {python} "$@"\n')
    (python.parent / "pip").chmod(0o755)
    said = _run("sh", "-ec", block(PAGE, "troubleshooting-pure-wheel"), cwd=folder, path=str(python.parent))
    assert said.endswith(f"antiphon {antiphon.__version__}\n")
    assert not _extensions(python)
    assert await _serves(python, server, folder / "two") == "sources"


def test_other_pythons_get_the_pure_wheel(folder: Path) -> None:
    dist = _wheels(folder)
    compiled = {wheel.name.split("-")[2]: wheel.name for wheel in dist.glob("*-cp3*.whl")}
    assert f"cp3{sys.version_info.minor}" in compiled
    for minor in (11, 12, 13, 14, 15):
        chosen = _chosen_for(f"3.{minor}", dist, folder / str(minor))
        assert chosen == compiled.get(f"cp3{minor}", f"antiphon-{antiphon.__version__}-py3-none-any.whl")


@pytest.mark.skipif(sys.platform != "linux", reason="manylinux is Linux's")
def test_a_compiled_wheel_fits_other_linux_systems_and_has_the_splice() -> None:
    wheel = _compiled_wheel()
    assert "manylinux" in wheel.name and "-linux_" not in wheel.name
    with zipfile.ZipFile(wheel) as parts:
        assert "antiphon/translation/_splice.abi3.so" in parts.namelist()
