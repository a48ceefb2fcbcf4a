"""An `IdempotencyStore` that encrypts its records at rest.

Lives here: which parts are encrypted (records; keys and ids stay readable). Not here: the encryption (`bodies.py`).

Invariant: `claimed_calls` returns the record that `claim_calls` got.
"""

from __future__ import annotations

from antiphon.engine.ports.idempotency import IdempotencyStore, OnceOnly
from antiphon.stores.sealed.bodies import Bodies


class SealedKeys:
    """Encrypts the records of the store `beneath`."""

    def __init__(self, beneath: IdempotencyStore, bodies: Bodies) -> None:
        self._beneath = beneath
        self._bodies = bodies
        self.claim = beneath.claim
        self.made = beneath.made
        self.release = beneath.release
        self.stay = beneath.stay
        self.spend = beneath.spend
        self.unspend = beneath.unspend
        self.left_calls = beneath.left_calls
        self.end_calls = beneath.end_calls
        self.renew = beneath.renew
        self.sweep = beneath.sweep

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        """Note that calls are sent; see `IdempotencyStore.claim_calls`."""
        sealed = self._bodies.seal(record)
        return await self._beneath.claim_calls(owner, response_id, sealed, seconds, by=by, once=once)

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        """The record of a response that has claimed calls."""
        found = await self._beneath.claimed_calls(owner, response_id)
        return None if found is None else self._bodies.open(found)
