"""Every command block of the documentation is run by a test, or says why not."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.blocks import REPOSITORY, Block, all_blocks, blocks_in, counts, pages, registry

_BLOCKS = all_blocks()
_NAMED = {block.run: block for block in _BLOCKS if block.run is not None}


def test_every_block_has_a_mark() -> None:
    unmarked = [f"{block.page}:{block.line}" for block in _BLOCKS if block.run is None and block.not_run is None]
    assert unmarked == [], "put <!-- run: NAME --> or <!-- not run: REASON --> on the line before each"


@pytest.mark.parametrize(
    ("fence", "found"),
    [
        ("```sh\nls\n```", True),
        ("```\nscripts/lab build-wheel\n```", True),
        ("~~~\n$ antiphon doctor\n~~~", True),
        ("  ```\n  curl http://127.0.0.1\n  ```", True),
        ("```\nready: http://127.0.0.1\n```", False),
        ("```text\nantiphon is a word\n```", False),
        ("```yaml\na: 1\n```", False),
    ],
)
def test_a_block_of_commands_is_found_without_a_language_too(fence: str, found: bool) -> None:
    assert bool(blocks_in("x.md", f"Text.\n\n{fence}\n")) == found


def test_no_folder_of_pages_is_left_out() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("the sources are no git checkout")
    assert set(listed.stdout.split()) - {page.relative_to(REPOSITORY).as_posix() for page in pages()} == set()


def test_a_reason_is_a_reason() -> None:
    assert [block.page for block in _BLOCKS if block.not_run is not None and len(block.not_run.split()) < 3] == []


def test_every_name_is_registered_and_every_row_has_its_block() -> None:
    assert set(registry()) == set(_NAMED)


@pytest.mark.parametrize("name", sorted(_NAMED))
def test_the_registered_test_reads_the_block(name: str) -> None:
    path, _, function = registry()[name].partition("::")
    text = (REPOSITORY / path).read_text()
    functions = {
        one.name for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert function in functions, registry()[name]
    # By its name, or all blocks of its page.
    assert f'"{name}"' in text or Path(_NAMED[name].page).name in text


def test_ci_repeats_the_tests_that_need_node() -> None:
    """`.ci/run` installs the SDK for Node late, so the full run skips these tests."""
    ci = (REPOSITORY / ".ci" / "run").read_text()
    repeated = next(line for line in ci.splitlines() if line.startswith("REQUIRE_NODE_SDK=1 scripts/test "))
    users = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if re.search(r"^from tests\.docs\.running import .*\bnode\b", path.read_text(), re.MULTILINE)
    ]
    assert len(users) > 1 and [path for path in users if path not in repeated] == []
    assert ci.index("scripts/lab clients") < ci.index(repeated)


def test_counts_have_a_row_for_each_page() -> None:
    lines = counts().splitlines()
    assert lines[-1].split() == ["all", str(len(_ran())), str(len(_BLOCKS) - len(_ran())), "0"]
    assert {line.split()[0] for line in lines[1:-1]} == {block.page for block in _BLOCKS}


def _ran() -> list[Block]:
    return [block for block in _BLOCKS if block.run is not None]
