"""The check of words and sentence lengths finds what `docs/style.md` says, where it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.check_words import RULES, Finding, findings, lowered, read_rules, too_many

ROOT = Path(__file__).parents[2]
_RULES, _ = read_rules(
    """
longest = 5
longest_cell = 7
files = []
skip = []
[avoid]
"whoever|nobody" = "the actor"
"(?:is|are) told" = "the API returns"
"""
)
_LONG = "One two three four five six."


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("a.md", "Fine.\n\nWhoever asks\nis told.\n", [(3, "words"), (4, "words")]),
        ("a.md", f"Short one. {_LONG}\n", [(1, "long")]),
        ("a.md", "One two three four\nfive six.\n", [(1, "long")]),
        ("a.md", f"| a | {_LONG} |\n| --- | --- |\n- {_LONG}\n", [(1, "long"), (3, "long")]),
        # The parts of a cell are sentences. The whole cell has a limit too.
        ("a.md", "| a | One two three; four five six. |\n", []),
        ("a.md", "| a | One two three; four five; six seven eight. |\n", [(1, "cells")]),
        ("a.md", "| a | One `two \\| three four five six` seven. |\n", []),
        # A list of types or values is no sentence.
        ("a.md", "[A](#a) or [B](#b) or [C](#c) or [D](#d).\n", []),
        ("a.md", "A `x` is one of these seven words.\n", [(1, "long")]),
        # Code, links and what stands in backticks is no prose.
        ("a.md", "```sh\nnobody one two three four five six\n```\nSee `nobody` [x](nobody/x.md).\n", []),
        ("a.md", "```sh\nx\n```\n\nNobody.\n", [(5, "words")]),
        # A sentence may begin with code.
        ("a.md", "One two three four. `x` one two three.\n", []),
        ("a.py", f'"""{_LONG}"""\n', [(1, "long")]),
        ("a.py", '"""Fine."""\n\n\ndef f():\n    """Fine.\n\n    Nobody.\n    """\n', [(7, "words")]),
        ("a.py", 'raise E("what nobody can do here")\nx = "nobody"\n', [(1, "words")]),
        ("a.py", 'Q = "SELECT nobody FROM x WHERE y"\n', []),
        ("a.yaml", f"a: nobody\n# {_LONG}\nb: 1  # nobody\n", [(2, "long")]),
    ],
)
def test_what_breaks_a_rule_is_found(path: str, text: str, found: list[tuple[int, str]]) -> None:
    assert [(one.line, one.kind) for one in findings(path, text, _RULES)] == found


def test_a_file_may_have_as_many_as_its_line_says() -> None:
    found = [Finding("a.md", 1, "long", "x"), Finding("a.md", 2, "long", "x"), Finding("a.md", 3, "words", "x")]
    assert too_many(found, {"a.md": {"long": 2, "words": 1}}) == []
    assert too_many(found, {"a.md": {"long": 1, "words": 1}}) == found[:2]
    assert too_many(found, {}) == found


def test_counts_are_lowered_and_never_raised() -> None:
    head = "longest = 5\nlongest_cell = 5\nfiles = []\nskip = []\n[avoid]\n\n[allowed]\n"
    text = head + '"b.md" = { words = 2, long = 3 }\n"a.md" = { long = 1 }\n"c.md" = { words = 4 }\n'
    found = [Finding("a.md", 1, "long", "x")] * 2 + [Finding("b.md", 1, "long", "x")]
    assert lowered(text, found) == head + '"a.md" = { long = 1 }\n"b.md" = { long = 1 }\n'


@pytest.mark.full
@pytest.mark.long
def test_the_texts_of_the_repository_keep_the_rules() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lib" / "check_words.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_style_page_and_the_rules_avoid_the_same_words() -> None:
    page = (ROOT / "docs" / "style.md").read_text()
    table = page.partition("## Words")[2].partition("## Before")[0]
    rules, _ = read_rules(RULES.read_text())
    for words, _ in rules.avoid:
        assert words.search(table), words.pattern
