"""Requests with an `Idempotency-Key`: what is made of the header, and every answer that the keys may give."""

from __future__ import annotations

from typing import Any, cast

import pytest

from antiphon.engine.exchange.phase import Known
from antiphon.engine.ports.actions import OnceOnly, RequestHead
from antiphon.engine.ports.idempotency import fingerprint, in_progress
from antiphon.engine.running.idempotency import KeyedRequest, read_keyed
from antiphon.engine.waiting import LARGE
from antiphon.errors import ApiError, StoreError


class _Exchange:
    """What is told to an exchange."""

    awaits_prompt = False

    def __init__(self, *, stored: bool = True) -> None:
        self.known = Known()
        self.known.response_id, self.known.stored = "resp_new", stored
        self.told: list[object] = []

    def claim(self) -> None:
        self.told.append("claimed")

    def turn_away(self, error: ApiError) -> None:
        self.told.append(error)

    def answer_again(self, stored: object) -> None:
        self.told.append(stored)


class _Keys:
    """Keys of which `answer` is what there is to say; it may be an error."""

    def __init__(self, answer: str | Exception | None = None) -> None:
        self.answer = answer
        self.asked: list[tuple[object, ...]] = []

    def _say(self) -> str | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def claim(self, once: OnceOnly, response_id: str) -> str | None:
        self.asked.append((once, response_id))
        return self._say()

    async def made(self, once: OnceOnly) -> str | None:
        self.asked.append((once,))
        return self._say()


class _Responses:
    async def get(self, owner: str, response_id: str) -> str | None:
        return f"{owner}'s {response_id}" if response_id == "resp_old" else None


async def _read(
    keys: _Keys, exchange: _Exchange, key: str | None = "k", path: str = "/v1/responses?x=1", body: bytes = b"{}"
) -> KeyedRequest | None:
    head = RequestHead("POST", path, (("idempotency-key", key),) if key is not None else (), "me")
    return await read_keyed(cast(Any, exchange), head, body, cast(Any, keys), cast(Any, _Responses()))


async def test_without_a_key_there_is_nothing_to_do() -> None:
    exchange = _Exchange()
    assert await _read(_Keys(), exchange, None) is None and exchange.told == []


async def test_a_key_that_is_none_is_answered() -> None:
    exchange = _Exchange()
    assert await _read(_Keys(), exchange, "k" * 256) is None
    (error,) = exchange.told
    assert isinstance(error, ApiError) and (error.code, error.operation) == (
        "invalid_idempotency_key",
        "idempotency_key",
    )


@pytest.mark.parametrize("size", [2, LARGE - 1, LARGE])
async def test_a_key_stands_for_the_request_without_its_query(size: int) -> None:
    keys, exchange, body = _Keys(), _Exchange(), b" " * size
    keyed = await _read(keys, exchange, body=body)
    assert keyed is not None
    await keyed.claim()
    await keyed.look_up()
    once = OnceOnly("me", "k", fingerprint("POST", "/v1/responses", body))
    assert keys.asked == [(once, "resp_new"), (once,)] and exchange.told == ["claimed"]


@pytest.mark.parametrize("claims", [True, False])
async def test_what_was_made_before_is_given_again(claims: bool) -> None:
    exchange = _Exchange()
    keyed = await _read(_Keys("resp_old"), exchange)
    assert keyed is not None
    await (keyed.claim() if claims else keyed.look_up())
    assert exchange.told == [*(["claimed"] if claims else []), "me's resp_old"]


@pytest.mark.parametrize("claims", [True, False])
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ("resp_deleted", 404, "response_not_found"),
        (in_progress(), 409, "idempotency_key_in_use"),
        (StoreError("locked"), 500, None),
    ],
    ids=["deleted", "in use", "no store"],
)
async def test_what_goes_wrong_with_the_key_is_the_answer(
    answer: str | Exception, status: int, code: str | None, claims: bool
) -> None:
    exchange = _Exchange()
    keyed = await _read(_Keys(answer), exchange)
    assert keyed is not None
    await (keyed.claim() if claims else keyed.look_up())
    error = exchange.told[-1]
    assert isinstance(error, ApiError) and error.status == status and code in (None, error.code)
    assert len(exchange.told) == 1 + claims


async def test_what_was_served_and_is_not_stored_is_not_served_again() -> None:
    exchange = _Exchange(stored=False)
    keyed = await _read(_Keys("resp_deleted"), exchange)
    assert keyed is not None
    exchange.awaits_prompt = True
    await keyed.look_up()
    assert exchange.told == [], "what its prompt says comes first"
    exchange.awaits_prompt = False
    await keyed.claim()
    error = exchange.told[-1]
    assert isinstance(error, ApiError) and (error.status, error.code) == (422, "idempotency_result_not_kept")
