"""The page about recordings: its agent is recorded, and its test passes without a model."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from antiphon.recordings.file import read_file
from tests.docs.blocks import block, blocks_named, commands
from tests.docs.running import printed
from tests.support import commands as processes

pytestmark = pytest.mark.slow

PAGE = "docs/how-to/record-and-replay.md"


async def test_the_page(tmp_path: Path) -> None:
    for name in ("record-agent", "replay-test"):
        text = block(PAGE, name)
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("ANTIPHON_", "OPENAI_"))}
    environ["PATH"] = path
    recording = tmp_path / "agent.jsonl"
    async with processes.commands() as started:
        url = await (await processes.run_command(started, "demo-upstream", "--listen", "127.0.0.1:0")).line("ready: ")
        record, up = commands(blocks_named(PAGE, "record-start")[0])
        words = record.replace("http://127.0.0.1:11434/v1", url).replace("agent.jsonl", str(recording)).split()
        recorder = await processes.run_command(started, *words[1:], "--listen", "127.0.0.1:0")
        words = up.replace("http://127.0.0.1:8082/v1", await recorder.line("ready: ")).split()
        gateway = await processes.run_command(
            started, *words[1:], "--listen", "127.0.0.1:0", "--data", str(tmp_path / "recorded")
        )
        asked = [sys.executable, "agent.py", await gateway.line("ready: ")]
        assert "Name a river" in await printed(asked, tmp_path, environ)
        assert await gateway.end(signal.SIGINT) == 0
        assert await recorder.end(signal.SIGINT) == 0
        assert any("#1  200" in line for line in recorder.err), recorder.err
    assert [entry.status for entry in read_file(recording) if entry.method == "POST"] == [200, 200]
    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_agent.py"]
    assert "1 passed" in await printed(tested, tmp_path, environ)
