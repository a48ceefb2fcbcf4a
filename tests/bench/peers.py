"""Other programs that serve the Responses API in front of a chat server, to compare with.

Lives here: `--peer NAME=URL` for one that runs already, and `--peer litellm`, which is installed into an environment
of its own and started here. Not here: what they are asked (`rounds.py`).

A peer is asked what its comparison needs (first events, short requests, bursts), not everything.

Invariant: what is installed is pinned, and nothing of it comes into Antiphon's environment.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import urllib.error
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from antiphon.commands.children import ParentPipe
from tests.bench.rounds import say
from tests.bench.variants import RESPONSES, Process, Protocol, Variant

# 1.107.0 is reported to be compromised.
LITELLM_VERSION = "1.106.2"
_FOLDER = Path(__file__).parents[2] / ".peers" / "litellm"
_START_SECONDS = 90.0
_CONFIG = """\
model_list:
  - model_name: "*"
    litellm_params:
      model: "deepseek/*"
      api_base: {url}
      api_key: none
litellm_settings:
  telemetry: false
"""


def read_pids(given: Sequence[str]) -> dict[str, list[int]]:
    """The process ids of peers by name, of every `--peer-pids NAME=PID,…`."""
    found = {}
    for one in given:
        name, _, pids = one.partition("=")
        try:
            found[name] = [int(pid) for pid in pids.split(",")]
        except ValueError:
            raise SystemExit(f"bench: --peer-pids {one}: write NAME=PID, or NAME=PID,PID,…") from None
        for pid in found[name]:
            if not Path(f"/proc/{pid}").is_dir():
                raise SystemExit(f"bench: --peer-pids {one}: no process has the id {pid}")
    return found


async def start_peer(
    given: str, upstream: int, folder: Path, pipe: ParentPipe, pids: Mapping[str, list[int]] = MappingProxyType({})
) -> Variant:
    """The peer of one `--peer`: `litellm`, or `NAME=URL` (`http://HOST:PORT/v1`) of one that uses some upstream.

    `pids`: of those that run already, by name; what these processes and all below them work is the peer's CPU time.
    """
    name, _, url = given.partition("=")
    if url:
        return _running(name, url, pids.get(name, []))
    if name != "litellm":
        raise SystemExit(f"bench: --peer {given}: write NAME=URL, or litellm")
    await asyncio.to_thread(_install)
    return await _start_litellm(upstream, folder, pipe)


def _running(name: str, url: str, pids: list[int]) -> Variant:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost") or not parts.port:
        raise SystemExit(f"bench: --peer {name}: {url} is not http://127.0.0.1:PORT/…")
    protocol = Protocol(f"{parts.path.rstrip('/')}/responses", RESPONSES.markers, RESPONSES.fields)
    return Variant(name, protocol, parts.port, peer=True, sidecar=pids)


def _install() -> None:
    program = _FOLDER / "bin" / "litellm"
    if not program.exists():
        say(f"install litellm {LITELLM_VERSION} into {_FOLDER}")
        venv.create(_FOLDER, with_pip=True, clear=True)
    python = str(_FOLDER / "bin" / "python")
    question = "import importlib.metadata as m; print(m.version('litellm'))"
    found = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False).stdout.strip()
    if found != LITELLM_VERSION:
        wanted = f"litellm[proxy]=={LITELLM_VERSION}"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted], check=True)


async def _start_litellm(upstream: int, folder: Path, pipe: ParentPipe) -> Variant:
    folder.mkdir()
    config = folder / "litellm.yaml"
    config.write_text(_CONFIG.format(url=f"http://127.0.0.1:{upstream}/v1"))
    port = _free_port()
    environment = {
        # On the loopback interface, for the length of this run.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        # Its price list is not fetched.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
    }
    process = await Process.start(
        folder / "litellm.log",
        *("/usr/bin/env", *(f"{name}={value}" for name, value in environment.items())),
        *(str(_FOLDER / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
        *("--num_workers", "1"),
        wait=False,
        pipe=pipe,
    )
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await asyncio.to_thread(_answers, port):
                if process.handle.returncode is not None:
                    raise SystemExit(f"bench: litellm did not start:\n{(folder / 'litellm.log').read_text()[-4000:]}")
                await asyncio.sleep(0.2)
    except BaseException:
        await process.stop()
        raise
    return Variant(
        f"litellm {LITELLM_VERSION}",
        RESPONSES,
        port,
        peer=True,
        processes=[process],
        sidecar=[process.pid],
    )


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
