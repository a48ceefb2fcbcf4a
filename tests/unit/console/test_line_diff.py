"""Two texts side by side: each line appears once on its side, and similar lines stand beside each other."""

from __future__ import annotations

import pytest

from antiphon.console.views.prompts import MOST_LINES, compare, template_lines

OLD = ["You are short.", "Answer in English.", "Bye."]
NEW = ["You are short.", "Never promise refunds.", "Answer in English, politely.", "Bye."]


@pytest.mark.parametrize(
    ("old", "new"),
    [(OLD, NEW), (NEW, OLD), (OLD, OLD), ([], NEW), (OLD, []), (["a"] * 50, ["b"] * 30), (["a", "b"], ["b", "a"])],
)
def test_each_side_holds_its_whole_text(old: list[str], new: list[str]) -> None:
    rows = compare(old, new)
    assert [row.left_text for row in rows if row.left] == old
    assert [row.right_text for row in rows if row.right] == new
    assert [row.left for row in rows if row.left] == list(range(1, len(old) + 1))
    assert all(row.left_text == row.right_text for row in rows if row.kind == "same")


def test_similar_lines_stand_beside_each_other() -> None:
    rows = compare(OLD, NEW)
    assert [row.kind for row in rows] == ["same", "added", "changed", "same"]
    assert (rows[2].left_text, rows[2].right_text) == (OLD[1], NEW[2])


def test_a_long_text_is_cut() -> None:
    rows = compare([f"a{n}" for n in range(MOST_LINES + 50)], [f"b{n}" for n in range(3)])
    assert sum(bool(row.left) for row in rows) == MOST_LINES


def test_a_template_as_lines() -> None:
    version = {
        "id": "pmpt_1",
        "version": "2",
        "metadata": {"a": "b"},
        "variables": ["x"],
        "tools": [{"type": "web_search"}],
        "instructions": "Be {{x}}.\nBye.",
        "description": None,
        "temperature": 0.5,
    }
    assert template_lines(version) == [
        "instructions:",
        "  Be {{x}}.",
        "  Bye.",
        "temperature: 0.5",
        "tools:",
        "  [",
        "    {",
        '      "type": "web_search"',
        "    }",
        "  ]",
    ]
