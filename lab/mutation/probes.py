"""Inserts marks into a copy of the source, which record the tests that reach the position of each mutant.

Lives here: the positions of the marks, and the line that a mark writes. Not here: running the tests with marks
(`reaching.py`).

Invariant: a mark is before the statement that the mutant changes, or before an enclosing statement (the `if` of an
`elif`). So every test that executes the changed text has reached the mark. Code at module level runs at import, which
no single test causes. So a test that enters any function of the module counts for such a mutant.
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
    """Insert a mark with its number before the statement of each mutant, in the copy in `tree`."""
    (tree / f"src/antiphon/{_MODULE}.py").write_text(_WRITER)
    by_file: defaultdict[str, list[tuple[int, Mutant]]] = defaultdict(list)
    for number, mutant in mutants:
        by_file[mutant.path].append((number, mutant))
    for path, numbered in by_file.items():
        file = tree / path
        file.write_text(marked(file.read_text(), numbered))


def marked(source: str, numbered: Iterable[tuple[int, Mutant]]) -> str:
    """The source with the marks of these numbered mutants."""
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
        # Code that runs inside the sandbox cannot import a package for the marks.
        mark = f"try:\n    {mark}\nexcept ImportError:\n    pass\n"
        lines.insert(line - 1, textwrap.indent(mark, indent))
    return "".join(lines)


def notes(tree: Path) -> Iterator[tuple[int, str]]:
    """Pairs of a mark's number and a test that reached it."""
    file = tree / "src/antiphon" / _NOTES
    for line in file.read_text().splitlines() if file.exists() else ():
        number, _, test = line.partition(" ")
        yield int(number), test


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min(statement.lineno, *(one.lineno for one in decorators)) if decorators else statement.lineno


def _statement(module: ast.Module, line: int) -> ast.stmt | None:
    """The innermost statement of a function that covers the line and before which another statement can be inserted."""
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
    """The blocks of a compound statement, including those of its `elif` branches, before which no statement can be
    inserted."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, [])
        if name == "orelse" and isinstance(statement, ast.If) and len(block) == 1 and isinstance(block[0], ast.If):
            # In the syntax tree, an `else:` that contains only an `if` looks like an `elif`. A mark before the outer
            # `if` is correct for both.
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
