"""Numbered database migrations, and which builds can serve from a database that has some of them.

Lives here: reading the packaged `.sql` files and comparing them with what a database says it has; an operator's way to
a schema, and making an empty step in the source tree. Not here: applying steps (each backend's
`stores/<backend>/migrate.py`), the command line.

A rollout has two builds at work at once, and a process of the older one may start again in its middle. So every step
may say in its first line which schema a build must know at least to go on with it: `-- serves: 3` in step 5 lets builds
that know the steps up to 3 or 4 serve still (the step only adds). Without that line it serves only builds that know it.
A step that takes something away serves only builds that do not use it any more, and comes a release later.

A file beside a step with its name and the ending .down.sql undoes it.

Invariants: steps are numbered 1, 2, 3, … without a gap; a step never changes once it was applied anywhere.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from antiphon.errors import ConfigError, StoreError

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_SERVES = re.compile(r"-- serves: (\d+)\n")
_STEP_NAME = re.compile(r"[a-z0-9_]{1,60}")
_EMPTY = """\
-- serves: {number}
-- What changes, and why. The number above is the oldest schema whose builds can go on with this step: lower it to the
-- last one before it when the step only adds (and makes no trigger).
"""


@dataclass(frozen=True, slots=True)
class SchemaStep:
    """One numbered step of the schema. `down` undoes it, where it can be undone."""

    version: int
    name: str
    sql: str
    down: str = ""

    @property
    def sha256(self) -> str:
        """The checksum recorded when the step is applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def serves(self) -> int:
        """The oldest schema whose builds can serve with it."""
        said = _SERVES.match(self.sql)
        return int(said[1]) if said else self.version


@dataclass(frozen=True, slots=True)
class Applied:
    """A step that a database has. `name` and `serves` are what it says of a step that this build does not know."""

    version: int
    name: str
    sha256: str
    serves: int


@dataclass(frozen=True, slots=True)
class Schema(ABC):
    """The schema of one database. `name`: what an operator calls that; `steps`: those that this build has for it;
    `folder`: where their files are in this installation."""

    name: str
    steps: tuple[SchemaStep, ...]
    folder: Path

    @abstractmethod
    async def applied(self) -> Sequence[Applied]:
        """What the database has; nothing when there is none. Raises `StoreError`."""

    @abstractmethod
    async def up(self) -> Sequence[SchemaStep]:
        """Apply what is missing; what this call applied. Raises `StoreError`."""

    @abstractmethod
    async def undo(self) -> SchemaStep:
        """Undo the last step. Raises `StoreError` where it cannot be."""


def read_steps(folder: Traversable) -> tuple[SchemaStep, ...]:
    """The steps shipped with this build, in order. Raises `StoreError` where there is none, or one is missing."""
    texts = {entry.name: entry for entry in folder.iterdir()}
    steps = []
    for name, entry in texts.items():
        if match := _NAME.fullmatch(name):
            down = texts.get(f"{name.removesuffix('.sql')}.down.sql")
            undone = "" if down is None else down.read_text(encoding="utf-8")
            steps.append(SchemaStep(int(match[1]), name, entry.read_text(encoding="utf-8"), undone))
    steps.sort(key=lambda step: step.version)
    if [step.version for step in steps] != list(range(1, len(steps) + 1)) or not steps:
        raise StoreError("This installation is incomplete: its schema files are missing or misnumbered.")
    return tuple(steps)


def missing_steps(applied: Sequence[Applied], steps: Sequence[SchemaStep]) -> Sequence[SchemaStep]:
    """The steps that this database has not seen; raises `StoreError` for one this build cannot serve from."""
    for known, step in zip(applied, steps, strict=False):
        if (known.version, known.sha256) != (step.version, step.sha256):
            raise StoreError(
                f"The database was made with another text of schema step {step.name} than this build has. "
                "Use the build that wrote it, or start with an empty one."
            )
    for newer in applied[len(steps) :]:
        if newer.serves > len(steps):
            raise StoreError(
                f"The database has schema {applied[-1].version} and was written by a newer Antiphon: step {newer.name} "
                f"takes a build that knows schema {newer.serves}; this one knows schema {len(steps)}. "
                "Install the newer version again."
            )
    return steps[len(applied) :]


def oldest_schema(applied: Sequence[Applied]) -> int:
    """The least schema that a build must know to serve from the database; 0: any may, there is nothing in it."""
    return max((one.serves for one in applied), default=0)


def step_to_undo(applied: Sequence[Applied], steps: Sequence[SchemaStep]) -> SchemaStep:
    """The last step that was applied. Raises `StoreError` where it cannot be undone."""
    missing_steps(applied, steps)
    if not applied:
        raise StoreError("The database has no schema: there is nothing to undo.")
    last = applied[-1]
    if last.version > len(steps):
        raise StoreError(
            f"Step {last.name} is a newer build's, which alone knows how to undo it. Run its 'migrate down'."
        )
    step = steps[last.version - 1]
    if not step.down:
        raise StoreError(
            f"Step {step.name} cannot be undone: it has no {step.name.removesuffix('.sql')}.down.sql. "
            "The way back is a backup."
        )
    return step


def create_step(schema: Schema, name: str) -> Path:
    """Make a new empty step in the source tree; its file. Raises `ConfigError`."""
    if not _STEP_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a step: small letters, digits and _ make one")
    if not (schema.folder.parents[4] / "pyproject.toml").exists():
        raise ConfigError(f"{schema.folder} is an installed package: steps are made in Antiphon's source tree")
    number = len(schema.steps) + 1
    path = schema.folder / f"{number:04}_{name}.sql"
    path.write_text(_EMPTY.format(number=number), encoding="utf-8")
    return path
