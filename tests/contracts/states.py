"""The states that contracts run on, each by its URL.

Lives here: which there are, and opening one. Not here: the fixtures (`conftest.py`), what a store must do.

A test that has the fixture `peers` runs once for each pair in `PEERS`, one that has only `state` or `state_url` once
for each of `KINDS`. A further backend is one more name in both, and a URL in the fixture `state_url`. A kind that is
sealed is a backend with `state.seal`: its URL has `sealed+` before it, which is for tests alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.stores import Stores, open_stores
from antiphon.stores.bodies import Bodies
from tests.contracts.file_contract import OWNER_BYTES
from tests.contracts.store_contract import CHAIN_ITEMS
from tests.support.postgres import PATIENT

SEALED = "sealed+"
BODIES = Bodies([b"sealing-key-of-the-contracts"], seals=True)
KINDS = ("sqlite", "memory", "postgresql", "pgbouncer", f"{SEALED}sqlite", f"{SEALED}postgresql")
PEERS = (
    *(("sqlite", "itself"), ("sqlite", "another"), ("sqlite", "process")),
    ("memory", "itself"),
    *(("postgresql", "itself"), ("postgresql", "another"), ("postgresql", "process")),
    *(("pgbouncer", "itself"), ("pgbouncer", "another"), ("pgbouncer", "process")),
    *((f"{SEALED}sqlite", "itself"), (f"{SEALED}sqlite", "process")),
    *((f"{SEALED}postgresql", "itself"), (f"{SEALED}postgresql", "another")),
)
"""Who reads what `state` has written: it itself, another set of stores on the same state, or one in another process.
What is in memory can be reached by nobody else. `pgbouncer` is PostgreSQL behind a pooler in transaction mode, with
four connections to a database."""
FULL = (
    *(("sqlite", "itself"), ("sqlite", "process"), ("postgresql", "another"), ("postgresql", "process")),
    ("memory", "itself"),
    *((f"{SEALED}sqlite", "itself"), (f"{SEALED}sqlite", "process")),
    *((f"{SEALED}postgresql", "itself"), (f"{SEALED}postgresql", "another")),
    *(("pgbouncer", "itself"), ("pgbouncer", "another"), ("pgbouncer", "process")),
    *(("pgbouncer",), (f"{SEALED}postgresql",)),
)
"""These run with `scripts/test --all` only: each says what another pair says too, but for the combination."""


def parameter(*names: str) -> Any:
    """A kind, or one with its peers, as a test's parameter."""
    return pytest.param(*names, id="-".join(names), marks=pytest.mark.full if names in FULL else ())


def settings_of(url: str) -> StateSettings:
    """The settings that name this state."""
    return StateSettings(
        url=SecretStr(url.removeprefix(SEALED)), seal=url.startswith(SEALED), deadline=PATIENT.deadline
    )


async def open_state(url: str, data: Path, **options: Any) -> Stores:
    """The stores of this state, with the limits that the contracts expect; contents of files lie in `data`."""
    given = {"chain_items": CHAIN_ITEMS, "owner_file_bytes": OWNER_BYTES, **options}
    if url.startswith(SEALED):
        given["bodies"] = BODIES
    return await open_stores(settings_of(url), data, **given)
