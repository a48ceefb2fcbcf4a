"""The console's view of the prompt cache: which requests missed, and the likely reason."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest

from antiphon.console.formats import short_id
from antiphon.engine.ports.journal import Entry
from tests.integration.test_console import ANNA, place
from tests.support.console_app import open_console_app


def entry(number: int, **changed: Any) -> Entry:
    given: dict[str, Any] = {
        "id": f"entry_{number:048x}",
        "owner": "n:anna",
        "response_id": f"resp_{number:048x}",
        "upstream": "main",
        "outcome": "completed",
        "status": 200,
        "calls": 1,
        "input_tokens": 100,
        "cached_tokens": 90,
        "age": 100.0,
    }
    return Entry(**{**given, **changed})


async def test_a_miss_is_listed_although_many_requests_are_newer(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        missed = entry(1, previous_id="resp_x", model="the-missed", cached_tokens=0, age=900.0)
        await console.app.stores.journal.add([missed, *(entry(number) for number in range(2, 500))])
        page = await console.get("/prompt-cache")
        assert missed.id in page.text and "1 of 1 requests" in page.words


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"upstream": "other"}, "another upstream: main answered before, other now"),
        ({"age": 10.0}, "a pause of 10 m"),
        ({"age": 600.0}, "the response is not stored"),
    ],
)
async def test_another_upstream_or_a_pause_explains_a_miss(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    async with open_console_app(tmp_path) as console:
        later = {"previous_id": f"resp_{1:048x}", "cached_tokens": 0, "age": 600.0, **changed}
        await console.app.stores.journal.add([entry(1, age=610.0), entry(2, **later)])
        page = await console.get("/prompt-cache")
        assert reason in page.words
        assert ("a pause" in page.words) == ("a pause" in reason)


async def test_the_missed_tokens_are_scaled_to_the_upstreams_count(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        first = await there.create(ANNA, input="one", instructions="be brief " * 100)
        await there.create(ANNA, input="two", instructions="be long " * 100, previous_response_id=first["id"])
        _, page = await (await there.user(ANNA)).get("/console/prompt-cache")
        assert "input changed at messages[0], about 3 of 3 tokens" in html.unescape(page)


async def test_equal_prompts_mean_that_the_upstream_lost_the_prompt(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        first = await there.create(ANNA, input="one", instructions="be brief")
        await there.create(ANNA, input="two", instructions="be brief", previous_response_id=first["id"])
        _, page = await (await there.user(ANNA)).get("/console/prompt-cache")
        assert "this upstream reported no cached tokens in this period" in page and "lost the prompt" not in page
        await there.app.app.stores.journal.add([entry(1, upstream="default", age=5.0)])
        _, page = await (await there.user(ANNA)).get("/console/prompt-cache")
        assert "no difference: within" in page and "no cached tokens in this period" not in page


async def test_hit_rates_are_shown_by_thread(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        chain = [entry(1, age=50.0, cached_tokens=0)]
        chain += [entry(number, age=50.0 - number, previous_id=f"resp_{number - 1:048x}") for number in (2, 3)]
        branch = entry(4, age=40.0, previous_id=f"resp_{1:048x}", cached_tokens=10)
        talk = [entry(number, age=30.0 - number, conversation_id="conv_1", cached_tokens=50) for number in (5, 6)]
        await console.app.stores.journal.add([*chain, branch, *talk, entry(7, age=5.0), entry(8, owner="n:bo")])
        words = (await console.get("/prompt-cache")).words
        # 0 + 90 + 90 + 10 of 400 tokens, and 100 of 200. A single request is no thread.
        shown = short_id(f"resp_{4:048x}")
        assert f"{shown} 48 % 190 400 4" in words.replace("\u202f", " ") and "conv_1 50 % 100 200 2" in words
        assert words.index(shown) < words.index("conv_1") < words.index("among the newest 7 requests")
        assert short_id(f"resp_{7:048x}") not in words


async def test_a_model_without_cached_tokens_has_no_rate(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await console.app.stores.journal.add([entry(1, model="uncached", cached_tokens=0)])
        assert "uncached - 0 100 1" in (await console.get("/prompt-cache")).words
