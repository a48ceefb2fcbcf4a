"""Starts one client's process and reads its output, within limits of time and size.

Lives here: the environment of the clients and their processes. Not here: the requests (scenarios).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = 120.0
Result = dict[str, Any]


@dataclass(frozen=True)
class Installed:
    """The installed clients (`folder`), the gateway and the servers that they use."""

    folder: Path
    base_url: str
    upstream_url: str
    mode: str
    mcp_url: str = ""

    def python(self, environment: str = "py") -> str:
        """The Python interpreter of one of the environments."""
        return str(self.folder / environment / "bin" / "python")

    @property
    def node(self) -> str:
        return str(self.folder / "py" / "bin" / "node")

    async def run(
        self, *command: str, home: Path | None = None, work: Path | None = None, environ: Mapping[str, str] = {}
    ) -> str:
        """Run a process. Returns its standard output and error. Kills it after two minutes."""
        folder = work or self.folder / "work"
        folder.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={
                "PATH": f"{self.folder}/node_modules/.bin:{self.folder}/py/bin:{os.environ['PATH']}",
                "HOME": str(home or self.folder),
                "BASE_URL": self.base_url,
                "UPSTREAM_URL": self.upstream_url,
                "MODE": self.mode,
                "MCP_URL": self.mcp_url,
                "GATEWAY_KEY": "k",
                "CODEX_API_KEY": "k",
                "OPENAI_AGENTS_DISABLE_TRACING": "1",
                "LANGSMITH_TRACING": "false",
                **environ,
            },
            cwd=folder,
            # Some clients are scripts that start other processes, so the whole process group is killed.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        return output.decode("utf-8", "replace")
