"""`antiphon doctor` as a command, with the real Envoy and the demo upstream."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SECONDS = 60.0


async def _run(*arguments: str, **environ: str) -> tuple[int, str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "antiphon", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**plain, **environ},
    )
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_demo_upstream_and_envoy_are_well(tmp_path: Path) -> None:
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "antiphon", "demo-upstream", "--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert demo.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            url = (await demo.stdout.readline()).decode().partition("ready: ")[2].strip()
        with tempfile.TemporaryDirectory(prefix="ap-", dir="/tmp") as folder:
            status, out, err = await _run("doctor", "--upstream", url, "--data", folder, "--images")
            # Its answers are scripted: what it takes and does not do is noted, and nothing is wrong.
            assert status == 0 and err.startswith("doctor: ") and "all good" not in err, out + err
            assert "problem" not in out and "json_schema" in out
            assert "Envoy accepts the generated configuration" in out
            assert "streaming: yes" in out and "tool calls in streams: yes" in out
            status, out, _ = await _run("doctor", "--upstream", url, "--data", folder, "--json", "--model", "none")
            assert status == 1
            problem = next(one for one in json.loads(out) if one["verdict"] == "problem")
            assert problem["what"].startswith("model none does not answer: HTTP 404")
            assert "demo, demo-reasoner" in problem["advice"]
    finally:
        demo.terminate()
        await demo.wait()


async def test_an_envoy_that_is_none_is_a_problem(tmp_path: Path) -> None:
    fake = tmp_path / "envoy"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    arguments = ("--envoy", str(fake), "--data", str(tmp_path / "d"), "--upstream", "http://127.0.0.1:9/v1")
    status, out, err = await _run("doctor", *arguments)
    assert status == 1 and "antiphon up --door http" in out and "doctor: 2 to fix" in err


async def test_settings_that_are_wrong_are_told_as_such(tmp_path: Path) -> None:
    status, _, err = await _run("doctor", ANTIPHON_UPSTREAM__PROFILE="nonsense", ANTIPHON_DATA=str(tmp_path))
    assert status in (1, 2) and "Traceback" not in err
