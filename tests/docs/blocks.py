"""Fenced command blocks of the documentation: find them, read their marks, hand one to a test by its name.

Every block in `sh`, `bash`, `console`, `python` or `js` on a page has a mark on the line directly before it. So does a
block without a language that begins with a command of `PROGRAMS`:

    <!-- run: NAME -->              a test runs the block; `run.tsv` lists NAME and that test
    <!-- not run: REASON -->        no test runs it, and why

Use in a test:

    from tests.docs.blocks import block, blocks_named, commands

    CODE = block("docs/tutorials/chat-app.md", "chat-app-client")     # the text of the one block with that name
    PARTS = blocks_named("examples/README.md", "example-streaming")   # all blocks with that name, in the page's order
    LINES = commands(PARTS[0])       # shell commands: without prompts, output and comments; continued lines are joined

A name belongs to one page. `run.tsv` has one line a name: NAME, a tab, the test as `tests/docs/test_x.py::test_y`.
`python -m tests.docs.blocks` (or `scripts/docs blocks`) prints the counts of both kinds by page.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
REGISTRY = Path(__file__).with_name("run.tsv")
# The pages whose blocks have marks, as patterns of their paths in the repository.
PAGES = (
    "*.md",
    ".github/*.md",
    "docs/**/*.md",
    *(f"{folder}/**/*.md" for folder in ("deployments", "envoy", "examples", "lab", "tests")),
)
LANGUAGES = frozenset({"sh", "bash", "shell", "console", "python", "py", "js", "javascript", "mjs"})
# The programs with which a block of commands without a language begins.
PROGRAMS = frozenset(
    {
        *(
            "antiphon",
            "curl",
            "docker",
            "docker-compose",
            "envoy",
            "git",
            "helm",
            "jq",
            "kubectl",
            "make",
            "node",
            "npm",
        ),
        *("npx", "pip", "pip3", "psql", "pytest", "python", "python3", "sudo", "systemctl"),
    }
)

_FENCE = re.compile(r"(?P<indent>\s*)(?P<marks>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
_MARK = re.compile(r"\s*<!--\s*(?P<kind>run|not run):\s*(?P<text>.*?)\s*-->\s*")


@dataclass(frozen=True)
class Block:
    """One command block: `line` is that of its opening fence; at most one of `run` and `not_run` has a value."""

    page: str
    line: int
    language: str
    text: str
    run: str | None
    not_run: str | None


def pages() -> list[Path]:
    """All pages whose blocks have marks."""
    return [path for pattern in PAGES for path in sorted(REPOSITORY.glob(pattern))]


def _is_command(text: str) -> bool:
    """Whether a text without a language begins with a command, possibly behind a prompt."""
    first = next(iter(text.replace("$ ", "", 1).split()), "")
    return first in PROGRAMS or first.startswith(("scripts/", "./", ".venv/"))


def blocks_of(page: Path) -> list[Block]:
    """The command blocks of a page in the repository, in order."""
    return blocks_in(page.relative_to(REPOSITORY).as_posix(), page.read_text())


def blocks_in(page: str, markdown: str) -> list[Block]:
    """The command blocks of a text, in order. `page` is the path of each block."""
    found = []
    lines = markdown.splitlines()
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        start, at = at, at + 1
        if opening is None:
            continue
        # A fence ends at a line of at least as many of its marks; an indented one loses its indentation.
        closing = re.compile(rf"\s*{re.escape(opening['marks'][0])}{{{len(opening['marks'])},}}\s*")
        body = []
        while at < len(lines) and not closing.fullmatch(lines[at]):
            body.append(lines[at].removeprefix(opening["indent"]))
            at += 1
        at += 1
        whole = "".join(f"{line}\n" for line in body)
        if opening["language"] not in LANGUAGES and (opening["language"] or not _is_command(whole)):
            continue
        mark = _MARK.fullmatch(lines[start - 1]) if start else None
        kind, text = (mark["kind"], mark["text"]) if mark and mark["text"] else (None, None)
        found.append(
            Block(
                page=page,
                line=start + 1,
                language=opening["language"],
                text=whole,
                run=text if kind == "run" else None,
                not_run=text if kind == "not run" else None,
            )
        )
    return found


def all_blocks() -> list[Block]:
    """The command blocks of all pages that have marks."""
    return [block for page in pages() for block in blocks_of(page)]


def blocks_named(page: str, name: str) -> list[Block]:
    """The blocks of `page` (a path in the repository) that a test runs as `name`. Raises `LookupError` without any."""
    found = [block for block in blocks_of(REPOSITORY / page) if block.run == name]
    if not found:
        raise LookupError(f"{page} has no block with the mark <!-- run: {name} -->")
    return found


def block(page: str, name: str) -> str:
    """The text of the one block of `page` with that name. Raises `LookupError` when there is not exactly one."""
    found = blocks_named(page, name)
    if len(found) > 1:
        raise LookupError(f"{page} has {len(found)} blocks with the mark <!-- run: {name} -->: use blocks_named")
    return found[0].text


def commands(block: Block) -> list[str]:
    """The shell commands of a block. In a `console` block they follow a `$ `, and the other lines are output."""
    lines: list[str] = []
    continued = False
    for line in block.text.splitlines():
        if continued:
            lines[-1] += "\n" + line.removeprefix("> ")
        elif block.language == "console":
            if not line.startswith("$ "):
                continue
            lines.append(line.removeprefix("$ "))
        elif line.strip() and not line.lstrip().startswith("#"):
            lines.append(line)
        else:
            continue
        continued = line.endswith("\\")
    return lines


def registry() -> dict[str, str]:
    """What `run.tsv` lists: a block's name → the test that runs it. Raises `ValueError` for a name listed twice."""
    listed: dict[str, str] = {}
    for line in REGISTRY.read_text().splitlines():
        name, _, test = line.partition("\t")
        if name in listed:
            raise ValueError(f"{REGISTRY.name} lists {name} twice")
        listed[name] = test
    return listed


def counts() -> str:
    """A table of how many blocks are run, are not run, and have no mark, by page."""
    found = all_blocks()
    wide = max(len(block.page) for block in found)
    lines = [f"{'':{wide}}  {'run':>7}  {'not run':>7}  {'no mark':>7}"]
    for page in (*dict.fromkeys(block.page for block in found), "all"):
        these = [block for block in found if page in (block.page, "all")]
        run = sum(block.run is not None for block in these)
        not_run = sum(block.not_run is not None for block in these)
        lines.append(f"{page:{wide}}  {run:7}  {not_run:7}  {len(these) - run - not_run:7}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(counts() + "\n")
