"""The programs of examples/ run as written, against a gateway with a scripted model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import REPOSITORY, block
from tests.docs.running import Gateway, demo_gateway, node

# `.ci/run` runs this file by its name, after it has installed the SDK for Node.
pytestmark = [pytest.mark.full, pytest.mark.long]
EXAMPLES = REPOSITORY / "examples"
# What each program prints, as a pattern over its lines.
PRINTED = {
    "first_response": r"model: You said: Name a river\.\nmodel: Before, you said: .Name a river\..\ntokens: \d+",
    "streaming": r"You said: Please think, then tell me about rivers\.\nstatus: completed",
    "tools": (
        r'called: get_weather \{"city": ?"Paris"\} -> sunny in Paris\n'
        r'called: get_weather \{"city": ?"Oslo"\} -> sunny in Oslo\n'
        r"model: The tool said: sunny in Paris.*sunny in Oslo"
    ),
    "mcp": (
        r'tools: departures\ncalled: departures \{"city": ?"Oslo"\} -> From Oslo: 9:04.*\n'
        r"model: The tool said: .*9:04"
    ),
    "file_search": r"found: bicycles\.md \(0\.\d+\)\nmodel: The tool said: +bicycles\.md .*\n.*flat tyre",
    "background": r"left after event 3\nstatus: completed\nmodel: You said: Tell me about rivers\.",
}


def test_every_program_is_there_in_both_languages_and_on_the_page() -> None:
    assert {path.stem for path in (EXAMPLES / "python").glob("*.py")} == set(PRINTED)
    assert {path.stem for path in (EXAMPLES / "javascript").glob("*.mjs")} == set(PRINTED)
    assert set(re.findall(r"^\| `(\w+)` \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)) == set(PRINTED)


def _check(name: str, lines: list[str]) -> None:
    assert re.search(PRINTED[name], "\n".join(lines)), lines


def _node_files(folder: Path) -> str:
    # Node finds packages beside the script.
    found, packages = node()
    (folder / "examples").mkdir()
    shutil.copytree(EXAMPLES / "javascript", folder / "examples" / "javascript")
    (folder / "examples" / "node_modules").symlink_to(packages / "node_modules")
    return found


async def test_the_python_programs(tmp_path: Path) -> None:
    async with demo_gateway(tmp_path) as gateway:
        for name in PRINTED:
            _check(name, await gateway.run(["python", str(EXAMPLES / "python" / f"{name}.py")]))
        (tmp_path / "examples").symlink_to(EXAMPLES)
        _check("first_response", await gateway.shell(block("examples/README.md", "example-python")))


async def test_the_javascript_programs(tmp_path: Path) -> None:
    found = _node_files(tmp_path)
    async with demo_gateway(tmp_path) as gateway:
        for name in PRINTED:
            _check(name, await gateway.run([found, str(tmp_path / "examples" / "javascript" / f"{name}.mjs")]))
        await _the_page(gateway, found)


async def _the_page(gateway: Gateway, found: str) -> None:
    text = block("examples/README.md", "example-javascript").replace(" node ", f" {found} ")
    _check("first_response", await gateway.shell(text))
