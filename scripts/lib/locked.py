"""Prints the entries of requirements.lock for some extras, for pip: pinned packages with their hashes.

Names: `core` (packages that Antiphon imports), `build` (packages that build it), and extras of pyproject.toml. With
`--installed` it prints the packages whose installed version differs from the lock file. Used by scripts/setup,
scripts/lab drift, scripts/bench and the Dockerfile. Not here: choosing versions, which `scripts/setup --raise` does.

Invariant: each printed line is a line of requirements.lock, and the output includes all dependencies of each package.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_LOCKED = ("antiphon", "pip")
_EXTRAS = re.compile(r"\[(.*?)\]")


@dataclass(frozen=True)
class Entry:
    """One version of one package, and the packages that need it."""

    name: str
    text: str
    needed_by: frozenset[str]


def normal(requirement: str) -> str:
    """The package's name in the normalized form that package indexes use."""
    found = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def entries(lock: str) -> Iterator[Entry]:
    """All entries of the lock file: a line with the version, then indented ones with hashes and `# via`."""
    for text in re.findall(r"^[^\s#].*\n(?:[ \t].*\n)*", lock, re.MULTILINE):
        needed_by = re.findall(r"^ +#(?: via)? +([^\s(]+)", text, re.MULTILINE)
        yield Entry(normal(text), text, frozenset(normal(one) for one in needed_by))


def asked(project: dict[str, dict[str, object]], names: Iterable[str]) -> set[str]:
    """The packages that pyproject.toml lists for these names. Raises `KeyError` for an unknown name."""
    table = project["project"]
    groups: dict[str, list[str]] = {
        **table["optional-dependencies"],  # type: ignore[dict-item]
        "core": table["dependencies"],  # type: ignore[dict-item]
        "build": project["build-system"]["requires"],  # type: ignore[dict-item]
    }
    found: set[str] = set()
    for name in names:
        for requirement in groups[name]:
            if normal(requirement) != table["name"]:
                found.add(normal(requirement))
            else:
                more = _EXTRAS.search(requirement)
                found |= asked(project, ["core", *(more[1].split(",") if more else [])])
    return found


def locked(lock: str, wanted: Iterable[str]) -> list[Entry]:
    """The entries of these packages and of all their dependencies. Raises `KeyError` if a package is not in the lock
    file."""
    all_of_them = list(entries(lock))
    chosen = set(wanted)
    for name in sorted(chosen - {entry.name for entry in all_of_them}):
        raise KeyError(name)
    while more := {entry.name for entry in all_of_them if entry.needed_by & chosen} - chosen:
        chosen |= more
    return [entry for entry in all_of_them if entry.name in chosen]


def differences(lock: str) -> Iterator[str]:
    """Table rows for the packages whose installed version differs from the lock file."""
    versions: dict[str, list[str]] = {}
    for entry in entries(lock):
        versions.setdefault(entry.name, []).append(entry.text.split()[0].partition("==")[2])
    for one in sorted(distributions(), key=lambda one: normal(one.name)):
        known = versions.get(normal(one.name), [])
        if one.version not in known and normal(one.name) not in _NOT_LOCKED:
            yield f"| {one.name} | {' or '.join(known) or 'none'} | {one.version} |"


def main(names: list[str]) -> int:
    """Print the entries for these names."""
    lock = (ROOT / "requirements.lock").read_text()
    if names == ["--installed"]:
        print("| package | locked | installed |\n| --- | --- | --- |", *differences(lock), sep="\n")
        return 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    try:
        wanted = asked(project, names)
    except KeyError as unknown:
        print(f"locked: pyproject.toml has no extra {unknown}", file=sys.stderr)
        return 2
    try:
        found = locked(lock, wanted)
    except KeyError as missing:
        print(f"locked: requirements.lock lacks {missing}: run scripts/setup --raise {missing}", file=sys.stderr)
        return 1
    sys.stdout.write("".join(entry.text for entry in found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
