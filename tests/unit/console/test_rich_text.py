"""Markdown of models becomes HTML that can run nothing and loads nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.console.rich_text import markdown, pretty_json

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "![x](http://attacker.example/pixel.png)",
    "<a href='javascript:alert(1)'>x</a>",
    "<svg/onload=alert(1)>",
    "<style>body{display:none}</style>",
    '<iframe srcdoc="<script>alert(1)</script>">',
    "[x](http://a.example \"onmouseover='alert(1)'\")",
    "```html\n<script>alert(1)</script>\n```",
    "<!--><img src=x onerror=alert(1)>-->",
    "[a]: javascript:alert(1)\n\n[a]",
    "<form action=/console/sign-out method=post><button>x</button></form>",
]
_ACTIVE = re.compile(r"<(script|img|iframe|svg|style|form|object|embed|link|meta|base)\b|<[^>]+\son\w+\s*=", re.I)
_LINK = re.compile(r'href="([^"]*)"')


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_nothing_active(text: str) -> None:
    made = str(markdown(text))
    assert not _ACTIVE.search(made)
    assert all(link.startswith(("http://", "https://", "mailto:")) for link in _LINK.findall(made))


@given(st.text(alphabet="<>&\"'`[]()!#*_-:/ =\nabcjsonerimgpt", max_size=200))
def test_no_text_becomes_active(text: str) -> None:
    assert not _ACTIVE.search(str(markdown(text)))


def test_markdown_is_readable() -> None:
    made = str(markdown("# A\n\n**bold** `code`\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n[x](https://a.example)"))
    for part in ("<h1>A</h1>", "<strong>bold</strong>", "<code>code</code>", "<td>1</td>"):
        assert part in made
    assert 'rel="noopener noreferrer nofollow"' in made


def test_an_image_becomes_a_link() -> None:
    made = str(markdown("![a picture](https://a.example/x.png)"))
    assert "<img" not in made and 'href="https://a.example/x.png"' in made


def test_the_rest_of_a_long_text_is_plain() -> None:
    made = str(markdown("a" * 10_000 + "<b>end</b>"))
    assert "&lt;b&gt;end&lt;/b&gt;" in made


def test_json_that_indentation_would_multiply_is_cut() -> None:
    hostile = "[" * 900 + "1," * 200_000 + "1" + "]" * 900
    assert len(pretty_json(hostile)) < 110_000
    assert len(pretty_json("x" * 1_000_000)) < 110_000
    assert len(pretty_json("[" * 1_000_000)) < 110_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"a":1}', '{\n  "a": 1\n}'),
        ("no json", "no json"),
        (b"\xff", "\ufffd"),
        ({"ä": 1}, '{\n  "ä": 1\n}'),
        ("", ""),
    ],
)
def test_json_is_indented_where_it_is_json(value: object, shown: str) -> None:
    assert pretty_json(value) == shown
