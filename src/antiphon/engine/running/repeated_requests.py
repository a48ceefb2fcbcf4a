"""Answers a repeated request, whose `Idempotency-Key` is known, with the first request's stored response.

Lives here: reading the key, claiming it for the new response, and the answer to a repeated request. Not here: the
format of a key (`engine/ports/idempotency.py`), the renewal and release of keys (`held_keys.py`).

Invariant: the response holds the key before the sidecar performs any action for the request, except to load its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import OnceOnly, RequestHead
from antiphon.engine.ports.idempotency import HEADER, fingerprint, read_key
from antiphon.engine.running.held_keys import HeldKeys
from antiphon.engine.waiting import LARGE, apart
from antiphon.errors import ApiError, NotFound, StoreError, store_refusal
from antiphon.stores.responses import ResponseStore


async def read_keyed(
    exchange: ResponseExchange, head: RequestHead, body: bytes, keys: HeldKeys, responses: ResponseStore
) -> KeyedRequest | None:
    """Return the request with its idempotency key, or None if it has no valid key. For an invalid key, the exchange
    answers with an error."""
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
    """A request with an idempotency key. Its methods look the key up, and fetch the response that the key refers to."""

    def __init__(self, exchange: ResponseExchange, once: OnceOnly, keys: HeldKeys, responses: ResponseStore) -> None:
        self._exchange = exchange
        self._once = once
        self._keys = keys
        self._responses = responses

    async def look_up(self) -> None:
        """Answer with the stored response of an earlier request with the same key, if any. This lookup comes before the
        prompt is loaded, because the prompt may have been deleted since."""
        with _told_of_the_key(self._exchange):
            await self._answer(await self._keys.made(self._once))

    async def claim(self) -> None:
        """Claim the key, or answer with the stored response of an earlier request with the same key."""
        with _told_of_the_key(self._exchange):
            self._exchange.claim()
            await self._answer(await self._keys.claim(self._once, self._exchange.known.response_id))

    async def _answer(self, made: str | None) -> None:
        """Answer with the stored response whose id is `made`. None: do nothing. Raises `ApiError` if the response is
        not stored."""
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
    """Catch an error about the key in the `with` block, and make it the answer to the request."""
    try:
        yield
    except ApiError as error:
        error.operation = "idempotency_key"
        exchange.turn_away(error)
    except StoreError as error:
        exchange.turn_away(store_refusal(error, "The Idempotency-Key could not be looked up"))
