"""Checks that all processes on one database use the same owner and sealing keys.

Lives here: which keys a database goes with, and when a process may start with others. Not here: the rows (each
backend's), what a key is for (`doors/owners.py`, `sealing.py`).

With another `owner.key` a client would find nothing of its own, and store what the other machines do not find; without
a key that others seal with, what they sealed could not be opened. So a database keeps fingerprints, which tell one key
from another and nothing about it.

Sealing keys are changed while machines serve: first all get the new key behind the old one (every start notes a key
that it could open with), then in front of it, and a key that sealed is given up by `antiphon admin keys --accept`.

Invariant: no process starts that could not open what another one seals.
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
"""The row of a database that things are being moved into: from where."""
_SEALS, _OPENS = "seals", "opens"
_ACCEPT = "to go on with these all the same, run `antiphon admin keys --accept` with them"

Recorded = Mapping[str, str]
"""The rows: of the owner's key its fingerprint, of each sealing key what it is used for."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Fingerprints of a process's keys. `owner`: None where nobody is known by a hash; `sealing`: the first one seals,
    all open."""

    owner: str | None
    sealing: tuple[str, ...]

    def recorded(self) -> dict[str, str]:
        """As rows of a database that goes with these keys alone."""
        rows = {} if self.owner is None else {OWNER: self.owner}
        first = self.sealing[:1]
        return rows | {_SEALING + one: _SEALS if one in first else _OPENS for one in self.sealing}


def fingerprint(key: bytes, what: Literal["owner.key", "sealing.keys"]) -> str:
    """Tells one key from another; of use to nobody else."""
    return hmac.digest(key, f"antiphon deployment {what}".encode(), hashlib.sha256).hex()[:32]


def to_note(recorded: Recorded, keys: Keys) -> dict[str, str]:
    """The rows to write for a process that starts with these keys. Raises `ConfigError` where it must not start."""
    if MOVING in recorded:
        raise ConfigError(
            f"things are being moved into this database from {recorded[MOVING]}: run `antiphon admin move` to its end, "
            "then start"
        )
    if keys.owner is not None and recorded.get(OWNER, keys.owner) != keys.owner:
        raise ConfigError(
            "owner.key is another one than the machines have that use this database: every client would find nothing "
            f"of its own. Set it to theirs; {_ACCEPT}, and what there is stays with nobody."
        )
    sealed = {name.removeprefix(_SEALING) for name, use in recorded.items() if use == _SEALS and name != OWNER}
    lacking = sorted(sealed - set(keys.sealing))
    if lacking:
        raise ConfigError(
            f"sealing.keys lack {len(lacking)} of the keys with which machines on this database seal (fingerprint "
            f"{lacking[0][:8]}): what they sealed could not be opened. Add it behind the others; {_ACCEPT}."
        )
    first = keys.sealing[0] if keys.sealing else ""
    if sealed and first not in sealed and _SEALING + first not in recorded:
        raise ConfigError(
            "sealing.keys begin with a key that the other machines do not have yet, and could not open what it seals. "
            f"Put it second, restart all of them, then put it first; {_ACCEPT}."
        )
    wanted = keys.recorded()
    # A key that sealed once stays one, wherever it stands now.
    return {name: use for name, use in wanted.items() if recorded.get(name) not in (use, _SEALS)}
