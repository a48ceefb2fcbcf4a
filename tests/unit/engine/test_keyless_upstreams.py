"""Whether an upstream works without a key: what its answers say, and for how long that is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.engine.running.background import Keyless
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault


class _Answer:
    headers: Headers = ()

    def __init__(self, status: int) -> None:
        self.status = status

    async def body(self) -> AsyncIterator[bytes]:
        raise AssertionError("nobody reads it")
        yield b""


class _Upstream:
    """Answers with these statuses one after another, the last again and again; 0 is none at all."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.asked: list[tuple[str, str, str]] = []

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[_Answer]:
        self.asked.append((request.upstream, request.method, request.path))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        await asyncio.sleep(0)
        if not status:
            raise UpstreamCallFailed(UpstreamError(UpstreamFault.UNREACHABLE, "refused"))
        yield _Answer(status)

    async def aclose(self) -> None: ...


@pytest.mark.parametrize(
    ("statuses", "works"),
    [
        *(((status,), True) for status in (200, 299, 400, 404, 405, 413, 415, 422)),
        *(((status,), False) for status in (401, 402, 403, 407)),
        *(((status,), None) for status in (0, 199, 300, 429, 499, 501, 503)),
        *(((500, status), True) for status in (200, 299)),
        *(((500, status), False) for status in (401, 407)),
        *(((500, status), None) for status in (0, 199, 300, 404, 500)),
    ],
)
async def test_what_an_answer_says(statuses: tuple[int, ...], works: bool | None) -> None:
    upstream = _Upstream(*statuses)
    assert await Keyless(upstream).ask("u") is works
    asked = [("u", "POST", "/chat/completions"), ("u", "GET", "/models")]
    assert upstream.asked == asked[: len(statuses)]


async def test_it_is_remembered_for_a_time_and_for_each_upstream() -> None:
    now = 1000.0
    upstream = _Upstream(200, 401, 200)
    keyless = Keyless(upstream, lambda: now)
    assert await keyless.ask("a") is True and await keyless.ask("b") is False
    now += 299.0
    assert await keyless.ask("a") is True and await keyless.ask("b") is False and len(upstream.asked) == 2
    now += 1.0
    assert await keyless.ask("b") is True and len(upstream.asked) == 3


async def test_what_could_not_be_learned_is_asked_again() -> None:
    upstream = _Upstream(503, 200)
    keyless = Keyless(upstream)
    assert await keyless.ask("a") is None and await keyless.ask("a") is True


async def test_many_at_once_ask_once() -> None:
    upstream = _Upstream(200)
    keyless = Keyless(upstream)
    assert await asyncio.gather(*(keyless.ask("a") for _ in range(5))) == [True] * 5
    assert len(upstream.asked) == 1
