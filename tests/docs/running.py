"""A gateway for programs of the documentation: the HTTP server, a scripted model, an MCP server, a sandbox.

Use in a test:

    async with demo_gateway(folder) as gateway:
        lines = await gateway.run(["python", "examples/python/tools.py"])
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import REPOSITORY
from tests.support.commands import SECONDS, commands, run_command

WRITTEN = "http://127.0.0.1:8080/v1"
"""The address in the documentation."""
CLIENTS = REPOSITORY / ".clients"
"""Where `scripts/lab clients` installs the Node packages."""


async def printed(words: Sequence[str], folder: Path, environ: Mapping[str, str], *, status: int = 0) -> str:
    """What a program prints, on both outputs. It fails the test unless the program ends in time with this status."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == status, output.decode()
    return output.decode()


@dataclass(frozen=True)
class Gateway:
    """Where the gateway answers (`url` ends in `/v1`), and the folder in which programs run."""

    url: str
    folder: Path

    async def run(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> list[str]:
        """The lines that a program prints. It fails the test unless its exit status is 0."""
        words = [sys.executable if one == "python" else one.replace(WRITTEN, self.url) for one in command]
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("ANTIPHON_", "OPENAI_"))}
        path = os.pathsep.join((str(Path(sys.executable).parent), plain["PATH"]))
        given = {**plain, "PATH": path, "ANTIPHON_URL": self.url, "MODEL": "demo", **(environ or {})}
        return (await printed(words, self.folder, given)).splitlines()

    async def shell(self, text: str) -> list[str]:
        """The lines that a block of shell commands prints. The first command that fails ends it."""
        return await self.run(["bash", "-euo", "pipefail", "-c", text.replace(WRITTEN, self.url)])


@asynccontextmanager
async def demo_gateway(folder: Path) -> AsyncIterator[Gateway]:
    """`antiphon serve` in front of `antiphon demo-upstream`, with the connector `trains` and the code interpreter."""
    async with commands() as processes:
        demo = await run_command(processes, "demo-upstream", "--listen", "127.0.0.1:0")
        trains = await asyncio.create_subprocess_exec(
            *(sys.executable, str(REPOSITORY / "scripts" / "lib" / "demo_mcp_server.py")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert trains.stdout is not None
            async with asyncio.timeout(SECONDS):
                ready = (await trains.stdout.readline()).decode()
            settings = {
                "listen": "127.0.0.1:0",
                "data": str(folder / "data"),
                "upstream": {"url": await demo.line("ready: "), "auth": "none"},
                "mcp": {"connectors": {"trains": {"url": ready.removeprefix("ready: ").strip()}}},
                "code_interpreter": {"sandbox": "local"},
            }
            (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
            server = await run_command(processes, "serve", "--config", str(folder / "settings.yaml"))
            yield Gateway(await server.line("ready: "), folder)
        finally:
            trains.kill()
            await trains.wait()


def node() -> tuple[str, Path]:
    """Node, and a folder whose `node_modules` has the OpenAI SDK.

    Without them the test is skipped. With the environment variable `REQUIRE_NODE_SDK`, which CI sets, the test fails.
    """
    found = next((path for path in (CLIENTS / "py" / "bin" / "node",) if path.exists()), None) or shutil.which("node")
    if found is None or not (CLIENTS / "node_modules" / "openai").is_dir():
        reason = "the OpenAI SDK for Node is not installed: scripts/lab clients installs it"
        if os.environ.get("REQUIRE_NODE_SDK"):
            pytest.fail(reason)
        pytest.skip(reason)
    return str(found), CLIENTS
