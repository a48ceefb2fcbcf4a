"""docs/reference/log-events.md names every line and every field that the source writes, and nothing else."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.callers import NO_CALLER
from antiphon.observability.outcome import caller_fields
from antiphon.types.transport import ENDED_EARLY

_ROOT = Path(__file__).parents[2]
_SOURCE = _ROOT / "src" / "antiphon"
_PAGE = (_ROOT / "docs" / "reference" / "log-events.md").read_text()
_LEVELS = ("info", "warning", "error")
# Written through a function that chooses the level.
_BY_OUTCOME = {"response": {"info", "warning"}, "request": {"info", "warning"}, "requests_refused": {"info", "warning"}}


def _calls(*files: Path) -> Iterator[ast.Call]:
    for file in files:
        yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


def _written() -> dict[str, set[str]]:
    """Each event with the levels it is written at."""
    found: dict[str, set[str]] = defaultdict(set)
    for call in _calls(*_SOURCE.rglob("*.py")):
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="_log" | "log"), attr=level),
                args=[ast.Constant(value=str(event)), *_],
            ) if level in _LEVELS:
                found[event].add(level)
            case ast.Call(
                func=ast.Name(id="Outage"),
                args=[_, ast.Constant(value=str(begins)), ast.Constant(value=str(ends))],
            ):
                found[begins].add("warning")
                found[ends].add("info")
            case ast.Call(func=ast.Name(id="write_outcome"), args=[_, ast.Constant(value=str(event)), *_]):
                found[event] |= _BY_OUTCOME[event]
            case ast.Call(func=ast.Name(id="warn"), args=[ast.Constant(value=str(event)), *_]):
                found[event].add("warning")
            case ast.Call(func=ast.Name(id="write"), args=[ast.Constant(value="requests_refused")]):
                found["requests_refused"] |= _BY_OUTCOME["requests_refused"]
    # Envoy's own, which have the names of ours but for one.
    for event, level in re.findall(
        r'"message": "(\w+)",\s+"level": "(\w+)"', (_SOURCE / "envoy" / "failures.py").read_text()
    ):
        found[event].add(level)
    # Of what a child writes that is no line of a log.
    for level, event in re.findall(
        r'"level": "(\w+)", "message": "(\w+)"', (_SOURCE / "supervisor" / "child_output.py").read_text()
    ):
        found[event].add(level)
    # Its level is chosen by Envoy.
    found[ENDED_EARLY] |= {"info", "warning"}
    # What is lost cannot be told through the log itself.
    dropped = re.search(r'"message": "(\w+)", "level": "(\w+)"', (_SOURCE / "observability" / "logs.py").read_text())
    assert dropped is not None
    return {**found, dropped[1]: {dropped[2]}}


def _table(title: str) -> list[list[str]]:
    section = _PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", section, re.MULTILINE)
    return [[name, *rest.split(" | ")] for name, rest in rows]


def test_every_line_is_explained() -> None:
    rows = _table("Events")
    said = {name: set(level.split(", ")) for name, level, _ in rows}
    assert said == _written(), "edit the table Events of docs/reference/log-events.md by hand"
    assert len(said) == len(rows), "docs/reference/log-events.md has two rows for one event"


def test_every_field_of_a_responses_line_is_explained() -> None:
    known = {"seconds", "advice", *Failure("ours", "x", 1, "x", "x", "x", 1).fields(), *caller_fields(NO_CALLER)}
    for call in _calls(_SOURCE / "observability" / "observation.py"):
        if isinstance(call.func, ast.Name) and call.func.id == "write_outcome":
            given = call.args[-1]
            assert isinstance(given, ast.Dict)
            known |= {key.value for key in given.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    known |= {"estimated", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"}
    for call in _calls(*(_SOURCE / "doors").rglob("*.py"), *(_SOURCE / "engine" / "running").rglob("*.py")):
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="observed"), attr="end")):
                known |= {one.arg for one in call.keywords if one.arg}
    named = {name for name, _ in _table("Fields of a response")}
    assert named == known, "edit the table Fields of a response of docs/reference/log-events.md by hand"
