"""Ends responses with claimed tool calls whose process died.

Lives here: the content of a claim, and the end of such a response. Not here: the moment of the claim
(`engine/exchange/made_response.py`), the storage of claims (`stores/`), the end of background responses (`workers.py`).

Invariant: such a response ends as failed, exactly once, with its calls; no process makes these calls again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import structlog

from antiphon.engine.ports.actions import OnceOnly, ResponseRecord, StoredItem
from antiphon.engine.ports.idempotency import IdempotencyStore
from antiphon.engine.ports.state import ResponseStore
from antiphon.engine.ports.stored_bodies import is_over
from antiphon.errors import PredecessorGone, StoreError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """The stored content of a claim. `record` is None for a response that is not stored; `once` is its idempotency key.
    `queued`: a background response, whose row exists already and which ends with its job."""

    record: ResponseRecord | None
    once: OnceOnly | None
    queued: bool = False


_CLAIM = msgspec.msgpack.Decoder(Claim)


def encode_claim(record: ResponseRecord, once: OnceOnly | None, *, stored: bool, queued: bool) -> bytes:
    """The claim, encoded for the store."""
    return msgspec.msgpack.encode(Claim(record if stored else None, once, queued))


class LeftCalls:
    """The claimed calls that processes on one state left behind when they died."""

    def __init__(self, keys: IdempotencyStore, responses: ResponseStore) -> None:
        self._keys = keys
        self._responses = responses

    async def items(self, owner: str, response_id: str) -> tuple[StoredItem, ...] | None:
        """The output items of a response that has claimed calls, including these calls; None when it has claimed
        none."""
        found = await self._claim(owner, response_id)
        if found is None:
            return None
        return found.record.output_items if found.record is not None else ()

    async def end(self, owner: str, response_id: str) -> bool:
        """End a response whose process died. False when another process has ended it, or its worker must end it. Raises
        `StoreError`."""
        claim = await self._claim(owner, response_id)
        if claim is None:
            return False
        known = await self._responses.get(owner, response_id)
        if known is not None and not is_over(known.status):
            return False
        if known is None and claim.record is not None and not claim.queued:
            await self._store(replace(claim.record, once=claim.once, sent_calls=False))
            _log.error("response_left_behind", response_id=response_id, owner=owner[:12])
        elif known is None and claim.once is not None:
            await self._keys.stay(claim.once, response_id)
        await self._keys.end_calls(owner, response_id)
        return True

    async def sweep(self) -> int:
        """End all responses whose claim has expired; return their number. Raises `StoreError`."""
        ended = 0
        for owner, response_id in await self._keys.left_calls():
            try:
                ended += await self.end(owner, response_id)
            except StoreError as error:
                # The others are ended all the same.
                _log.warning("left_response_not_ended", response_id=response_id, error=str(error))
        return ended

    async def _claim(self, owner: str, response_id: str) -> Claim | None:
        found = await self._keys.claimed_calls(owner, response_id)
        return None if found is None else _CLAIM.decode(found)

    async def _store(self, record: ResponseRecord) -> None:
        try:
            await self._responses.save(record)
        except PredecessorGone:
            await self._responses.save(replace(record, previous_response_id=None))
        except StoreError:
            # Another process may have ended it in the same moment.
            if await self._responses.get(record.owner, record.id) is None:
                raise
