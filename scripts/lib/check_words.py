"""Checks the words, the sentences and the table cells of texts: documentation, docstrings, messages, YAML comments.

`docs/style.md` explains the rules. `check_words.toml` has the words to avoid, and the limits of sentences and cells.
The toml file has a line for each file that may still have findings, with their permitted number by kind. A file without
a line may have no finding. So old texts can improve step by step, and no text gets worse.

    scripts/lib/check_words.py            # fails where a file has more findings than it may have, and lists them
    scripts/lib/check_words.py --all      # lists every finding
    scripts/lib/check_words.py --lower    # writes the present counts, where they are lower

A list of types or values is not a sentence: of such a list, two of five words are code or links. The parts of a table
cell between semicolons count as separate sentences.

Not here: spelling.
Invariant: `--lower` never raises a count.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULES = Path(__file__).with_suffix(".toml")
KINDS = ("words", "long", "cells")
_FENCE = re.compile(r"^(\s*)(```|~~~).*?^\s*\2\s*$", re.MULTILINE | re.DOTALL)
_NOT_PROSE = re.compile(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|https?://\S+", re.DOTALL)
_COMMAND = re.compile(r"(?m)^ {4,}(?:\S*antiphon|scripts/\S+) .*$")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[)\"']?\s+(?=[\"'(`A-Z0-9\[*])")
_CELL_END = re.compile(r"(?<!\\)\|")
_LISTED = 0.4
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|FROM|WHERE)\b")


@dataclass(frozen=True)
class Finding:
    """One sentence that breaks a rule. `path` is relative to the repository; `kind` is one of `KINDS`."""

    path: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Rules:
    """The words to avoid (a pattern, and what to write instead), the limits in words, and the files to check."""

    avoid: tuple[tuple[re.Pattern[str], str], ...]
    longest: int
    longest_cell: int
    files: tuple[str, ...]
    skip: tuple[str, ...]


def read_rules(text: str) -> tuple[Rules, dict[str, dict[str, int]]]:
    """The rules and the allowed counts by file, from the text of the toml file."""
    given = tomllib.loads(text)
    avoid = tuple((re.compile(rf"\b(?:{words})\b", re.IGNORECASE), better) for words, better in given["avoid"].items())
    rules = Rules(avoid, given["longest"], given["longest_cell"], tuple(given["files"]), tuple(given["skip"]))
    return rules, given.get("allowed", {})


def findings(path: str, text: str, rules: Rules) -> Iterator[Finding]:
    """The rule violations in one file: words and sentences in their order, then cells."""
    for line, passage, limited in _passages(path, text):
        for words, better in rules.avoid:
            for found in words.finditer(passage):
                at = line + passage.count("\n", 0, found.start())
                yield Finding(path, at, "words", f"'{found[0]}': write {better}")
        if limited:
            for at, sentence in _sentences(passage):
                if (count := len(sentence.split())) > rules.longest and not _is_list(sentence):
                    yield Finding(path, line + at, "long", f"{count} words, at most {rules.longest}: {sentence[:70]}…")
    if path.endswith(".md"):
        for line, cell in _cells(_prose(text)):
            if (count := len(cell.split())) > rules.longest_cell:
                most = f"{count} words in a cell, at most {rules.longest_cell}"
                yield Finding(path, line, "cells", f"{most}: {cell.strip()[:70]}…")


def _passages(path: str, text: str) -> Iterator[tuple[int, str, bool]]:
    """The prose of a file: the line it begins at, the text, and whether the length of its sentences counts."""
    if path.endswith(".py"):
        yield from _of_python(text)
    elif path.endswith((".yaml", ".yml", ".toml")):
        yield from _blocks(
            "\n".join(one.strip()[1:] if one.strip().startswith("#") else "" for one in text.split("\n"))
        )
    else:
        yield from _blocks(_prose(text))


def _prose(text: str) -> str:
    """A page without blocks of code. Code in a line and the target of a link become an X."""
    blank = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    return _NOT_PROSE.sub(lambda found: "X" + "\n" * found[0].count("\n"), blank)


def _cells(prose: str) -> Iterator[tuple[int, str]]:
    """The line and the text of each table cell."""
    for number, line in enumerate(prose.split("\n"), 1):
        if line.lstrip().startswith("|"):
            for cell in _CELL_END.split(line):
                yield number, cell


def _is_list(sentence: str) -> bool:
    """Whether a sentence mostly lists code or links, which `_prose` has marked."""
    words = sentence.split()
    return sum("X" in word for word in words) >= _LISTED * len(words)


def _blocks(text: str) -> Iterator[tuple[int, str, bool]]:
    """Paragraphs, list entries and table cells."""
    begun, lines = 1, list[str]()
    for number, line in enumerate([*text.split("\n"), ""], 1):
        starts = not line.strip() or line.lstrip().startswith(("#", "|", "- ", "* ")) or re.match(r"\s*\d+\. ", line)
        if starts:
            if lines:
                yield begun, "\n".join(lines), True
            lines = []
        if line.lstrip().startswith("|"):
            for _, cell in _cells(line):
                for part in cell.split("; "):
                    yield number, part, True
        elif line.strip():
            begun = begun if lines else number
            lines.append(line)


def _of_python(text: str) -> Iterator[tuple[int, str, bool]]:
    tree = ast.parse(text)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for one in body if isinstance(body, list) else ():
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                docstrings.add(id(one.value))
                for begun, passage, limited in _blocks(_NOT_PROSE.sub("X", one.value.value)):
                    yield one.lineno + begun - 1, _COMMAND.sub("", passage), limited
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        # Shorter strings are names, not prose. The length of a message is not checked, because a setting's description
        # has several sentences.
        if len(node.value.split()) >= 4 and not _SQL.match(node.value):
            yield node.lineno, node.value, False


def _sentences(passage: str) -> Iterator[tuple[int, str]]:
    """Each sentence, and how many lines of the passage come before it."""
    begun = 0
    for end in [*(found.end() for found in _SENTENCE_END.finditer(passage)), len(passage)]:
        yield passage.count("\n", 0, begun), " ".join(passage[begun:end].split())
        begun = end


def all_findings(rules: Rules) -> list[Finding]:
    """The findings in every file that the rules name."""
    skipped = {path for pattern in rules.skip for path in ROOT.glob(pattern)}
    paths = sorted({path for pattern in rules.files for path in ROOT.glob(pattern)} - skipped)
    return [one for path in paths for one in findings(str(path.relative_to(ROOT)), path.read_text(), rules)]


def too_many(found: list[Finding], allowed: dict[str, dict[str, int]]) -> list[Finding]:
    """The findings of each file and kind that exceed the allowed count."""
    counts = Counter((one.path, one.kind) for one in found)
    return [one for one in found if counts[one.path, one.kind] > allowed.get(one.path, {}).get(one.kind, 0)]


def lowered(text: str, found: list[Finding]) -> str:
    """The toml file with lower counts where there are fewer findings, one sorted line for each file."""
    head, _, _ = text.partition("[allowed]\n")
    allowed = read_rules(text)[1]
    counts = Counter((one.path, one.kind) for one in found)
    lines = []
    for path in sorted(allowed):
        now = {kind: min(count, counts[path, kind]) for kind, count in allowed[path].items()}
        shown = ", ".join(f"{kind} = {now[kind]}" for kind in KINDS if now.get(kind))
        if shown:
            lines.append(f'"{path}" = {{ {shown} }}\n')
    return f"{head}[allowed]\n{''.join(lines)}"


def main() -> int:
    """Run the command line. The exit status is 1 if a file has more findings than allowed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--all", action="store_true", help="list every finding")
    parser.add_argument("--lower", action="store_true", help="write the present counts where they are lower")
    options = parser.parse_args()
    text = RULES.read_text()
    rules, allowed = read_rules(text)
    found = all_findings(rules)
    if options.lower:
        RULES.write_text(lowered(text, found))
        return 0
    wrong = found if options.all else too_many(found, allowed)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if options.all:
        print(*(f"{kind}: {sum(one.kind == kind for one in found)}" for kind in KINDS), sep=", ")
        return 0
    if wrong:
        print(
            "The rules: docs/style.md. Improve sentences until each file has no more findings than it may have.",
            file=sys.stderr,
        )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
