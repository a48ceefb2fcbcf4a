"""The package of the page on extensions, as it stands there: its files, its test, its commands."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import REPOSITORY, block
from tests.docs.running import printed
from tests.support.commands import commands, run_command
from tests.support.installed_package import write_info

_PAGE = "docs/how-to/extensions.md"
_TEXT = (REPOSITORY / _PAGE).read_text()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The page's package, installed in a folder."""
    folder = tmp_path / "packages"
    folder.mkdir()
    about = tomllib.loads("".join(re.findall(r"^```toml\n(.*?)^```", _TEXT, re.DOTALL | re.MULTILINE)))["project"]
    code = block(_PAGE, "extension-tool") + block(_PAGE, "extension-profile")
    (folder / "antiphon_dice.py").write_text(code)
    (folder / "test_antiphon_dice.py").write_text(block(_PAGE, "extension-test"))
    write_info(folder, about["name"], about["version"], about["entry-points"])
    return folder


async def _run(package: Path, *command: str, cwd: Path) -> str:
    path = os.pathsep.join((str(package), str(REPOSITORY / "src")))
    return await printed(command, cwd, {**os.environ, "PYTHONPATH": path})


async def test_the_packages_own_test_passes(package: Path) -> None:
    said = await _run(package, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".", cwd=package)
    assert "2 passed" in said


@pytest.mark.slow
async def test_the_request(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join((str(package), str(REPOSITORY / "src")))
    monkeypatch.setenv("PYTHONPATH", path)
    extensions = yaml.safe_load(_TEXT.partition("```yaml\n")[2].partition("```")[0])
    async with commands() as processes:
        demo = await run_command(processes, "demo-upstream", "--listen", "127.0.0.1:0")
        own = {
            "listen": "127.0.0.1:0",
            "data": str(tmp_path / "data"),
            "upstream": {"url": await demo.line("ready: "), "profile": "acme"},
        }
        settings = tmp_path / "settings.yaml"
        settings.write_text(yaml.safe_dump({**extensions, **own}))
        server = await run_command(processes, "serve", "--config", str(settings))
        url = await server.line("ready: ")
        text = block(_PAGE, "extension-request").replace("http://127.0.0.1:8080/v1", url)
        said = json.loads(await _run(package, "bash", "-euo", "pipefail", "-c", text, cwd=tmp_path))
        call, message = said["output"]
        assert (call["type"], call["server_label"]) == ("mcp_call", "dice") and 1 <= int(call["output"]) <= 20
        assert message["content"][0]["text"] == f"The tool said: {call['output']}"
        told = await _run(package, sys.executable, "-m", "antiphon", "doctor", "--config", str(settings), cwd=tmp_path)
        assert "installed in addition to Antiphon: tool 'dice' of antiphon-dice 1.0" in told
        shown = await _run(package, sys.executable, "-m", "antiphon", "config", "--config", str(settings), cwd=tmp_path)
        assert yaml.safe_load(shown)["extensions"] == {"dice": {"sides": 12}}
