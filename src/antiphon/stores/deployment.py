"""Checks that all processes on one database use the same owner and sealing keys.

Lives here: which keys match a database, and when a process may start with others. Not here: the rows (each backend's),
the purpose of a key (`doors/owners.py`, `sealing.py`).

With a different `owner.key`, a client would not find its data, and its new data would be invisible on other machines.
Without a key that other machines seal with, a process could not open their bodies. So the database records fingerprints
of the keys. A fingerprint identifies a key and reveals nothing about it.

An operator rotates sealing keys while the machines serve. First all machines get the new key behind the old one; every
start records a key that only opens. Then they get it in front of the old one. `antiphon admin keys --accept` retires a
key that sealed.

Invariant: no process starts that could not open the bodies that another one seals.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from antiphon.errors import ConfigError

OWNER, _SEALING = "owner.key", "sealing.keys:"
MOVING = "moving"
"""The row that marks the target of a move in progress; its value is the source."""
_SEALS, _OPENS = "seals", "opens"
_ACCEPT = "To start with the keys set here anyway, run `antiphon admin keys --accept` with them"

Recorded = Mapping[str, str]
"""The rows: the fingerprint of the owner key, and the use of each sealing key."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Fingerprints of a process's keys. `owner`: None where no owner id is the hash of a token. `sealing`: the first
    one seals, all of them open."""

    owner: str | None
    sealing: tuple[str, ...]

    def recorded(self) -> dict[str, str]:
        """The rows of a database that records exactly these keys."""
        rows = {} if self.owner is None else {OWNER: self.owner}
        first = self.sealing[:1]
        return rows | {_SEALING + one: _SEALS if one in first else _OPENS for one in self.sealing}


def fingerprint(key: bytes, what: Literal["owner.key", "sealing.keys"]) -> str:
    """The fingerprint of a key: it identifies the key and reveals nothing about it."""
    return hmac.digest(key, f"antiphon deployment {what}".encode(), hashlib.sha256).hex()[:32]


def to_note(recorded: Recorded, keys: Keys) -> dict[str, str]:
    """The rows to write for a process that starts with these keys. Raises `ConfigError` when it must not start."""
    if MOVING in recorded:
        raise ConfigError(
            f"A move from {recorded[MOVING]} into this database is unfinished. Run `antiphon admin move` "
            "until it completes, then start again."
        )
    if keys.owner is not None and recorded.get(OWNER, keys.owner) != keys.owner:
        raise ConfigError(
            "owner.key differs from the key that the other machines on this database use: clients could not "
            f"find their stored objects. Set owner.key to the value of the other machines. {_ACCEPT}; no "
            "client can then reach the objects that are stored already."
        )
    sealed = {name.removeprefix(_SEALING) for name, use in recorded.items() if use == _SEALS and name != OWNER}
    lacking = sorted(sealed - set(keys.sealing))
    if lacking:
        raise ConfigError(
            f"sealing.keys lacks {len(lacking)} of the keys that machines on this database seal with "
            f"(fingerprint {lacking[0][:8]}): this process could not open what they sealed. Append the "
            f"missing key to sealing.keys. {_ACCEPT}."
        )
    first = keys.sealing[0] if keys.sealing else ""
    if sealed and first not in sealed and _SEALING + first not in recorded:
        raise ConfigError(
            "The first key in sealing.keys is unknown to the other machines: they could not open what this "
            f"process seals. Put it second, restart all machines, then put it first. {_ACCEPT}."
        )
    wanted = keys.recorded()
    # A key that sealed once stays recorded as a sealing key, whatever its position now.
    return {name: use for name, use in wanted.items() if recorded.get(name) not in (use, _SEALS)}
