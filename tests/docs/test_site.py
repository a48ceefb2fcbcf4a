"""The site of the documentation: it builds without a warning, and its pages load nothing from another host."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LOADING = {
    **dict.fromkeys(("script", "img", "iframe", "source", "audio", "video", "embed", "track"), ("src", "srcset")),
    "link": ("href",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
"""Attributes whose address a browser loads by itself. `a` is none of them: a person follows it."""
_OUTSIDE = re.compile(r"\s*(?:https?:)?//")


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        # A canonical address or a licence is a statement; nothing loads it.
        if tag == "link" and (values.get("rel") or "") in ("canonical", "license", "author"):
            return
        self.found += [values[name] or "" for name in _LOADING.get(tag, ()) if name in values]
        self.found += _of_style(values.get("style") or "")


def _of_style(text: str) -> list[str]:
    return re.findall(r"""(?:url\(\s*|@import\s+)["']?([^"')\s;]+)""", text)


def outside_loads(page: str) -> list[str]:
    """The addresses of other hosts that a browser loads when it shows this HTML."""
    reader = _Loads()
    reader.feed(page)
    styles = [one for text in re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL) for one in _of_style(text)]
    return [one for one in (*reader.found, *styles) if _OUTSIDE.match(one)]


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://a.example/x.js"></script>',
        '<img src="//a.example/x.png">',
        '<link rel="stylesheet" href="https://a.example/x.css">',
        '<style>@import "https://a.example/x.css";</style>',
        '<p style="background: url(https://a.example/x.png)">',
        '<iframe src="http://a.example/"></iframe>',
    ],
)
def test_what_another_host_would_send_is_found(page: str) -> None:
    assert outside_loads(page)
    assert not outside_loads('<a href="https://a.example/">x</a><img src="images/x.png">')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `scripts/docs build` does: a warning fails it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([ROOT / "scripts" / "docs", "build", folder], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.full
def test_every_page_is_built_and_found_by_the_search(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert (site / f"{name}.html").is_file() and f'"{name}"' in index, name
    assert "backpressur" in index


@pytest.mark.full
def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    loads = {str(page.relative_to(site)): outside_loads(page.read_text()) for page in site.rglob("*.html")}
    assert len(loads) > 40 and not {page: found for page, found in loads.items() if found}
    for style in site.rglob("*.css"):
        assert not [one for one in _of_style(style.read_text()) if _OUTSIDE.match(one)], style


@pytest.mark.full
def test_the_site_has_dark_and_light(site: Path) -> None:
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert "prefers-color-scheme:dark" in styles.replace(": ", ":") and 'class="theme-toggle"' in (
        site / "index.html"
    ).read_text().replace("theme-toggle theme-toggle-header", "theme-toggle")
