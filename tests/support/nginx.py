"""Runs a real nginx with the configuration of this repository, for tests.

Lives here: copying `deployments/nginx/antiphon.conf` into a separate folder with other addresses, certificates and log,
starting and stopping nginx. Not here: the servers behind it.

Invariant: each line that must be replaced exists in the file. The module stops the process by its own handle.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.waiting import until

SHIPPED = Path(__file__).parents[2] / "deployments/nginx"
_SERVER = "    server {} max_fails=3 fail_timeout=5s;\n"
_SERVERS = _SERVER.format("127.0.0.1:8081") + _SERVER.format("127.0.0.1:8082")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
_STOP_SECONDS = 20.0


def nginx_program() -> str | None:
    """The path of nginx, or None if it is not installed."""
    return os.environ.get("NGINX") or shutil.which(
        "nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )


NEEDS_NGINX = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(nginx_program() is None, reason="nginx is not installed (NGINX: its path)"),
]
"""The pytest marks of modules whose tests start nginx."""

ALICE = {"authorization": "Bearer alice"}
ASKING: dict[str, Any] = {"model": "demo-model", "input": "hi", "store": False}
"""The request that clients send through nginx."""


@dataclass
class Nginx:
    """A running nginx. `address` is `127.0.0.1:PORT` for TLS connections, and `tls` is a client's context for it."""

    address: str
    folder: Path
    tls: ssl.SSLContext
    authority: Authority
    process: asyncio.subprocess.Process

    @property
    def base_url(self) -> str:
        return f"https://{self.address}/v1"

    @property
    def origin(self) -> str:
        return f"https://{self.address}"

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def error_log(self) -> str:
        return (self.folder / "error.log").read_text()

    def access_log(self) -> list[str]:
        return (self.folder / "access.log").read_text().splitlines()

    def temporary_files(self) -> list[Path]:
        """The temporary files of nginx on the disk, including open files that are already deleted."""
        named = [file for name in _TEMPORARY for file in (self.folder / name).rglob("*") if file.is_file()]
        links = (link for pid in self.workers for link in Path(f"/proc/{pid}/fd").iterdir())
        return named + [link for link in links if link.exists() and "(deleted)" in os.readlink(link)]

    async def leave_out(self, replica: str) -> None:
        """Remove this replica from the upstreams, as docs/how-to/behind-a-proxy.md describes. Returns once the new
        workers serve."""
        file = self.folder / "antiphon.conf"
        text, count = re.subn(rf"server {re.escape(replica)} (?!down)", f"server {replica} down ", file.read_text())
        assert count == 1, f"{replica} is not in {file}"
        file.write_text(text)
        before = set(self.workers)
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: set(self.workers) - before)

    async def stop(self) -> None:
        """Stop nginx immediately."""
        if self.process.returncode is None:
            self.process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def write_configuration(folder: Path, replicas: Sequence[str], port: int, changes: dict[str, str]) -> Authority:
    """Write the configuration into this folder, for these replicas (`HOST:PORT`). `changes`: further texts to
    replace."""
    authority = Authority(folder)
    signed = authority.sign("server")
    servers = "".join(_SERVER.format(place) for place in replicas)
    replaced = {
        _SERVERS: servers,
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "/etc/nginx/antiphon/server.pem": str(signed.cert),
        "/etc/nginx/antiphon/server.key": str(signed.key),
        "/var/log/nginx/antiphon.log": str(folder / "access.log"),
        **changes,
    }
    text = (SHIPPED / "antiphon.conf").read_text()
    for old, new in replaced.items():
        assert text.count(old) == 1, f"antiphon.conf does not have it once: {old}"
        text = text.replace(old, new)
    (folder / "antiphon.conf").write_text(text)
    for name in _TEMPORARY:
        (folder / name).mkdir()
    places = "\n".join(f"    {name}_temp_path {folder / name};" for name in _TEMPORARY)
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log info;\nworker_processes 2;\n"
        f"events {{ worker_connections 1024; }}\nhttp {{\n{places}\n    include {folder}/antiphon.conf;\n}}\n"
    )
    return authority


async def start_nginx(folder: Path, replicas: Sequence[str], changes: dict[str, str] | None = None) -> Nginx:
    """Start nginx in front of these replicas. Returns once it accepts connections."""
    program = nginx_program()
    assert program is not None
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    authority = write_configuration(folder, replicas, port, changes or {})
    command = (program, "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(folder / "nginx.conf"))
    with (folder / "output.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    nginx = Nginx(f"127.0.0.1:{port}", folder, ssl.create_default_context(cafile=authority.ca), authority, process)

    def serves() -> bool:
        assert process.returncode is None, (folder / "output.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    await until(serves)
    return nginx
