"""Brings a PostgreSQL database to the schema of this build, while older builds serve from it.

Lives here: reading the numbered `.sql` files, applying those a database has not seen, and whether this build can serve
from a database. Not here: what the tables mean.

A rollout has two builds at work at once, and a process of the older one may start again in its middle. So every step
says in its first line which schema a build must know at least to go on with it: `-- serves: 3` in step 5 lets builds
that know the steps up to 3 or 4 serve still (the step only adds). A step that takes something away serves only builds
that do not use it any more, and comes a release later.

Invariants: the steps in the table (`schema_migrations`; vectors have one of their own) are numbered without a gap, with
the checksums of the packaged ones as far as these go; each step is applied in one transaction with its record; one
process at a time applies steps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Connection, Database

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_SERVES = re.compile(r"-- serves: (\d+)\n")
_LOCK = 0x616E7469_70686F6E  # "antiphon"

SCHEMA = "schema_migrations"
"""The table that says which steps of the schema were applied."""

_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
  version integer PRIMARY KEY,
  name text NOT NULL,
  sha256 text NOT NULL,
  serves integer NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_THERE = "SELECT to_regclass('{table}') IS NOT NULL"
_READ = "SELECT version, name, sha256, serves, applied_at FROM {table} ORDER BY version"
_RECORD = "INSERT INTO {table} (version, name, sha256, serves) VALUES ($1, $2, $3, $4)"
_LIMITS = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '4s'"


@dataclass(frozen=True, slots=True)
class Step:
    """One numbered step of the schema; `serves` is the oldest schema whose builds can serve with it."""

    version: int
    name: str
    sql: str
    serves: int

    @property
    def sha256(self) -> str:
        """The checksum recorded when the step is applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """A step that a database has."""

    version: int
    name: str
    sha256: str
    serves: int


def packaged_steps(folder: Traversable | None = None) -> tuple[Step, ...]:
    """The steps shipped with this build, in order, numbered 1, 2, 3, … without a gap."""
    folder = folder or files("antiphon.stores.postgres") / "migrations"
    steps = []
    for entry in folder.iterdir():
        if match := _NAME.fullmatch(entry.name):
            sql = entry.read_text(encoding="utf-8")
            serves = _SERVES.match(sql)
            version = int(match[1])
            steps.append(Step(version, entry.name, sql, int(serves[1]) if serves else version))
    steps.sort(key=lambda step: step.version)
    if [step.version for step in steps] != list(range(1, len(steps) + 1)) or not steps:
        raise StoreError("This installation is incomplete: its schema files are missing or misnumbered.")
    return tuple(steps)


async def migrate(database: Database, steps: Sequence[Step], table: str = SCHEMA) -> list[Step]:
    """Apply the steps that are missing, one transaction each; returns those that this call applied. `table`: where
    they are noted.

    Raises `StoreError` for a database that this build cannot serve from.
    """
    done: list[Step] = []
    while missing_steps(await applied_steps(database, table), steps):

        async def one(connection: Connection) -> Step | None:
            # As a statement of its own: what follows must see what was done while this waited.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(_LIMITS)
            await connection.execute(_CREATE.format(table=table))
            missing = missing_steps(await _read(connection, table), steps)
            if not missing:
                return None
            step = missing[0]
            await connection.execute(step.sql)
            await connection.execute(_RECORD.format(table=table), step.version, step.name, step.sha256, step.serves)
            return step

        step = await database.transaction(one)
        if step is not None:
            done.append(step)
    return done


async def applied_steps(database: Database, table: str = SCHEMA) -> list[Applied]:
    """What the database has; nothing when it is new."""
    if not (await database.fetch(_THERE.format(table=table)))[0][0]:
        return []
    return [Applied(*row[:4]) for row in await database.fetch(_READ.format(table=table))]


def missing_steps(applied: Sequence[Applied], steps: Sequence[Step]) -> Sequence[Step]:
    """The steps that this database has not seen; raises `StoreError` for one this build cannot serve from."""
    for known, step in zip(applied, steps, strict=False):
        if known.sha256 != step.sha256:
            raise StoreError(
                f"The database was made with another text of schema step {step.name} than this build has. "
                "Use the build that wrote it, or another database."
            )
    for newer in applied[len(steps) :]:
        if newer.serves > len(steps):
            raise StoreError(
                f"The database has schema {applied[-1].version}, whose step {newer.name} takes a build that knows "
                f"schema {newer.serves}; this one knows {len(steps)}. Install the newer version."
            )
    return steps[len(applied) :]


async def _read(connection: Connection, table: str) -> list[Applied]:
    return [Applied(*row[:4]) for row in await connection.fetch(_READ.format(table=table))]
