"""Prevents a second effect of a repeated request. The sidecar answers such a request with the first request's response.

This module reads an `Idempotency-Key`, and claims, holds and releases keys, approvals and tool calls. The module also
answers a repeated request, and ends responses whose process died with claimed calls. Not here: the format of a key
(`engine/ports/idempotency.py`), the moment of a claim (`engine/exchange/made_response.py`), the storage of claims
(`stores/`), the end of background responses (`workers.py`).

Invariants: a response holds its idempotency key before the sidecar performs any action for the request, except to load
its prompt. `Leases` (`stores/leases.py`) renews the keys that responses hold. The process releases a key at most once.
A response whose process died with claimed calls ends as failed, exactly once, with its calls. No process makes these
calls a second time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec
import structlog

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import OnceOnly, RequestHead, ResponseRecord, StoredItem
from antiphon.engine.ports.idempotency import HEADER, LeftBehind, fingerprint, in_progress, read_key
from antiphon.engine.ports.jobs import is_over
from antiphon.engine.waiting import LARGE, apart
from antiphon.errors import ApiError, NotFound, PredecessorGone, StoreError, store_refusal
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.leases import Leases
from antiphon.stores.responses import ResponseStore

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """The stored record of the tool calls that a response is about to send. `record` is None for an unstored response.
    `once` is the response's idempotency key.

    `queued` is true for a background response. The store already has a row of such a response. So `LeftCalls` does not
    save it, and a background worker ends it together with its job.
    """

    record: ResponseRecord | None
    once: OnceOnly | None
    queued: bool = False


_CLAIM = msgspec.msgpack.Decoder(Claim)


def encode_claim(record: ResponseRecord, once: OnceOnly | None, *, stored: bool, queued: bool) -> bytes:
    """The claim, encoded for the store."""
    return msgspec.msgpack.encode(Claim(record if stored else None, once, queued))


class LeftCalls:
    """The claimed tool calls of responses whose process died. Before a process sends tool calls, it claims the calls
    with a record in the store. All processes read these claims."""

    def __init__(self, keys: IdempotencyStore, responses: ResponseStore) -> None:
        self._keys = keys
        self._responses = responses

    async def items(self, owner: str, response_id: str) -> tuple[StoredItem, ...] | None:
        """Return the output items of a response that has claimed tool calls, including these calls. Returns None when
        the response has claimed no calls."""
        found = await self._claim(owner, response_id)
        if found is None:
            return None
        return found.record.output_items if found.record is not None else ()

    async def end(self, owner: str, response_id: str) -> bool:
        """End a response whose process died. Returns False when another process has ended the response, or when a
        background worker must end it. Raises `StoreError`."""
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
        """End all responses whose claim has expired, and return their number. Raises `StoreError`."""
        ended = 0
        for owner, response_id in await self._keys.left_calls():
            try:
                ended += await self.end(owner, response_id)
            except StoreError as error:
                # A failure with one response does not stop the loop, which ends the remaining responses.
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
            # Another process may have saved the same response concurrently.
            if await self._responses.get(record.owner, record.id) is None:
                raise


class HeldKeys:
    """The idempotency keys, approvals and claims that running responses of this process hold."""

    def __init__(self, store: IdempotencyStore, leases: Leases, left: LeftCalls | None = None) -> None:
        """`left` ends responses whose process died."""
        self._left = left
        self._store = store
        self._leases = leases
        self._process = secrets.token_hex(16)
        """The unique name under which this process writes claims to the store."""
        self._held: dict[str, OnceOnly] = {}
        self._answering: dict[str, str] = {}
        """Maps the id of each running response that uses approvals to its owner."""
        self._calling: dict[str, str] = {}
        """Maps the id of each running response that has claimed tool calls to its owner."""

    async def claim(self, once: OnceOnly, response_id: str) -> str | None:
        """Claim the key for this response. Returns the id of the response that an earlier request with the key created,
        or None.

        Raises `ApiError`.
        """
        # A cancelled claim may still take effect in the store. Because of this entry, `release` then releases the key.
        self._held[response_id] = once
        try:
            made = await self._claim(once, response_id)
        except ApiError:
            del self._held[response_id]
            raise
        if made is None:
            self._leases.hold(self._store, response_id)
        else:
            del self._held[response_id]
        return made

    async def _claim(self, once: OnceOnly, response_id: str) -> str | None:
        try:
            return await self._store.claim(once, response_id, self._leases.seconds)
        except LeftBehind as left:
            if self._left is None or not await self._left.end(once.owner, left.object_id):
                raise in_progress() from None
            return left.object_id

    async def made(self, once: OnceOnly) -> str | None:
        """Return the id of the response that an earlier, identical request with this key created, or None."""
        return await self._store.made(once)

    def of(self, response_id: str) -> OnceOnly | None:
        """The idempotency key that this response holds."""
        return self._held.get(response_id)

    async def use_approvals(self, owner: str, requests: tuple[str, ...], response_id: str) -> dict[str, str]:
        """Mark these approvals as used by this response. Returns the approvals that another response has already used,
        each with the id of that response. Raises `StoreError`."""
        self._answering[response_id] = owner
        return await self._store.spend(owner, requests, response_id)

    async def claim_calls(self, record: ResponseRecord, *, stored: bool, queued: bool = False) -> None:
        """Record in the store that this response is about to send tool calls. Raises `StoreError`."""
        once = self._held.get(record.id)
        claim = encode_claim(record, once, stored=stored, queued=queued)
        # A failed or cancelled write may still take effect in the store, so the entry exists before the write.
        self._calling[record.id] = record.owner
        seconds = self._leases.seconds
        if not await self._store.claim_calls(record.owner, record.id, claim, seconds, by=self._process, once=once):
            del self._calling[record.id]
            raise StoreError(
                "Another server process treated this process as dead and ended the request. Send the request again."
            )
        self._leases.hold(self._store, record.id)

    def holds(self, response_id: str) -> bool:
        """Whether this response holds a key, uses approvals, or has claimed calls."""
        return response_id in self._held or response_id in self._answering or response_id in self._calling

    def hand_to_store(self, response_id: str) -> None:
        """Stop renewing the response's leases. The response is stored, or another process has taken over the
        response."""
        self._answering.pop(response_id, None)
        called = self._calling.pop(response_id, None)
        if self._held.pop(response_id, None) is not None or called is not None:
            self._leases.drop(self._store, response_id)

    def calls(self, response_id: str) -> bool:
        """Whether this response has claimed calls."""
        return response_id in self._calling

    async def end_calls(self, response_id: str) -> None:
        """Delete the claim of a stored response that is over. If the store fails, a sweep deletes the claim later."""
        owner = self._calling.get(response_id)
        if owner is not None:
            try:
                await self._store.end_calls(owner, response_id)
            except StoreError as error:
                _log.info("claimed_calls_not_ended", response_id=response_id, error=str(error))

    async def release(self, response_id: str, *, counts: bool = False) -> None:
        """Release the key, approvals and claim of a response that has ended, unless the store has bound the key to this
        response.

        When `counts` is true, the key and the approvals stay used. If the store fails, the key expires later and the
        approvals stay used.
        """
        once, owner = self._held.pop(response_id, None), self._answering.pop(response_id, None)
        called = self._calling.pop(response_id, None)
        try:
            if once is not None or called is not None:
                self._leases.drop(self._store, response_id)
            if once is not None:
                await (self._store.stay if counts else self._store.release)(once, response_id)
            if owner is not None and not counts:
                await self._store.unspend(owner, response_id)
            if called is not None:
                await self._store.end_calls(called, response_id)
        except StoreError as error:
            _log.info("idempotency_key_not_released", response_id=response_id, error=str(error))

    async def aclose(self) -> None:
        """Stop renewing the leases."""
        await self._leases.aclose()


async def read_keyed(
    exchange: ResponseExchange, head: RequestHead, body: bytes, keys: HeldKeys, responses: ResponseStore
) -> KeyedRequest | None:
    """Return the request with its idempotency key, or None if the request has no valid key. For an invalid key, the
    exchange answers with an error."""
    given = head.header(HEADER)
    if given is None:
        return None
    with _told_of_the_key(exchange):
        key = read_key(given)
        assert key is not None
        path = head.path.partition("?")[0]
        if len(body) < LARGE:
            stands_for = fingerprint(head.method, path, body)
        else:
            stands_for = await apart(lambda: fingerprint(head.method, path, body))
        return KeyedRequest(exchange, OnceOnly(head.owner, key, stands_for), keys, responses)
    return None


class KeyedRequest:
    """A request with an idempotency key. The methods look up the key, and fetch the response to which the key
    refers."""

    def __init__(self, exchange: ResponseExchange, once: OnceOnly, keys: HeldKeys, responses: ResponseStore) -> None:
        self._exchange = exchange
        self._once = once
        self._keys = keys
        self._responses = responses

    async def look_up(self) -> None:
        """Answer with the stored response of an earlier request with the same key, if any. This lookup comes before the
        load of the prompt, because the prompt may have been deleted after the earlier request."""
        with _told_of_the_key(self._exchange):
            await self._answer(await self._keys.made(self._once))

    async def claim(self) -> None:
        """Claim the key, or answer with the stored response of an earlier request with the same key."""
        with _told_of_the_key(self._exchange):
            self._exchange.claim()
            await self._answer(await self._keys.claim(self._once, self._exchange.known.response_id))

    async def _answer(self, made: str | None) -> None:
        """Answer with the stored response whose id is `made`. If `made` is None, do nothing. Raises `ApiError` if the
        response is not stored."""
        if made is None:
            return
        found = await self._responses.get(self._once.owner, made)
        if found is None:
            if self._exchange.awaits_prompt:
                # The prompt is not loaded yet, and `store` may depend on the prompt. So `claim` chooses the
                # error later.
                return
            raise (
                _not_kept()
                if not self._exchange.known.stored
                else NotFound(
                    f"The response '{made}', which was made with this Idempotency-Key, was deleted. Use a new key.",
                    code="response_not_found",
                )
            )
        self._exchange.answer_again(found)


def _not_kept() -> ApiError:
    """The error for a retry whose first response was not stored."""
    return ApiError(
        "A request with this Idempotency-Key was already served, and its response was not stored ('store': false), so "
        "it cannot be returned again. Use a new key. To make retries return the response, leave 'store' out.",
        status=422,
        type="invalid_request_error",
        code="idempotency_result_not_kept",
    )


@contextmanager
def _told_of_the_key(exchange: ResponseExchange) -> Iterator[None]:
    """Catch an error about the idempotency key that the `with` block raises, and answer the request with this error."""
    try:
        yield
    except ApiError as error:
        error.operation = "idempotency_key"
        exchange.turn_away(error)
    except StoreError as error:
        exchange.turn_away(store_refusal(error, "The Idempotency-Key could not be looked up"))
