"""The states that contracts run on, each by its URL.

Lives here: which there are, and opening one. Not here: the fixtures (`conftest.py`), what a store must do.

A test that has the fixture `peers` runs once for each pair in `PEERS`, one that has only `state` or `state_url` once
for each of `KINDS`. A further backend is one more name in both, and a URL in the fixture `state_url`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.stores import Stores, open_stores
from tests.contracts.file_contract import OWNER_BYTES
from tests.contracts.store_contract import CHAIN_ITEMS

KINDS = ("sqlite", "memory", "postgresql")
PEERS = (
    *(("sqlite", "itself"), ("sqlite", "another"), ("sqlite", "process")),
    ("memory", "itself"),
    *(("postgresql", "itself"), ("postgresql", "another"), ("postgresql", "process")),
)
"""Who reads what `state` has written: it itself, another set of stores on the same state, or one in another process.
What is in memory can be reached by nobody else."""


def settings_of(url: str) -> StateSettings:
    """The settings that name this state."""
    return StateSettings(url=SecretStr(url))


async def open_state(url: str, data: Path, **options: Any) -> Stores:
    """The stores of this state, with the limits that the contracts expect; contents of files lie in `data`."""
    given = {"chain_items": CHAIN_ITEMS, "owner_file_bytes": OWNER_BYTES, **options}
    return await open_stores(settings_of(url), data, **given)
