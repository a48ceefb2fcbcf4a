"""Whether the indexes that the steps of a schema make are there: one that is gone makes nothing wrong, and much slow.

Lives here: reading them from the steps' own text, and asking the server. Not here: what is said of it (`examining.py`),
the indexes of large vector stores, which are made again by themselves (`vector_indexes.py`).

Invariant: nothing is made or changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from antiphon.stores.postgres.database import Database
from antiphon.stores.schema_steps import Step

_INDEX = re.compile(r"^(CREATE (?:UNIQUE )?INDEX )(\w+)( [^;]+;)", re.MULTILINE)
_DROP = re.compile(r"^DROP INDEX (\w+)", re.MULTILINE)
_TABLE = re.compile(r"^CREATE TABLE (\w+) \((.*?)^\)", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"--.*")
_UNIQUE_COLUMN = re.compile(r"^ +(\w+) [^(\n]*\bUNIQUE\b", re.MULTILINE)
_UNIQUE_COLUMNS = re.compile(r"^ +UNIQUE \(([^)]+)\)", re.MULTILINE)

_ASK = """
SELECT name, i.indisvalid AS valid FROM unnest($1::text[]) AS name
LEFT JOIN pg_index i ON i.indexrelid = to_regclass(name) WHERE i.indisvalid IS NOT true ORDER BY 1
"""


def indexes_of(steps: Sequence[Step]) -> dict[str, str]:
    """The indexes that these steps leave, each with how it is made again. Those of primary keys and other rules of a
    table have the names that PostgreSQL gives them."""
    made: dict[str, str] = {}
    for step in steps:
        sql = _COMMENT.sub("", step.sql)
        for gone in _DROP.findall(sql):
            made.pop(gone, None)
        for table, body in _TABLE.findall(sql):
            made.update((name, f"make the rule of {table} again, as in {step.name}") for name in _rules(table, body))
        for create, name, rest in _INDEX.findall(sql):
            made[name] = f"{create}CONCURRENTLY {name} {' '.join(rest.split())}"
    return made


async def lost_indexes(database: Database, names: Sequence[str]) -> dict[str, str]:
    """Those that are not there as they should be, each with what it is: `missing` or `invalid`. Raises `StoreError`."""
    rows = await database.fetch(_ASK, list(names))
    return {str(row["name"]): "missing" if row["valid"] is None else "invalid" for row in rows}


def _rules(table: str, body: str) -> Iterator[str]:
    if "PRIMARY KEY" in body:
        yield f"{table}_pkey"
    for column in _UNIQUE_COLUMN.findall(body):
        yield f"{table}_{column}_key"
    for columns in _UNIQUE_COLUMNS.findall(body):
        yield f"{table}_{'_'.join(one.strip() for one in columns.split(','))}_key"
