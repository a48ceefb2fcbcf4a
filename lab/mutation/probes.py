"""Marks in a copy of the source that note which test passes the place of which mutant.

Lives here: where a mark stands, and what it writes. Not here: running the tests with them (`reaching.py`).

Invariant: a mark stands before the statement that the mutant changes, or further out (before the `if` of an `elif`). So
a test that executes the changed text has passed the mark. No test runs import code alone, so a test that enters a
function of the module counts for it.
"""

from __future__ import annotations

import ast
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab.mutation.operators import Mutant

_MODULE = "marks_of_mutants"
_NOTES = "marks_of_mutants.txt"
_WRITER = f'''
import os

_seen = set()
_notes = os.path.join(os.path.dirname(__file__), "{_NOTES}")


def passed(*marks):
    # Children have it from the test that started them.
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    new = {{(mark, test) for mark in marks}} - _seen
    if test and new:
        _seen.update(new)
        try:
            with open(_notes, "a") as notes:
                notes.write("".join(f"{{mark}} {{test}}\\n" for mark, test in new))
        except OSError:
            pass  # A sandbox.
'''


def place_marks(tree: Path, mutants: Iterable[tuple[int, Mutant]]) -> None:
    """Put a mark with its number before each of these, in the copy in `tree`."""
    (tree / f"src/antiphon/{_MODULE}.py").write_text(_WRITER)
    by_file: defaultdict[str, list[tuple[int, Mutant]]] = defaultdict(list)
    for number, mutant in mutants:
        by_file[mutant.path].append((number, mutant))
    for path, numbered in by_file.items():
        file = tree / path
        file.write_text(marked(file.read_text(), numbered))


def marked(source: str, numbered: Iterable[tuple[int, Mutant]]) -> str:
    """The source with marks."""
    module = ast.parse(source)
    lines = source.splitlines(keepends=True)
    at: defaultdict[int, list[int]] = defaultdict(list)
    for number, mutant in numbered:
        line = source.count("\n", 0, mutant.start) + 1
        inner = _statement(module, line)
        for statement in [inner] if inner is not None else _entries(module):
            at[_first_line(statement)].append(number)
    for line in sorted(at, reverse=True):
        text = lines[line - 1]
        indent = text[: len(text) - len(text.lstrip())]
        numbers = ", ".join(map(str, at[line]))
        mark = f'__import__("antiphon.{_MODULE}", fromlist=["passed"]).passed({numbers})'
        # What runs inside a sandbox has no package to import anything from.
        mark = f"try:\n    {mark}\nexcept ImportError:\n    pass\n"
        lines.insert(line - 1, textwrap.indent(mark, indent))
    return "".join(lines)


def notes(tree: Path) -> Iterator[tuple[int, str]]:
    """Which mark was passed by which test."""
    file = tree / "src/antiphon" / _NOTES
    for line in file.read_text().splitlines() if file.exists() else ():
        number, _, test = line.partition(" ")
        yield int(number), test


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min(statement.lineno, *(one.lineno for one in decorators)) if decorators else statement.lineno


def _statement(module: ast.Module, line: int) -> ast.stmt | None:
    """The innermost statement of a function that stands in a line and that something can be put before."""
    found: ast.stmt | None = None
    block: list[ast.stmt] = module.body
    inside = False
    while True:
        around = next((one for one in block if _first_line(one) <= line <= (one.end_lineno or 0)), None)
        if around is None:
            return found
        if inside:
            found = around
        body_begins = around.body[0].lineno if isinstance(around, _FUNCTIONS) else 0
        if isinstance(around, _FUNCTIONS) and line < body_begins:
            return found
        inside = inside or isinstance(around, _FUNCTIONS)
        block = [one for inner in _blocks(around) for one in inner]


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement, with those of its `elif`s, before which nothing can stand."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, [])
        if name == "orelse" and isinstance(statement, ast.If) and len(block) == 1 and isinstance(block[0], ast.If):
            # An `else:` with nothing but an `if` looks the same; further out is right for both.
            yield from _blocks(block[0])
        else:
            yield block
    for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
        yield part.body


def _entries(module: ast.Module) -> Iterator[ast.stmt]:
    """The first statement of every function."""
    for node in ast.walk(module):
        if isinstance(node, _FUNCTIONS):
            body = node.body
            documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1
            if body[0].lineno > node.lineno:
                yield body[1] if documented else body[0]


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
