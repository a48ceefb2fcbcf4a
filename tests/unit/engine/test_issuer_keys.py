"""When a process reads the keys of a token issuer, and what it does while the issuer does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from antiphon.engine.running.issuer_keys import IssuerKeys
from antiphon.upstream.issuer import IssuerUnread
from tests.support.fake_time import fake_time


class Scripted:
    """An issuer whose answer a test sets. `at` has the time of each reading."""

    def __init__(self) -> None:
        self.data: bytes | Exception = b"one"
        self.at: list[float] = []

    async def fetch(self) -> bytes:
        self.at.append(asyncio.get_running_loop().time())
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


def read(data: bytes) -> list[bytes]:
    if data == b"wrong":
        raise ValueError("it is not a JSON Web Key Set")
    return [data] if data else []


@asynccontextmanager
async def opened(issuer: Scripted) -> AsyncIterator[IssuerKeys[list[bytes]]]:
    held = IssuerKeys(issuer.fetch, read, url="https://issuer/keys?key=secret", refresh=300.0, stale=3600.0)
    await held.open()
    try:
        yield held
    finally:
        await held.aclose()


@fake_time
async def test_keys_are_read_at_the_start_and_every_refresh() -> None:
    issuer = Scripted()
    async with opened(issuer) as held:
        first = held.keys
        await asyncio.sleep(301)
        # The same keys stay the same object, so that what was checked with them stays checked.
        assert first == [b"one"] and held.keys is first
        issuer.data = b"two"
        await asyncio.sleep(300)
        assert held.keys == [b"two"]
    await asyncio.sleep(1000)
    assert issuer.at == [0.0, 300.0, 600.0]


@fake_time
async def test_many_unknown_keys_cause_one_reading_in_ten_seconds() -> None:
    issuer = Scripted()
    async with opened(issuer) as held:
        # Keys that are so new need no other reading.
        assert {held.read_soon() for _ in range(100)} == {0.0}
        await asyncio.sleep(50)
        issuer.data = b"two"
        assert {held.read_soon() for _ in range(100)} == {1.0}
        await asyncio.sleep(1)
        assert held.keys == [b"two"] and held.read_soon() == 0.0
        await asyncio.sleep(20)
        assert issuer.at == [0.0, 50.0]


@pytest.mark.parametrize("failure", [IssuerUnread("the issuer does not answer in time"), b"wrong", RuntimeError("bug")])
@fake_time
async def test_the_last_keys_stay_while_the_issuer_is_down(failure: bytes | Exception) -> None:
    issuer = Scripted()
    async with opened(issuer) as held:
        issuer.data = failure
        await asyncio.sleep(325)
        assert held.keys == [b"one"] and issuer.at == [0.0, 300.0, 310.0, 320.0]
        # An unknown key may exist. It is asked for with the next attempt.
        assert held.read_soon() == 5.0
        issuer.data = b"two"
        await asyncio.sleep(6)
        assert held.keys == [b"two"] and issuer.at[4:] == [330.0]


@fake_time
async def test_an_issuer_that_is_down_at_the_start_is_found_later_with_one_line_each() -> None:
    issuer = Scripted()
    issuer.data = IssuerUnread("the issuer cannot be reached: ClientConnectorError")
    with structlog.testing.capture_logs() as lines:
        async with opened(issuer) as held:
            await asyncio.sleep(25)
            assert held.keys is None and issuer.at == [0.0, 10.0, 20.0]
            issuer.data = b"one"
            await asyncio.sleep(6)
            assert held.keys == [b"one"]
    assert [line["event"] for line in lines] == ["issuer_keys_not_read", "issuer_keys_read_again"]
    assert lines[0]["cause"] == "the issuer cannot be reached: ClientConnectorError"
    assert lines[0]["url"] == "https://issuer/keys?key=***"


@fake_time
async def test_the_last_keys_end_some_time_after_the_last_answer() -> None:
    issuer = Scripted()
    with structlog.testing.capture_logs() as lines:
        async with opened(issuer) as held:
            issuer.data = IssuerUnread("the issuer does not answer in time")
            await asyncio.sleep(3901)
            assert held.keys == [b"one"]
            await asyncio.sleep(10)
            assert held.keys is None
            issuer.data = b"one"
            await asyncio.sleep(10)
            assert held.keys == [b"one"]
    assert [line["event"] for line in lines] == [
        "issuer_keys_not_read",
        "issuer_keys_too_old",
        "issuer_keys_read_again",
    ]
    assert lines[1]["url"] == "https://issuer/keys?key=***" and lines[1]["seconds"] == 3910


@fake_time
async def test_an_issuer_that_withdraws_its_keys_is_believed() -> None:
    issuer = Scripted()
    with structlog.testing.capture_logs() as lines:
        async with opened(issuer) as held:
            issuer.data = b""
            await asyncio.sleep(620)
            assert held.keys == [] and issuer.at == [0.0, 300.0, 600.0]
    assert [line["event"] for line in lines] == ["issuer_keys_withdrawn"]
