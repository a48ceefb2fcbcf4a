"""The states on which the contract tests run, each with its URL.

Lives here: the list of states, and opening one. Not here: the fixtures (`conftest.py`), the contracts of stores.

A test with the fixture `peers` runs once for each pair in `PEERS`. A test with only `state` or `state_url` runs once
for each of `KINDS`. To add a backend, add its name to both, and a URL to the fixture `state_url`. A sealed kind is a
backend with `state.seal`. The URL of a sealed kind has the prefix `sealed+`, which only tests use.
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
"""The readers of each state: the same stores (`itself`), a second set of stores on the same state (`another`), or a set
in another process (`process`). No other object can read a state in memory. `pgbouncer` is PostgreSQL behind a pooler in
transaction mode, with four connections to a database."""
FULL = (
    *(("sqlite", "itself"), ("sqlite", "process"), ("postgresql", "another"), ("postgresql", "process")),
    ("memory", "itself"),
    *((f"{SEALED}sqlite", "itself"), (f"{SEALED}sqlite", "process")),
    *((f"{SEALED}postgresql", "itself"), (f"{SEALED}postgresql", "another")),
    *(("pgbouncer", "itself"), ("pgbouncer", "another"), ("pgbouncer", "process")),
    *(("pgbouncer",), (f"{SEALED}postgresql",)),
)
"""These pairs run only with `scripts/test --all`. Other pairs already test both of their parts separately."""


def parameter(*names: str) -> Any:
    """A pytest parameter for a kind of state, or for a pair of a kind and its peers."""
    return pytest.param(*names, id="-".join(names), marks=(pytest.mark.full, pytest.mark.long) if names in FULL else ())


def settings_of(url: str) -> StateSettings:
    """The settings that name this state."""
    return StateSettings(
        url=SecretStr(url.removeprefix(SEALED)), seal=url.startswith(SEALED), deadline=PATIENT.deadline
    )


async def open_state(url: str, data: Path, **options: Any) -> Stores:
    """The stores of this state, with the limits that the contracts expect. Contents of files are in the folder
    `data`."""
    given = {"chain_items": CHAIN_ITEMS, "owner_file_bytes": OWNER_BYTES, **options}
    if url.startswith(SEALED):
        given["bodies"] = BODIES
    return await open_stores(settings_of(url), data, **given)
