"""Texts of models on a terminal: what is escaped, what stays, and where colours are."""

from __future__ import annotations

import io

import pytest

from antiphon.commands.terminal import colors_on, dimmed, one_line, printable_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("two\nlines\tand a tab\n", "two\nlines\tand a tab\n"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("a C1 control: \x9b31m", "a C1 control: \\x9b31m"),
        ("deleted\x7f\x08", "deleted\\x7f\\x08"),
        ("reordered \u202egpj.exe", "reordered \\u202egpj.exe"),
        ("half \ud83d", "half \\ud83d"),
        # A family of joined emoji, a space that does not break, and a text from right to left.
        ("👨\u200d👩\u200d👧 10\u00a0km שלום", "👨\u200d👩\u200d👧 10\u00a0km שלום"),
    ],
)
def test_a_terminal_interprets_nothing_of_a_text(text: str, shown: str) -> None:
    assert printable_text(text) == shown


def test_one_line_is_short_and_safe() -> None:
    assert one_line("a\n  b\tc", 10) == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"
    assert one_line("\x1b[31mred", 40) == "\\x1b[31mred"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "colors"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_whose_user_wants_them(environ: dict[str, str], colors: bool) -> None:
    assert colors_on(_Terminal(), environ) is colors
    assert colors_on(io.StringIO(), environ) is False


def test_a_dimmed_text_ends_its_colour() -> None:
    assert dimmed("x", colors=True) == "\x1b[2mx\x1b[0m"
    assert dimmed("x", colors=False) == "x"
    assert dimmed("", colors=True) == ""
