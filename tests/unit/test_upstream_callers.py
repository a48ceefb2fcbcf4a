"""Who calls upstreams and when: by turns, through Envoy's door, and to learn what they are.

There is no network, and the test moves the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamCallFailed
from antiphon.types.transport import UpstreamError, UpstreamFault
from antiphon.upstream.identity import ServerIdentities
from antiphon.upstream.routing import ModelDoor, SeveralUpstreams, UpstreamPool
from tests.support.fake_time import in_fake_time

POST = UpstreamRequest("POST", "/chat/completions", (("authorization", "Bearer x"),), b"{}", "m", False, "a,b", tries=2)
LISTED = b'{"data":[{"id":"m","owned_by":"vllm"}]}'


@dataclass
class Given:
    """An answer of the fake upstream."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    data: bytes = b""

    async def body(self) -> AsyncIterator[bytes]:
        yield self.data[: len(self.data) // 2]
        yield self.data[len(self.data) // 2 :]


def refused() -> UpstreamCallFailed:
    return UpstreamCallFailed(UpstreamError(UpstreamFault.UNREACHABLE, "nobody there"))


@dataclass
class Fake:
    """An upstream that answers as `say` decides by the number of the call. Notes the requests, and when they came."""

    say: Callable[[int], Given | Exception | None]
    requests: list[UpstreamRequest] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    closed: int = 0

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.times.append(asyncio.get_running_loop().time())
        said = self.say(len(self.requests))
        if isinstance(said, Exception):
            raise said
        if said is None:
            await asyncio.Event().wait()
        yield said

    async def aclose(self) -> None:
        self.closed += 1


# Envoy's door


async def test_the_door_is_told_which_upstream_a_call_is_for() -> None:
    fake = Fake(lambda _: Given())
    door = ModelDoor(cast(Any, fake))
    for name in ("default", "second"):
        async with door.call(UpstreamRequest("GET", "/models", (("a", "b"),), b"", "", False, name)):
            pass
    assert [request.headers for request in fake.requests] == [
        (("a", "b"),),
        (("a", "b"), ("x-antiphon-backend", "second")),
    ]
    await door.aclose()
    assert fake.closed == 1


# By turns


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


async def _first_asked(several: SeveralUpstreams) -> str:
    async with several.call(POST) as answer:
        return dict(answer.headers)["antiphon-upstream"]


@pytest.mark.parametrize("status", [502, 503, 504, None])
async def test_three_failures_in_a_row_put_an_upstream_last_for_ten_seconds(status: int | None) -> None:
    a, b = Fake(lambda _: refused() if status is None else Given(status)), Fake(lambda _: Given())
    clock = Clock()
    several = SeveralUpstreams({"a": a, "b": b}, clock=clock)
    for asked in (1, 2, 3, 3, 3):
        assert await _first_asked(several) == "b" and len(a.requests) == asked
    clock.now += 9.9
    assert await _first_asked(several) == "b" and len(a.requests) == 3
    clock.now += 0.1
    # And it takes three again.
    for asked in (4, 5, 6, 6):
        assert await _first_asked(several) == "b" and len(a.requests) == asked


@pytest.mark.parametrize("other", [Given(), Given(500), Given(429)])
async def test_an_answer_between_failures_counts_them_anew(other: Given) -> None:
    a, b = Fake(lambda number: other if number == 3 else refused()), Fake(lambda _: Given())
    several = SeveralUpstreams({"a": a, "b": b}, clock=Clock())
    for asked in (1, 2, 3, 4, 5, 6, 6):
        await _first_asked(several)
        assert len(a.requests) == asked


async def test_each_is_asked_by_its_name_once_and_without_the_key_of_another() -> None:
    a, b = Fake(lambda _: Given(500)), Fake(lambda _: Given(200, (("antiphon-upstream", "x"), ("c", "d")), b"hello"))
    several = SeveralUpstreams({"a": a, "b": b}, clock=Clock(), passthrough=frozenset({"b"}))
    with structlog.testing.capture_logs() as log:
        async with several.call(POST) as answer:
            assert answer.headers == (("c", "d"), ("antiphon-upstream", "b"), ("x-antiphon-tried", "2"))
            assert answer.status == 200 and b"".join([part async for part in answer.body()]) == b"hello"
    assert [(request.upstream, request.tries, request.headers) for request in (*a.requests, *b.requests)] == [
        ("a", 1, ()),
        ("b", 1, POST.headers),
    ]
    assert [(line["event"], line["upstream"], line["next"], line["cause"]) for line in log] == [
        ("upstream_passed_over", "a", "b", "status 500")
    ]


async def test_a_pool_calls_them_by_name_and_closes_each() -> None:
    fakes = {"a": Fake(lambda _: Given()), "b": Fake(lambda _: Given())}
    pool = UpstreamPool(cast(Any, fakes), {"both": SeveralUpstreams(fakes, (1, 1))})
    for name in ("b", "both"):
        async with pool.call(UpstreamRequest("GET", "/models", (), upstream=name)):
            pass
    assert [request.upstream for request in fakes["b"].requests][:1] == ["b"]
    assert sum(len(fake.requests) for fake in fakes.values()) == 2
    await pool.aclose()
    assert [fake.closed for fake in fakes.values()] == [1, 1]


async def test_the_last_ones_failure_is_the_calls() -> None:
    several = SeveralUpstreams({"a": Fake(lambda _: refused()), "b": Fake(lambda _: refused())}, clock=Clock())
    with pytest.raises(UpstreamCallFailed):
        await _first_asked(several)


def test_there_is_a_weight_for_each_or_for_none() -> None:
    fakes = {"a": Fake(lambda _: Given()), "b": Fake(lambda _: Given())}
    with pytest.raises(ValueError, match="zip"):
        SeveralUpstreams(fakes, (1,))


# To learn what they are


def _identify(fake: Fake, seconds: float) -> tuple[list[str], list[tuple[str, str]], list[float]]:
    """What was found, the lines of the log with their problem, and when it was asked."""
    found: list[str] = []
    with structlog.testing.capture_logs() as log:

        async def play() -> None:
            identities = ServerIdentities(cast(Any, fake), ["one"], lambda _, profile: found.append(profile))
            identities.start()
            await asyncio.sleep(seconds)
            await identities.aclose()
            # After its end nothing is awaited, and it can end again.
            await identities.answered()
            await identities.aclose()
            await asyncio.sleep(1000)

        in_fake_time(play())
    return found, [(line["event"], line.get("problem", "")) for line in log], fake.times


def test_an_upstream_is_asked_less_and_less_often_until_it_answers() -> None:
    waits = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    times = [sum(waits[:number]) for number in range(12)]
    fake = Fake(lambda number: refused() if number < 12 else Given(data=LISTED))
    found, log, asked = _identify(fake, 400)
    assert found == ["vllm"] and asked == pytest.approx(times)
    # Half a minute without an answer is worth a line.
    assert log == [("upstream_unidentified", "no answer yet"), ("upstream_identified", "")]
    request = fake.requests[0]
    assert (request.method, request.path, request.headers, request.upstream) == (
        *("GET", "/models"),
        (("accept", "application/json"),),
        "one",
    )


@pytest.mark.parametrize(("seconds", "lines"), [(31.0, 0), (32.0, 1)])
def test_the_line_comes_with_the_first_try_after_half_a_minute(seconds: float, lines: int) -> None:
    _, log, _ = _identify(Fake(lambda _: refused()), seconds)
    assert len(log) == lines


def test_a_try_that_hangs_has_an_end() -> None:
    _, _, asked = _identify(Fake(lambda _: None), 30)
    assert asked == pytest.approx([0, 10.25, 20.75])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (Given(data=LISTED), ["vllm"]),
        (Given(data=LISTED + b" " * ((4 << 20) - len(LISTED))), ["vllm"]),
        (Given(data=LISTED + b" " * ((4 << 20) - len(LISTED) + 1)), []),
        (Given(headers=(("server", "SGLang"),), data=b"none"), ["sglang"]),
        (Given(499, data=LISTED), ["vllm"]),
        (Given(data=b"{}"), []),
    ],
    ids=["list", "long", "too long", "by its header", "refused", "nothing"],
)
def test_an_answer_is_the_last(given: Given, found: list[str]) -> None:
    fake = Fake(lambda _: given)
    assert _identify(fake, 100)[0] == found and len(fake.requests) == 1


def test_a_server_that_fails_is_asked_again() -> None:
    fake = Fake(lambda number: Given(500, data=LISTED) if number == 1 else Given(data=LISTED))
    assert _identify(fake, 100)[0] == ["vllm"] and len(fake.requests) == 2
