"""Decides which processes may use a database: by the schema that their build knows, and by their keys.

Lives here: reading the numbered database migrations, comparing them with the migrations that a database records, and
creating an empty migration. Each backend implements the class `Schema`, which applies and undoes migrations. This
module also compares the owner key and the sealing keys of a process with the keys that the database records. Not here:
applying migrations (each backend's `stores/<backend>/migrate.py`), the SQL of the recorded keys, the purpose of a key
(`doors/owners.py`, `sealing.py`), the command line.

During a rollout two builds use the database concurrently, and a process of the older build may restart. So the first
line of a migration's SQL file may allow older builds to use the changed database. For example, the first line of
migration 5 may be `-- serves: 3`, because migration 5 only adds tables or columns. Then builds whose newest migration
is 3 or 4 can still serve requests. Without a line `-- serves`, only builds that contain the migration can serve
requests. If a migration removes a table or a column, developers add the migration one release after the last build that
uses the table or column. The SQL file that undoes a migration has the migration's name and the ending .down.sql.

If a process had a different `owner.key`, clients would not find their stored data through this process. Other machines
would not find the data that this process stores. If a process lacked a sealing key of the other machines, the process
could not decrypt bodies from those machines. So the database records fingerprints of the owner key and of the sealing
keys. A fingerprint identifies a key and reveals nothing about it.

An operator rotates sealing keys while the machines serve. First the operator adds the new key behind the old key to
`sealing.keys` on all machines. When a process then starts, it records the new key as a key that only decrypts. Then the
operator makes the new key the first key in `sealing.keys`, so that the machines seal with the new key.
`antiphon admin deployment-keys --accept` removes an old sealing key from the record.

The code and the error messages call a migration a "schema step". Invariants: migrations are numbered 1, 2, 3, … without
a gap. A migration never changes after any database has applied it. A process does not start if it lacks a key with
which another process seals bodies.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from antiphon.errors import ConfigError, StoreError

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_SERVES = re.compile(r"-- serves: (\d+)\n")
_STEP_NAME = re.compile(r"[a-z0-9_]{1,60}")
_EMPTY = """\
-- serves: {number}
-- Describe the change and its reason here. The number above is the newest step that a build must contain to work with
-- this step. Lower the number by one if the step only adds tables, columns or indexes, and no trigger.
"""


@dataclass(frozen=True, slots=True)
class SchemaStep:
    """One numbered migration of the schema. `sql` applies the migration, and `down` undoes it. `down` is empty if an
    undo is impossible."""

    version: int
    name: str
    sql: str
    down: str = ""

    @property
    def sha256(self) -> str:
        """The checksum that the database records when it applies the migration, in hexadecimal digits."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def serves(self) -> int:
        """The number of the newest migration that a build must contain to serve requests after this migration."""
        said = _SERVES.match(self.sql)
        return int(said[1]) if said else self.version


@dataclass(frozen=True, slots=True)
class AppliedStep:
    """A migration that a database has applied. `name` and `serves` come from the database's record, because a newer
    build may have applied the migration."""

    version: int
    name: str
    sha256: str
    serves: int


@dataclass(frozen=True, slots=True)
class Schema(ABC):
    """The schema of one database. `name`: the database's name in messages. `steps`: the migrations of this build.
    `folder`: the folder with the migrations' files in this installation."""

    name: str
    steps: tuple[SchemaStep, ...]
    folder: Path

    @abstractmethod
    async def applied(self) -> Sequence[AppliedStep]:
        """Return the migrations that the database has applied. The result is empty when the database does not exist.
        Raises `StoreError`."""

    @abstractmethod
    async def up(self) -> Sequence[SchemaStep]:
        """Apply the migrations that the database lacks, and return these migrations. Raises `StoreError`."""

    @abstractmethod
    async def undo(self) -> SchemaStep:
        """Undo the last applied migration, and return it. Raises `StoreError` when the migration cannot be undone."""


def read_steps(folder: Traversable) -> tuple[SchemaStep, ...]:
    """Read the migrations in this folder, in order. Raises `StoreError` when the folder has no migration, or a number
    is missing."""
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


def missing_steps(applied: Sequence[AppliedStep], steps: Sequence[SchemaStep]) -> Sequence[SchemaStep]:
    """Return the migrations that this database lacks. Raises `StoreError` when this build cannot use the database."""
    for known, step in zip(applied, steps, strict=False):
        if (known.version, known.sha256) != (step.version, step.sha256):
            raise StoreError(
                f"The database was changed by another version of Antiphon: its schema step {step.name} differs from "
                "this version's. Use the version that applied the step, or start with an empty database."
            )
    for newer in applied[len(steps) :]:
        if newer.serves > len(steps):
            raise StoreError(
                f"A newer version of Antiphon changed this database. Its schema step {newer.name} needs a version that "
                f"knows schema {newer.serves}, but this version knows only schema {len(steps)}. Install the newer "
                "version again."
            )
    return steps[len(applied) :]


def oldest_schema(applied: Sequence[AppliedStep]) -> int:
    """Return the number of the newest migration that a build must contain to use the database. Returns 0 for an empty
    database."""
    return max((one.serves for one in applied), default=0)


def step_to_undo(applied: Sequence[AppliedStep], steps: Sequence[SchemaStep]) -> SchemaStep:
    """Return the last applied migration. Raises `StoreError` when the migration cannot be undone."""
    missing_steps(applied, steps)
    if not applied:
        raise StoreError("The database has no schema: there is nothing to undo.")
    last = applied[-1]
    if last.version > len(steps):
        raise StoreError(
            f"A newer version of Antiphon applied step {last.name}, and only that version can undo it. Run 'antiphon "
            "migrate down' of that version."
        )
    step = steps[last.version - 1]
    if not step.down:
        raise StoreError(
            f"Step {step.name} cannot be undone: it has no {step.name.removesuffix('.sql')}.down.sql. "
            "Restore a backup instead."
        )
    return step


def create_step(schema: Schema, name: str) -> Path:
    """Create a file for an empty migration in the source tree, and return its path. Raises `ConfigError` for an invalid
    name or an installed package."""
    if not _STEP_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a valid name of a step: use small letters, digits and _")
    if not (schema.folder.parents[4] / "pyproject.toml").exists():
        raise ConfigError(f"{schema.folder} is an installed package: create steps in Antiphon's source tree")
    number = len(schema.steps) + 1
    path = schema.folder / f"{number:04}_{name}.sql"
    path.write_text(_EMPTY.format(number=number), encoding="utf-8")
    return path


OWNER, _SEALING = "owner.key", "sealing.keys:"
MOVING = "moving"
"""The name of the row that marks this database as the target of a move in progress. The row's value names the source of
the move."""
_SEALS, _OPENS = "seals", "opens"
_ACCEPT = (
    "To start with the keys in these settings anyway, run `antiphon admin deployment-keys --accept` with the same "
    "settings"
)

Recorded = Mapping[str, str]
"""The rows about keys in the database. A row has the fingerprint of the owner key, or a sealing key's use: `seals` or
`opens` (only decrypts)."""


@dataclass(frozen=True, slots=True)
class KeyFingerprints:
    """Fingerprints of a process's keys. `owner` is the fingerprint of the owner key, or None when this process derives
    no owner id from a token. The process seals with the first key in `sealing`, and decrypts with all keys in
    `sealing`."""

    owner: str | None
    sealing: tuple[str, ...]

    def recorded(self) -> dict[str, str]:
        """Return the database rows for these keys."""
        rows = {} if self.owner is None else {OWNER: self.owner}
        first = self.sealing[:1]
        return rows | {_SEALING + one: _SEALS if one in first else _OPENS for one in self.sealing}


def fingerprint(key: bytes, what: Literal["owner.key", "sealing.keys"]) -> str:
    """Return the fingerprint of a key: 32 hexadecimal digits that identify the key and reveal nothing about it."""
    return hmac.digest(key, f"antiphon deployment {what}".encode(), hashlib.sha256).hex()[:32]


def keys_to_record(recorded: Recorded, keys: KeyFingerprints) -> dict[str, str]:
    """Return the rows that a process must write when it starts with these keys. Raises `ConfigError` when the process
    must not start."""
    if MOVING in recorded:
        raise ConfigError(
            f"A move from {recorded[MOVING]} into this database is unfinished. Run `antiphon admin move` "
            "until it completes, then start again."
        )
    if keys.owner is not None and recorded.get(OWNER, keys.owner) != keys.owner:
        raise ConfigError(
            "owner.key differs from the key of the other machines on this database, so clients could not find their "
            f"stored objects. Set owner.key to the value of the other machines. {_ACCEPT}. Then no client can reach "
            "the objects that are stored already."
        )
    sealed = {name.removeprefix(_SEALING) for name, use in recorded.items() if use == _SEALS and name != OWNER}
    lacking = sorted(sealed - set(keys.sealing))
    if lacking:
        raise ConfigError(
            f"sealing.keys lacks {len(lacking)} of the keys with which other machines on this database encrypt "
            f"(fingerprint {lacking[0][:8]}). This process could not decrypt their data. Append the missing key to "
            f"sealing.keys. {_ACCEPT}."
        )
    first = keys.sealing[0] if keys.sealing else ""
    if sealed and first not in sealed and _SEALING + first not in recorded:
        raise ConfigError(
            "The other machines do not have the first key in sealing.keys, so they could not decrypt the data of this "
            f"process. Put the key second on every machine, restart all machines, then put it first. {_ACCEPT}."
        )
    wanted = keys.recorded()
    # If a process has sealed with a key, the record of the key stays `seals`, even if this process only decrypts with
    # the key.
    return {name: use for name, use in wanted.items() if recorded.get(name) not in (use, _SEALS)}
