"""Reads what Python clients can send and parse: OpenAI's from its types, others from the words of their programs.

Lives here: one function for each package. Not here: OpenAI's types themselves, which only an environment of that client
can import (`python_types.py`).

The reading of openai is complete, see `python_types.py`. openai-agents and langchain-openai forward everything that the
types of openai allow. The additions of these two packages are the constants for `type` in dictionaries, in `Literal`
and in comparisons of their source. The report lists each word that Antiphon does not know. A developer must check
whether the client sends it.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lab.drift.found import Reading

ROOT = Path(__file__).parents[2]
_EVERYBODY_HAS = (
    ("field", "model"),
    ("item", "message"),
    ("item", "function_call_output"),
    ("tool", "function"),
    ("part", "input_text"),
    ("event", "response.output_text.delta"),
)
_AGENTS = ("models/openai_responses.py", "extensions/experimental/hosted_multi_agent/model.py", "items.py")
_LANGCHAIN = ("chat_models/base.py", "chat_models/_compat.py", "tools/custom_tool.py")


def installed(folder: Path) -> dict[str, str]:
    """The versions of the packages in an environment's folder, by their names with dashes."""
    return {re.sub(r"[-_.]+", "-", one.metadata["Name"]): one.version for one in distributions(path=[str(folder)])}


def read_openai(python: Path, folder: Path, version: str) -> list[Reading]:
    """Read the client's types, and those of its beta, with `python`, an interpreter of the client's environment."""
    command = [str(python), "-m", "lab.drift.python_types", str(folder)]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    given: dict[str, Any] = json.loads(told.stdout)
    stable = Reading("openai (Python)", version, "its types and resources: sure")
    beta = Reading("openai (Python), beta", version, "its beta types: sure")
    for reading, areas in ((stable, given["types"]), (beta, given["beta"])):
        for area, places in areas.items():
            reading.add_places(area, places)
    stable.add("route", given["operations"])
    stable.needs(*_EVERYBODY_HAS, ("route", "POST /responses"))
    return [stable, beta]


def read_agents(folder: Path, version: str) -> Reading:
    """Read openai-agents from the folder where it is installed."""
    return _words("openai-agents (Python)", version, folder / "agents", _AGENTS)


def read_langchain(folder: Path, version: str) -> Reading:
    """Read langchain-openai from the folder where it is installed."""
    return _words("langchain-openai (Python)", version, folder / "langchain_openai", _LANGCHAIN)


def _words(client: str, version: str, folder: Path, files: tuple[str, ...]) -> Reading:
    reading = Reading(client, version, "words of its program; fields and parts are those of openai")
    # The search covers all files, because packages move their files between versions.
    there = [folder / name for name in files if (folder / name).is_file()]
    for file in there:
        reading.add("word", words_of(file.read_text()))
    reading.needs(("word", "function"))
    return reading


def words_of(program: str) -> Iterator[str]:
    """The strings that a Python program writes or expects for a `type`."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "type":
                    yield from _constants(value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "type":
            yield from _constants(node.annotation)
        elif isinstance(node, ast.Compare) and _asks_type(node.left):
            for other in node.comparators:
                yield from _constants(other)


def _constants(node: ast.expr) -> Iterator[str]:
    """The string constants of an expression: a single string, or the members of a `Literal`, a tuple or a set."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Subscript):
        yield from _constants(node.slice)
    elif isinstance(node, ast.Tuple | ast.Set | ast.List):
        for one in node.elts:
            yield from _constants(one)


def _asks_type(node: ast.expr) -> bool:
    """Whether an expression is `x["type"]`, `x.get("type")` or `x.type`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        return isinstance(node.args[0], ast.Constant) and node.args[0].value == "type"
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "type"
    return isinstance(node, ast.Attribute) and node.attr == "type"
