"""Starts an Envoy with a foreign configuration and Antiphon's sidecar, each as a separate process.

Lives here: starting and ending both processes. Not here: the configurations, and the check of their readiness (the
tests).

Invariant: both processes have ended when the context ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.envoy_binary import envoy_binary


@asynccontextmanager
async def envoy_and_sidecar(
    folder: Path, bootstrap: dict[str, Any], settings: dict[str, Any], *flags: str
) -> AsyncIterator[Callable[[], None]]:
    """Start both processes, with their output in the file `log` of the folder. Yields a function that fails if one of
    the two processes has ended."""
    (folder / "envoy.yaml").write_text(yaml.safe_dump(bootstrap, sort_keys=False))
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    log = (folder / "log").open("wb")
    commands = (
        (sys.executable, "-m", "antiphon", "extproc", "--config", str(folder / "settings.yaml")),
        (
            *(str(envoy_binary()), "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart"),
            # The tests read Envoy's access log, so Envoy must flush it often.
            *("--file-flush-interval-msec", "100", *flags),
        ),
    )
    processes = [
        await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=plain) for command in commands
    ]

    def alive() -> None:
        assert all(one.returncode is None for one in processes), (folder / "log").read_text()[-3000:]

    try:
        yield alive
    finally:
        log.close()
        for process in processes:
            if process.returncode is None:
                process.terminate()
            await process.wait()
