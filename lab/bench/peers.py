"""Starts other programs that serve the Responses API in front of a chat server, for comparison.

Lives here: `--peer NAME=URL` for a program that already runs. For `--peer litellm` and `--peer ogx`, this module
installs the program from PyPI into a separate environment and starts it. Not here: the requests (`rounds.py`).

A peer runs only the jobs that its comparison needs: first events, short requests, bursts.

Invariant: the versions are pinned, and no package is installed into Antiphon's environment.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from antiphon.supervisor.children import ParentPipe
from lab.bench.rounds import say
from lab.bench.variants import RESPONSES, Process, Protocol, Variant

_FOLDER = Path(__file__).parents[2] / ".peers"
_START_SECONDS = 90.0
_LITELLM = """\
model_list:
  - model_name: "*"
    litellm_params:
      model: "deepseek/*"
      api_base: {url}
      api_key: none
litellm_settings:
  telemetry: false
"""
# The configuration enables only inference and responses, on SQLite. OGX's own distributions also include models.
_OGX = """\
version: 2
distro_name: bench
apis: [inference, responses, tool_runtime, vector_io, files, file_processors]
providers:
  inference:
  - provider_id: upstream
    provider_type: remote::vllm
    config: {{base_url: "{url}", api_token: none}}
  files:
  - provider_id: builtin-files
    provider_type: inline::localfs
    config:
      storage_dir: {folder}/files
      metadata_store: {{table_name: files_metadata, backend: sql_default}}
  responses:
  - provider_id: builtin
    provider_type: inline::builtin
    config:
      persistence:
        responses: {{table_name: responses, backend: sql_default, max_write_queue_size: 10000, num_writers: 4}}
  vector_io: []
  file_processors: []
  tool_runtime: []
storage:
  backends:
    kv_default: {{type: kv_sqlite, db_path: {folder}/kv.db}}
    sql_default: {{type: sql_sqlite, db_path: {folder}/sql.db}}
  stores:
    metadata: {{namespace: registry, backend: kv_default}}
    inference: {{table_name: inference, backend: sql_default, max_write_queue_size: 10000, num_writers: 4}}
    conversations: {{table_name: conversations, backend: sql_default}}
    prompts: {{table_name: prompts, backend: sql_default}}
    connectors: {{table_name: connectors, backend: sql_default}}
server: {{host: 127.0.0.1, port: {port}}}
"""


@dataclass(frozen=True)
class _Program:
    """A server from PyPI. `command` and `config` have the placeholders `{config}`, `{port}`, `{folder}`, and `{url}`
    for the upstream."""

    package: str
    version: str
    extra: str
    python: tuple[int, int]
    """The oldest Python version on which the program runs."""
    config: str
    command: str
    health: str
    prefix: str = ""
    """The prefix of a model's name in requests to the program."""
    environment: Mapping[str, str] = field(default_factory=dict)


PROGRAMS = {
    "litellm": _Program(
        "litellm",
        # 1.107.0 is reported to be compromised.
        "1.106.2",
        "[proxy]",
        (3, 11),
        _LITELLM,
        "litellm --config {config} --host 127.0.0.1 --port {port} --num_workers 1",
        "/health/liveliness",
        environment={
            # The server listens on the loopback interface, and only during this run.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            # The program does not download its price list.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        },
    ),
    "ogx": _Program("ogx", "1.5.0", "", (3, 12), _OGX, "ogx run {config} --insecure", "/v1/health", prefix="upstream/"),
}


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
    """The peer of one `--peer`: `litellm`, `ogx`, or `NAME=URL` (`http://HOST:PORT/v1`) for a program with a separately
    configured upstream.

    `pids`: the processes of already running peers, by name. The CPU time of these processes and their descendants is
    the peer's.
    """
    name, _, url = given.partition("=")
    if url:
        return _running(name, url, pids.get(name, []))
    if name not in PROGRAMS:
        raise SystemExit(f"bench: --peer {given}: write NAME=URL, or one of {', '.join(PROGRAMS)}")
    await asyncio.to_thread(_install, PROGRAMS[name])
    return await _start(PROGRAMS[name], upstream, folder, pipe)


def _running(name: str, url: str, pids: list[int]) -> Variant:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost") or not parts.port:
        raise SystemExit(f"bench: --peer {name}: {url} is not http://127.0.0.1:PORT/…")
    protocol = Protocol(f"{parts.path.rstrip('/')}/responses", RESPONSES.markers, RESPONSES.fields)
    return Variant(name, protocol, parts.port, peer=True, sidecar=pids)


def _install(program: _Program) -> None:
    folder = _FOLDER / program.package
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        say(f"install {program.package} {program.version} into {folder}")
        subprocess.run([_find_python(program), "-m", "venv", "--clear", str(folder)], check=True)
    question = f"import importlib.metadata as m; print(m.version({program.package!r}))"
    found = subprocess.run([python, "-c", question], capture_output=True, text=True, check=False).stdout.strip()
    if found != program.version:
        wanted = f"{program.package}{program.extra}=={program.version}"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted], check=True)


def _find_python(program: _Program) -> str:
    """The path of a Python that is new enough for the program."""
    if sys.version_info >= program.python:
        return sys.executable
    asks = f"import sys; sys.exit(sys.version_info < {program.python})"
    for minor in range(program.python[1], program.python[1] + 4):
        name = f"python3.{minor}"
        if shutil.which(name) and not subprocess.run([name, "-c", asks], capture_output=True, check=False).returncode:
            return name
    wanted = f"python{program.python[0]}.{program.python[1]}"
    raise SystemExit(f"bench: {program.package} needs {wanted} or newer: put one into PATH")


async def _start(program: _Program, upstream: int, folder: Path, pipe: ParentPipe) -> Variant:
    folder.mkdir()
    known = {"port": str(_free_port()), "url": f"http://127.0.0.1:{upstream}/v1", "folder": str(folder)}
    config, log = folder / "config.yaml", folder / "log"
    config.write_text(program.config.format(**known))
    name, *arguments = (word.format(config=config, **known) for word in program.command.split())
    process = await Process.start(
        log,
        *("/usr/bin/env", *(f"{key}={value}" for key, value in program.environment.items())),
        *(str(_FOLDER / program.package / "bin" / name), *arguments),
        wait=False,
        pipe=pipe,
    )
    port = int(known["port"])
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}{program.health}"):
                if process.handle.returncode is not None:
                    raise SystemExit(f"bench: {program.package} did not start:\n{log.read_text()[-4000:]}")
                await asyncio.sleep(0.2)
    except BaseException:
        await process.stop()
        raise
    return Variant(
        f"{program.package} {program.version}",
        replace(RESPONSES, prefix=program.prefix),
        port,
        peer=True,
        processes=[process],
        sidecar=[process.pid],
    )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
