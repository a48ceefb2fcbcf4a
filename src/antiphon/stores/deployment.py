"""Checks that all processes on one database use the same owner key and sealing keys.

Lives here: the comparison of a process's keys with the recorded keys, and the rules for a start with other keys. Not
here: the SQL of the rows (in each backend), the purpose of a key (`doors/owners.py`, `sealing.py`).

With a different `owner.key`, a client would not find its data, and other machines would not find its new data. Without
a sealing key of the other machines, a process could not decrypt bodies from those machines. So the database records
fingerprints of the owner key and of the sealing keys. A fingerprint identifies a key and reveals nothing about it.

An operator rotates sealing keys while the machines serve. First the operator adds the new key behind the old key to
`sealing.keys` on all machines. Each start then records the new key as a key that only decrypts. Then the operator makes
the new key the first key in `sealing.keys`, so that the machines seal with the new key.
`antiphon admin deployment-keys --accept` removes the record of an old sealing key.

Invariant: a process does not start if it lacks a key with which another process seals bodies.
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
"""The name of the row that marks this database as the target of a move in progress. The row's value names the source of
the move."""
_SEALS, _OPENS = "seals", "opens"
_ACCEPT = "To start with the keys set here anyway, run `antiphon admin deployment-keys --accept` with them"

Recorded = Mapping[str, str]
"""The recorded rows by name: the fingerprint of the owner key, and the use (`seals` or `opens`) of each sealing key."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Fingerprints of a process's keys. `owner` is None when no owner id is the hash of a token. The process seals with
    the first key in `sealing`, and decrypts with all of them."""

    owner: str | None
    sealing: tuple[str, ...]

    def recorded(self) -> dict[str, str]:
        """Return the rows of a database that records exactly these keys."""
        rows = {} if self.owner is None else {OWNER: self.owner}
        first = self.sealing[:1]
        return rows | {_SEALING + one: _SEALS if one in first else _OPENS for one in self.sealing}


def fingerprint(key: bytes, what: Literal["owner.key", "sealing.keys"]) -> str:
    """Return the fingerprint of a key: 32 hexadecimal digits that identify the key and reveal nothing about it."""
    return hmac.digest(key, f"antiphon deployment {what}".encode(), hashlib.sha256).hex()[:32]


def to_note(recorded: Recorded, keys: Keys) -> dict[str, str]:
    """Return the rows that a process must write when it starts with these keys. Raises `ConfigError` when the process
    must not start."""
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
    # The record of a key that has sealed stays `seals`, even if the process now only decrypts with the key.
    return {name: use for name, use in wanted.items() if recorded.get(name) not in (use, _SEALS)}
