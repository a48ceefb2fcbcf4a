"""Defines the changes that mutation testing makes to a source file, each with a name.

Lives here: finding every position at which an operator applies, and the replacement text. Not here: the selection of
mutants and of tests (`run.py`).

Invariant: a mutant is one replaced range of text. Operators skip text whose change no test could detect, or that the
type checker checks. Operators therefore skip docstrings, annotations, `__all__`, logging, assertions, decorators and
keywords of a class, and defaults of a protocol's methods.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mutant, which replaces `source[start:end]` (in characters) by `text`."""

    path: str
    line: int
    operator: str
    start: int
    end: int
    text: str
    was: str
    """The first line of the replaced text and its surroundings, without indentation. This line is part of the mutant's
    permanent name."""
    number: int = 0
    """The number of this mutant among those of the same operator on identical lines."""

    @property
    def key(self) -> str:
        """The mutant's name, which stays the same while its own line is unchanged."""
        return f"{self.path} | {self.operator} | {self.was} | {self.number}"

    def order(self, seed: int) -> bytes:
        """The mutant's sort key for a seed. Changes of other lines do not affect it."""
        return hashlib.sha256(f"{seed}|{self.key}".encode()).digest()

    def apply(self, source: str) -> str | None:
        """The mutated file, or None if it is not valid Python."""
        changed = source[: self.start] + self.text + source[self.end :]
        try:
            ast.parse(changed)
        except SyntaxError:
            return None
        return changed


class _Source:
    """A file's text, and the positions of its syntax nodes. Python gives the columns of nodes in bytes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """The begin and end of a node, in characters."""
        where = cast(ast.expr, node)
        assert where.end_lineno is not None and where.end_col_offset is not None
        return self._at(where.lineno, where.col_offset), self._at(where.end_lineno, where.end_col_offset)

    def of(self, node: ast.AST) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def _at(self, line: int, column: int) -> int:
        text = self.lines[line - 1]
        return self._starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))


_Change = tuple[ast.AST, str]
_Operator = Callable[[ast.AST, "_Source"], Iterator[_Change]]

_COMPARED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
_COUNTED: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+"}
_WORD = re.compile(r"[A-Za-z][\w./:-]*")
_SQL = re.compile(r"\b(?:SELECT|UPDATE|DELETE|INSERT|WHERE|ORDER BY)\b|^\s*\(?\w+ (?:<=|IS NULL|IN \()")
_SQL_CHANGES = (
    (re.compile(r"(?<=\s)<=(?=\s)"), "<"),
    (re.compile(r"(?<=\s)>=(?=\s)"), ">"),
    (re.compile(r"(?<=\s)<(?=\s)"), "<="),
    (re.compile(r"(?<=\s)>(?=\s)"), ">="),
    (re.compile(r"\bAND\b(?! NOT EXISTS)"), "OR"),
    (re.compile(r"\bAND NOT EXISTS\b"), "AND EXISTS"),
)


def _compare(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        was, becomes = _COMPARED[type(node.ops[0])]
        left, right = source.of(node.left), source.of(node.comparators[0])
        if "None" not in (left, right) or was.startswith("is"):
            yield node, f"({left}) {becomes} ({right})"


def _boundary(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Change a number in a comparison, or a number that is added or subtracted, by one."""
    if isinstance(node, ast.Compare | ast.BinOp | ast.Slice | ast.Subscript):
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.Constant) and type(part.value) is int:
                yield part, str(part.value + 1)


def _negate(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield node.test, f"not ({source.of(node.test)})"


def _connect(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.BoolOp):
        other = " or " if isinstance(node.op, ast.And) else " and "
        yield node, "(" + other.join(f"({source.of(part)})" for part in node.values) + ")"


def _remove(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Remove a statement that is executed only for its effect."""
    match node:
        case ast.AugAssign() | ast.Raise() | ast.Expr(value=ast.Call() | ast.Await()):
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute(), *_]):
            yield node, "pass"


def _constant(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, str(not node.value)


def _number(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Change a number that is an argument, a value or a default. Numbers in comparisons belong to `_boundary`."""
    if isinstance(node, ast.Compare | ast.BinOp | ast.Slice | ast.Subscript):
        return
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.Constant) and type(part.value) in (int, float):
            yield part, f"{source.of(part)} + 1"


def _word(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Change a string without spaces: a name, a key or a media type. Text for human readers stays unchanged."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and _WORD.fullmatch(part.value):
            text = source.of(part)
            yield part, f"{text[:-1]}x{text[-1]}"


def _argument(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Remove the last keyword argument of a call."""
    if isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg is not None:
        given = [source.of(part) for part in node.args] + [
            f"{each.arg}={source.of(each.value)}" if each.arg else f"**{source.of(each.value)}"
            for each in node.keywords[:-1]
        ]
        yield node, f"{source.of(node.func)}({', '.join(given)})"


def _unnegate(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, f"({source.of(node.operand)})"


def _count(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _COUNTED:
        becomes = _COUNTED[type(node.op)]
        if isinstance(node, ast.AugAssign):
            parts = f"{source.of(node.target)} {becomes}= {source.of(node.value)}"
            yield node, parts
        elif not any(isinstance(part, ast.JoinedStr | ast.List | ast.Tuple) for part in (node.left, node.right)):
            left, right = source.of(node.left), source.of(node.right)
            yield node, f"({left} {becomes} {right})"


def _swap(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Swap the first two arguments of a call."""
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "getattr", "zip", "max", "min"):
            return
        if isinstance(node.func, ast.Attribute) and node.func.attr == "compare_digest":
            return
        one, two = (source.of(part) for part in node.args[:2])
        if one != two and not any(isinstance(part, ast.Starred) for part in node.args[:2]):
            name = source.of(node.func)
            rest = [source.of(part) for part in node.args[2:]]
            named = [
                f"{each.arg}={source.of(each.value)}" if each.arg else f"**{source.of(each.value)}"
                for each in node.keywords
            ]
            yield node, f"{name}({', '.join(str(part) for part in (two, one, *rest, *named))})"


def _unshield(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "shield":
        yield node, f"({source.of(node.args[0])})"


def _extreme(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        yield node.func, "max" if node.func.id == "min" else "min"


def _leave(node: ast.AST, source: _Source) -> Iterator[_Change]:
    if isinstance(node, ast.Continue):
        yield node, "break"
    elif isinstance(node, ast.Break):
        yield node, "continue"


def _sql(node: ast.AST, source: _Source) -> Iterator[_Change]:
    """Change one comparison or condition inside an SQL statement."""
    if not isinstance(node, ast.Constant | ast.JoinedStr):
        return
    if isinstance(node, ast.Constant) and not isinstance(node.value, str):
        return
    text = source.of(node)
    if not _SQL.search(text):
        return
    for pattern, becomes in _SQL_CHANGES:
        for found in pattern.finditer(text):
            yield node, text[: found.start()] + becomes + text[found.end() :]


OPERATORS: dict[str, _Operator] = {
    "comparison": _compare,
    "boundary": _boundary,
    "negation": _negate,
    "and-or": _connect,
    "removed": _remove,
    "constant": _constant,
    "number": _number,
    "word": _word,
    "argument": _argument,
    "not": _unnegate,
    "plus-minus": _count,
    "swapped": _swap,
    "unshielded": _unshield,
    "min-max": _extreme,
    "break-continue": _leave,
    "sql": _sql,
}


def find_mutants(path: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of their positions."""
    tree, text_of = ast.parse(source), _Source(source)
    left_alone = _left_alone(tree)
    found: list[Mutant] = []
    seen: dict[tuple[str, str], int] = {}
    for node in ast.walk(tree):
        if id(node) in left_alone:
            continue
        for name, operator in OPERATORS.items():
            for where, text in operator(node, text_of):
                if id(where) in left_alone:
                    continue
                start, end = text_of.span(where)
                first = _first_difference(source[start:end], text)
                line = source.count("\n", 0, start + first) + 1
                was = text_of.lines[line - 1].strip()
                number = seen.get((name, was), 0)
                seen[name, was] = number + 1
                found.append(Mutant(path, line, name, start, end, text, was, number))
    return sorted(found, key=lambda one: (one.line, one.operator, one.number))


def _first_difference(one: str, other: str) -> int:
    """The position at which a replaced statement of several lines first differs, which gives the mutant's line."""
    for number, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return number if one.count("\n") and "\n" in other else 0
    return 0


def _left_alone(tree: ast.Module) -> set[int]:
    """The ids of all nodes that no operator may change, including their children."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(tree):
        match node:
            case ast.Assert():
                roots.append(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                roots.append(node)
            case ast.Expr(value=ast.Constant()):
                roots.append(node)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="_log" | "log")))):
                roots.append(node)
            case ast.Assign(targets=[ast.Name(id="__all__"), *_]):
                roots.append(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                roots += [*node.decorator_list, node.returns]
                roots += [each.annotation for each in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)]
                if all(isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in node.body):
                    # The body of a protocol's method never runs.
                    roots += [*node.args.defaults, *node.args.kw_defaults]
            case ast.JoinedStr():
                # Python 3.11 gives no positions for the parts of an f-string. The whole f-string may be an SQL
                # statement.
                roots += node.values
            case ast.Subscript(value=ast.Name(id="Literal")):
                roots.append(node)
            case ast.AnnAssign():
                roots.append(node.annotation)
            case ast.ClassDef():
                # `frozen=True` may belong to a dataclass or to a msgspec `Struct`.
                roots += [*node.decorator_list, *(keyword.value for keyword in node.keywords)]
            case ast.Call(
                func=ast.Name(id="dataclass" | "field" | "TypeVar" | "NewType" | "cast" | "Struct" | "ContextVar")
            ):
                roots.append(node)
    return {id(inner) for root in roots if root is not None for inner in ast.walk(root)}
