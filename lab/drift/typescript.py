"""Converts types of a TypeScript package to JSON schemas, for `shape_of`.

Lives here: a parser for the part of the language that declares plain data. This part has interfaces, aliases,
namespaces, imports within the package, unions, literals, arrays and objects. Not here: the choice of types
(`read_npm.py`).

A type that is not plain data (functions, conditional and mapped types, inferred types) becomes "anything", without its
members. `Omit`, `Pick` and `Partial` count as the whole type. The reader skips statements of programs, so it also reads
files that mix types and code.

Invariant: a name that the package declares is either found or raises KeyError. The reader never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

_TOKEN = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|/\*[\s\S]*?\*/)
    |(?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    |(?P<template>`(?:[^`\\]|\\[\s\S])*`)
    |(?P<name>[A-Za-z_$][\w$]*)
    |(?P<number>-?\d[\w.]*)
    |(?P<mark>=>|\.\.\.|[\s\S])""",
    re.VERBOSE,
)
_CLOSING = {"{": "}", "(": ")", "[": "]"}
_PLAIN = {"string": "string", "number": "number", "boolean": "boolean", "null": "null", "true": "boolean"}
_ANYTHING: Schema = {}
# Generic types whose schema is that of their first argument. The members that such a type omits are not considered.
_WRAPPERS = frozenset({"Partial", "Required", "Readonly", "NonNullable", "Omit", "Pick", "Exclude", "Extract"})
_LISTS = frozenset({"Array", "ReadonlyArray", "Iterable", "Set"})


@dataclass
class Reference:
    """The name of a type, with its namespace and file. The reader resolves the name after it has read all files."""

    names: tuple[str, ...]
    scope: tuple[str, ...]
    arguments: list[Any] = field(default_factory=list)


@dataclass
class _Module:
    """The declarations of one file by their path through its namespaces, and the names that it imports from other
    files."""

    types: dict[tuple[str, ...], Any] = field(default_factory=dict)
    spaces: dict[str, str] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


class Package:
    """An unpacked package. A file is read when one of its types is requested."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules: dict[Path, _Module] = {}
        self._named: dict[str, tuple[Path, Any]] = {}

    def schema(self, file: str, name: str) -> tuple[Schema, Schema]:
        """The schema of a type (`Space.Name` in a file), and the document that its references point to. Raises
        KeyError."""
        path = (self._folder / file).resolve()
        place = self._find(path, Reference(tuple(name.split(".")), ()))
        if place is None:
            raise KeyError(f"{file} declares no {name}")
        definitions: Schema = {}
        whole = {"defs": definitions}
        return self._schema(*place, definitions), whole

    def _module(self, path: Path) -> _Module:
        if path not in self._modules:
            self._modules[path] = _Parser(path.read_text()).module()
        return self._modules[path]

    def _beside(self, path: Path, other: str) -> Path | None:
        """The file that an import names, or None if it is not in this package."""
        if not other.startswith("."):
            return None
        bare = re.sub(r"\.[cm]?js$", "", str(path.parent / other))
        for ending in (".d.ts", ".ts", ".d.mts", "/index.d.ts", "/index.ts"):
            if Path(bare + ending).is_file():
                return Path(bare + ending).resolve()
        return None

    def _find(self, path: Path, sought: Reference) -> tuple[Path, tuple[str, ...]] | None:
        module = self._module(path)
        for depth in range(len(sought.scope), -1, -1):
            names = (*sought.scope[:depth], *sought.names)
            if names in module.types:
                return path, names
        first, *rest = sought.names
        if first in module.spaces and rest:
            other = self._beside(path, module.spaces[first])
            return self._find(other, Reference(tuple(rest), ())) if other is not None else None
        if first in module.imported:
            source, real = module.imported[first]
            other = self._beside(path, source)
            return self._find(other, Reference((real, *rest), ())) if other is not None else None
        return None

    def _schema(self, path: Path, names: tuple[str, ...], definitions: Schema) -> Schema:
        key = f"{path}:{'.'.join(names)}".replace("/", "|")
        if key not in definitions:
            definitions[key] = _ANYTHING
            definitions[key] = self._resolve(path, self._module(path).types[names], definitions)
        return {"$ref": f"#/defs/{key}"}

    def _resolve(self, path: Path, declared: Any, definitions: Schema) -> Schema:
        if isinstance(declared, Reference):
            return self._named_type(path, declared, definitions)
        found: Schema = {}
        for name, value in declared.items():
            if name in ("anyOf", "allOf"):
                found[name] = [self._resolve(path, one, definitions) for one in value]
            elif name == "items":
                found[name] = self._resolve(path, value, definitions)
            elif name == "properties":
                found[name] = {key: self._resolve(path, one, definitions) for key, one in value.items()}
            elif name != "extends":
                found[name] = value
        inherited: Schema = {}
        for above in declared.get("extends", ()):
            place = self._find(path, above)
            if place is not None:
                inherited |= self._resolve(place[0], self._module(place[0]).types[place[1]], definitions).get(
                    "properties", {}
                )
        if inherited:
            found["properties"] = inherited | found.get("properties", {})
        return found

    def _named_type(self, path: Path, named: Reference, definitions: Schema) -> Schema:
        name = named.names[-1]
        if len(named.names) == 1:
            if name in _LISTS:
                inner = named.arguments[0] if named.arguments else _ANYTHING
                return {"type": "array", "items": self._resolve(path, inner, definitions)}
            if name in _PLAIN:
                return {"type": _PLAIN[name]}
            if name in _WRAPPERS and named.arguments:
                return self._resolve(path, named.arguments[0], definitions)
        place = self._find(path, named)
        return self._schema(*place, definitions) if place is not None else _ANYTHING


class _Parser:
    """Parses one file, token by token."""

    def __init__(self, text: str) -> None:
        self._tokens = [
            (match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text) if match.lastgroup != "skip"
        ]
        self._at = 0
        self._module = _Module()

    def module(self) -> _Module:
        self._declarations(())
        return self._module

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at][1] if at < len(self._tokens) else ""

    def _group(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _took(self, token: str) -> bool:
        if self._peek() == token:
            self._at += 1
            return True
        return False

    def _skip(self) -> None:
        """Skip one token. If the token is an opening bracket, skip to its closing bracket."""
        closing = _CLOSING.get(self._take())
        while closing is not None and self._at < len(self._tokens) and not self._took(closing):
            self._skip()

    def _skip_arguments(self) -> None:
        """Skip the parameters of a generic type."""
        depth = 0
        while self._at < len(self._tokens):
            token = self._peek()
            depth += {"<": 1, ">": -1}.get(token, 0)
            self._skip()
            if depth == 0:
                return

    def _declarations(self, scope: tuple[str, ...]) -> None:
        while self._at < len(self._tokens) and self._peek() != "}":
            word = self._peek()
            named = self._tokens[self._at + 1][0] == "name" if self._at + 1 < len(self._tokens) else False
            if word == "interface" and named:
                self._interface(scope)
            elif word == "type" and named and self._peek(2) in ("=", "<"):
                self._alias(scope)
            elif word == "namespace" and named and self._peek(2) == "{":
                self._take()
                name = self._take()
                self._take()
                self._declarations((*scope, name))
                self._take()
            elif word == "import":
                self._import()
            else:
                self._skip()

    def _interface(self, scope: tuple[str, ...]) -> None:
        self._take()
        name = self._take()
        if self._peek() == "<":
            self._skip_arguments()
        above = []
        if self._took("extends"):
            above = [self._type(scope)]
            while self._took(","):
                above.append(self._type(scope))
        made = self._object(scope)
        made["extends"] = [one for one in above if isinstance(one, Reference)]
        self._module.types[(*scope, name)] = made

    def _alias(self, scope: tuple[str, ...]) -> None:
        self._take()
        name = self._take()
        if self._peek() == "<":
            self._skip_arguments()
        if self._took("="):
            self._module.types[(*scope, name)] = self._type(scope)

    def _import(self) -> None:
        self._take()
        self._took("type")
        names: list[tuple[str, str]] = []
        space = ""
        if self._took("*"):
            self._took("as")
            space = self._take()
        elif self._took("{"):
            while self._at < len(self._tokens) and not self._took("}"):
                if self._peek() == "type" and self._peek(1) not in (",", "}", "as"):
                    self._take()
                real = self._take()
                names.append((self._take() if self._took("as") else real, real))
                self._took(",")
        if not self._took("from"):
            return
        source = self._take()[1:-1]
        if space:
            self._module.spaces[space] = source
        self._module.imported |= {name: (source, real) for name, real in names}

    def _type(self, scope: tuple[str, ...]) -> Any:
        self._took("|")
        branches = [self._intersection(scope)]
        while self._took("|"):
            branches.append(self._intersection(scope))
        if self._peek() == "extends":
            # A conditional type becomes "anything".
            self._take()
            self._type(scope)
            for mark in ("?", ":"):
                if self._took(mark):
                    self._type(scope)
            return _ANYTHING
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def _intersection(self, scope: tuple[str, ...]) -> Any:
        self._took("&")
        branches = [self._postfix(scope)]
        while self._took("&"):
            branches.append(self._postfix(scope))
        branches = [_unwrapped(one) for one in branches if one != {"type": "object", "properties": {}}]
        if len(branches) < 2:
            return branches[0] if branches else _ANYTHING
        merged: Schema = {"properties": {}, "extends": []}
        for one in branches:
            if isinstance(one, Reference):
                merged["extends"].append(one)
            else:
                merged["properties"] |= one.get("properties", {})
        return merged

    def _postfix(self, scope: tuple[str, ...]) -> Any:
        made = self._primary(scope)
        while self._peek() == "[":
            if self._peek(1) == "]":
                self._at += 2
                made = {"type": "array", "items": made}
            else:
                # An indexed access to a member of a type becomes "anything".
                self._skip()
                made = _ANYTHING
        return made

    def _primary(self, scope: tuple[str, ...]) -> Any:
        group, token = self._group(), self._peek()
        if group == "string":
            self._take()
            return {"const": re.sub(r"\\(.)", r"\1", token[1:-1])}
        if token == "{":
            return self._object(scope)
        if token == "(":
            return self._parenthesis(scope)
        if token == "[":
            self._skip()
            return {"type": "array", "items": _ANYTHING}
        if token in ("readonly", "keyof", "typeof", "unique", "infer") and self._peek(1) not in (";", ",", "|", ")"):
            self._take()
            inner = self._postfix(scope)
            return inner if token == "readonly" else _ANYTHING
        if group == "name":
            return self._reference(scope)
        self._skip()
        return _ANYTHING

    def _parenthesis(self, scope: tuple[str, ...]) -> Any:
        start = self._at
        self._skip()
        if self._took("=>"):
            self._type(scope)
            return _ANYTHING
        end, self._at = self._at, start + 1
        made = self._type(scope)
        self._at = end
        return made

    def _reference(self, scope: tuple[str, ...]) -> Any:
        names = [self._take()]
        while self._peek() == "." and self._at + 1 < len(self._tokens):
            self._take()
            names.append(self._take())
        arguments = []
        if self._took("<"):
            while self._at < len(self._tokens) and not self._took(">"):
                arguments.append(self._type(scope))
                if not self._took(",") and self._peek() != ">":
                    self._skip()
        return Reference(tuple(names), scope, arguments)

    def _object(self, scope: tuple[str, ...]) -> Schema:
        members: Schema = {}
        self._take()
        while self._at < len(self._tokens) and not self._took("}"):
            while self._peek() in ("readonly", "-", "+") and self._peek(1) not in (":", "?"):
                self._take()
            group, name = self._group(), self._peek()
            if name in ("[", "(", "<") or group == "template":
                # Skip an index signature, a call signature, or a method's parameters.
                self._skip()
            elif group in ("name", "string", "number"):
                self._take()
                self._took("?")
                if self._took(":"):
                    members[name[1:-1] if group == "string" else name] = self._type(scope)
                    continue
                while self._peek() not in (";", ",", "}", ""):
                    self._skip()
            else:
                self._skip()
        return {"type": "object", "properties": members}


def _unwrapped(named: Any) -> Any:
    while isinstance(named, Reference) and named.names[-1] in _WRAPPERS and named.arguments:
        named = named.arguments[0]
    return named


def words_of(text: str) -> Iterator[str]:
    """The strings that a program writes or expects for a `type`: in objects, comparisons and zod's schemas."""
    for pattern in (
        r"""\btype["']?\s*:\s*["']([a-z][\w.]+)["']""",
        r"""\btype["']?\s*:\s*z\s*\.\s*literal\(\s*["']([a-z][\w.]+)["']""",
        r"""\.type\s*={2,3}\s*["']([a-z][\w.]+)["']""",
    ):
        for match in re.finditer(pattern, text):
            yield match[1]
