"""Quotas as clients see them: the refusals, the headers, and the counters after each kind of request."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.config.upstreams import ModelSettings, PriceSettings
from antiphon.stores.quotas import StoredCounter
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Answer, ChatServer, Wait, WaitGone, answer, event, json_answer, text_stream
from tests.support.gateway import start_gateway
from tests.support.sandbox_trial import trial

KEYS = {"anna": {"keys": ["anna-first-key-of-all", "anna-second-key-here"], "team": "research"}}
KEYS |= {f"ben{number}": {"keys": [f"key-of-ben-number-{number}"]} for number in range(3)}
ASK = {"model": "m", "input": "hi"}
ASK_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
NATIVE = (ModelSettings(match="*", mode="native"),)
PRICES = (PriceSettings(model="m", input=1.0, output=10.0),)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path / "data") as found:
        yield found


async def _post(
    app: BackgroundApp, path: str = "/responses", *, token: str = "anna-first-key-of-all", **body: Any
) -> tuple[int, Any, dict[str, str]]:
    headers = {"authorization": f"Bearer {token}"}
    async with app.session.post(app.url + path, json={**ASK, **body}, headers=headers) as got:
        return (
            got.status,
            await (got.text() if body.get("stream") else got.json()),
            {name.lower(): value for name, value in got.headers.items()},
        )


async def _used(app: BackgroundApp, *, settled: bool = True) -> dict[str, int]:
    """The settled amounts by limit, once no request holds a part of them."""
    async with asyncio.timeout(20):
        while True:
            found = await app.app.stores.quotas.counters()
            if not settled or not any(one.leased and not _is_over(one) for one in found):
                return {f"{one.subject} {one.measure}": one.used for one in found}
            await asyncio.sleep(0.01)


def _is_over(one: StoredCounter) -> bool:
    """Whether the counter's minute is over. Nothing settles its leases any more."""
    return one.measure.endswith("minute") and one.starts + 60_000 <= time.time() * 1000


async def _in_one_minute(attempt: Callable[[str], Awaitable[None]]) -> None:
    """Run the attempt with the token of an owner, and with another one if a minute ended meanwhile."""
    for number in range(3):
        minute = time.time() // 60
        try:
            await attempt(f"key-of-ben-number-{number}")
            return
        except AssertionError:
            if minute == time.time() // 60:
                raise
    raise AssertionError("every attempt saw the end of a minute")


async def test_a_request_over_the_limit_gets_openais_error(made: Processes) -> None:
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"requests_per_minute": 2}})

    async def attempt(token: str) -> None:
        for remaining in ("1", "0"):
            status, _, headers = await _post(app, token=token)
            assert status == 200 and headers["x-ratelimit-remaining-requests"] == remaining
            assert headers["x-ratelimit-limit-requests"] == "2"
        status, body, headers = await _post(app, token=token, stream=True)
        assert status == 429 and '"code":"rate_limit_exceeded"' in body and "owner 'ben" in body
        assert int(headers["retry-after"]) >= 1
        # Requests without a model call are not counted.
        async with app.session.get(app.url + "/responses", headers={"authorization": f"Bearer {token}"}) as got:
            assert got.status == 200

    await _in_one_minute(attempt)


async def test_every_kind_of_request_is_settled_by_its_usage(made: Processes) -> None:
    quotas = {
        "each_owner": {"tokens_per_month": 100_000, "cost_per_month": 5},
        "each_team": {"parallel_requests": 5},
    }
    app = await made.start(owner_keys=KEYS, quotas=quotas, prices=PRICES)
    status, body, _ = await _post(app)
    assert status == 200
    usage = body["usage"]
    one, cost = usage["total_tokens"], usage["input_tokens"] + 10 * usage["output_tokens"]
    assert one > 0
    assert await _used(app) == {
        "owner:n:anna tokens_per_month": one,
        "owner:n:anna cost_per_month": cost,
        "team:research parallel_requests": 0,
    }
    assert (await _post(app, stream=True))[0] == 200
    assert (await _post(app, previous_response_id=body["id"]))[0] == 200
    # A request that fails before its model call costs no tokens.
    assert (await _post(app, previous_response_id="resp_none"))[0] == 400
    made_here = await app.create(token="anna-second-key-here")
    await app.ended(made_here["id"], token="anna-second-key-here")
    async with asyncio.timeout(20):
        while (await _used(app))["owner:n:anna tokens_per_month"] != 4 * one:
            await asyncio.sleep(0.01)
    assert (await _used(app))["owner:n:anna cost_per_month"] == 4 * cost


@pytest.mark.slow
async def test_a_named_owner_inherits_limits_and_has_metrics(tmp_path: Path) -> None:
    """The workers of `antiphon up` get their settings from their parent."""
    settings = {
        "owner": {"keys": {name: [f"key-of-{name}-for-this-test"] for name in ("anna", "bo", "cleo")}},
        "quotas": {
            "each_owner": {"tokens_per_month": 1},
            "owners": {"anna": {"requests_per_minute": 100}, "bo": {"tokens_per_month": None}},
        },
        "metrics": {"listen": "127.0.0.1:0", "owners": True},
        "upstream": {"profile": "generic", "auth": "none"},
    }
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings))
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        gateway = await start_gateway(chat.base_url, tmp_path, "--config", str(file), "--door", "http")
        try:
            statuses = []
            for name in ("anna", "bo", "cleo"):
                headers = {"authorization": f"Bearer key-of-{name}-for-this-test"}
                async with session.post(f"{gateway.base_url}/responses", json=ASK, headers=headers) as got:
                    statuses.append(got.status)
            metrics = json.loads(await gateway.log_line('"metrics"'))["listen"]
            async with session.get(f"http://{metrics}/metrics") as got:
                exposed = await got.text()
        finally:
            await gateway.stop()
    assert statuses == [429, 200, 429]
    assert 'antiphon_owner_responses_total{owner="bo"} 1' in exposed


async def test_a_client_that_leaves_its_background_stream_does_not_lower_its_use(made: Processes) -> None:
    gate = asyncio.Event()
    made.chat.script(answer(parts=[Wait(gate), *text_stream("hi")]))
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 100_000}})
    headers = {"authorization": "Bearer anna-first-key-of-all"}
    body = {**ASK, "background": True, "stream": True}
    async with app.session.post(f"{app.url}/responses", json=body, headers=headers) as got:
        assert b"response.queued" in await got.content.readany()
        # The client leaves before the response begins.
    # Its estimate counts as used until the response ends.
    assert (await _used(app))["owner:n:anna tokens_per_month"] > 500
    gate.set()
    async with asyncio.timeout(20):
        while (await _used(app))["owner:n:anna tokens_per_month"] != 5:
            await asyncio.sleep(0.01)


async def test_processes_share_the_limits(made: Processes) -> None:
    apps = [await made.start(owner_keys=KEYS, quotas={"each_owner": {"requests_per_minute": 40}}) for _ in range(3)]

    async def attempt(token: str) -> None:
        statuses = await asyncio.gather(*(_post(apps[number % 3], token=token) for number in range(60)))
        served = [status for status, _, _ in statuses].count(200)
        # Other processes may hold a twentieth of the limit.
        assert 38 <= served <= 40 and {status for status, _, _ in statuses} == {200, 429}

    await _in_one_minute(attempt)


async def test_forwarded_requests_are_charged_by_their_answer(made: Processes) -> None:
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 60}})
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    status, body, _ = await _post(app, "/chat/completions", **chat)
    assert status == 200 and (await _used(app))["owner:n:anna tokens_per_month"] == body["usage"]["total_tokens"]
    usage: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    status, text, _ = await _post(app, "/chat/completions", **chat, **usage)
    assert status == 200 and '"usage"' in text
    assert (await _used(app))["owner:n:anna tokens_per_month"] == 2 * body["usage"]["total_tokens"]
    assert (await _post(app, "/chat/completions", **chat, user="x" * 400))[0] == 429


@pytest.mark.parametrize(
    ("path", "native"), [("/chat/completions", False), ("/responses", False), ("/responses", True)]
)
async def test_every_answer_of_an_upstream_shows_the_limits_of_this_gateway(
    made: Processes, path: str, native: bool
) -> None:
    limits = (("x-ratelimit-remaining-requests", "7000"), ("x-ratelimit-limit-requests", "8000"))
    models = NATIVE if native else ()
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"requests_per_minute": 50}}, models=models)

    async def attempt(token: str) -> None:
        made.chat.script(
            *(json_answer({"error": {"message": "no"}}, status, limits) for status in (404, 400)),
            *(json_answer({"choices": [], "usage": {}}, headers=limits),) * (2 if native else path != "/responses"),
        )
        more: dict[str, Any] = {"token": token} | (ASK_CHAT if path != "/responses" else {})
        seen = [await _post(app, path, **more, stream=stream) for stream in (False, False, False, True)]
        assert [status for status, _, _ in seen] == [404, 400, 200, 200]
        for number, (_, _, headers) in enumerate(seen, 1):
            assert headers["x-ratelimit-limit-requests"] == "50"
            assert headers["x-ratelimit-remaining-requests"] == str(50 - number)

    await _in_one_minute(attempt)


@pytest.mark.parametrize(
    ("size", "content"), [(1, 0), (7, 0), (50_000, 0), (1_000, 40_000), (7_000, 300_000), (500_000, 300_000)]
)
async def test_a_forwarded_stream_is_charged_by_its_usage_in_any_pieces(
    made: Processes, size: int, content: int
) -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
    noise = [event({"choices": [{"delta": {"content": "x" * 500}}], "usage": None}) for _ in range(200)]
    choices = [{"delta": {"content": "y" * content}}] if content else []
    last = event({"choices": choices, "usage": usage}) + b"data: [DONE]\n\n"
    pieces = [*noise, *(last[at : at + size] for at in range(0, len(last), size))]
    made.chat.script(answer(parts=pieces))
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 1_000_000}})
    messages = [{"role": "user", "content": "hi"}]
    status, _, _ = await _post(app, "/chat/completions", messages=messages, stream=True)
    assert status == 200 and (await _used(app))["owner:n:anna tokens_per_month"] == 23


_ANTHROPIC = (
    {"type": "message_start", "message": {"role": "assistant", "usage": {"input_tokens": 20, "output_tokens": 1}}},
    *({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "y" * 400}},) * 10,
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 900}},
)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (json_answer({"usage": {"input_tokens": 20, "output_tokens": 900}}), 920),
        (json_answer({"message": "ok", "response": {"usage": {"input_tokens": 5, "output_tokens": 6}}}), 11),
        (answer(parts=[event(one) for one in _ANTHROPIC]), 920),
        # Text after the last usage counts too.
        (answer(parts=[event(one) for one in _ANTHROPIC[:-1]]), 21 + 1000),
        # A usage without tokens is no usage.
        (json_answer({"usage": {"type": "duration", "seconds": 600}}), None),
        (json_answer({"usage": {}, "message": {"usage": None}}), None),
    ],
)
async def test_a_forwarded_answer_is_charged_by_the_usage_of_any_api(
    made: Processes, given: Answer, used: int | None
) -> None:
    made.chat.script(given)
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 1_000_000}})
    body = {**ASK_CHAT, "max_tokens": 500, "stream": ("content-type", "application/json") not in given.headers}
    assert (await _post(app, "/chat/completions", **body))[0] == 200
    estimate = len(json.dumps({**ASK, **body})) // 4 + 500
    assert (await _used(app))["owner:n:anna tokens_per_month"] == (estimate if used is None else used)


async def test_a_query_names_no_other_model_than_the_body(made: Processes) -> None:
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 1_000_000}})
    for query in ("model=other", "MODEL=other", "m%6fdel=other", "model=m&model=other", "model="):
        status, text, _ = await _post(app, f"/chat/completions?{query}", **ASK_CHAT)
        assert status == 400 and "query differs from the body" in text["error"]["message"]
    made.chat.script(json_answer({"usage": {"total_tokens": 3}}))
    assert (await _post(app, f"/chat/completions?model={ASK['model']}&a=b", **ASK_CHAT))[0] == 200


@pytest.mark.parametrize(("text", "counts"), [("y" * 40_000, 10_000), ("ä\n" * 12_000, 9_000), ("", 0)])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_forwarded_answer_without_usage_costs_its_text_if_the_estimate_is_smaller(
    made: Processes, text: str, counts: int, stream: bool
) -> None:
    whole = json_answer({"choices": [{"message": {"content": text}}]})
    made.chat.script(answer(parts=text_stream(text[:1000], text[1000:], usage=False)) if stream else whole)
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 1_000_000}}, prices=PRICES)
    body = {**ASK_CHAT, "stream": stream, "max_tokens": 500}
    assert (await _post(app, "/chat/completions", **body))[0] == 200
    read = len(json.dumps({**ASK, **body})) // 4
    assert (await _used(app))["owner:n:anna tokens_per_month"] == read + max(500, counts)


async def test_a_forwarded_stream_that_the_client_cuts_costs_its_text(made: Processes) -> None:
    usage = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
    made.chat.script(answer(parts=[*text_stream("y" * 40_000, done=False, usage=False), WaitGone()]))
    quotas = {"each_owner": {"tokens_per_month": 1_000_000, "cost_per_month": 5}}
    app = await made.start(owner_keys=KEYS, quotas=quotas, prices=PRICES)
    headers = {"authorization": "Bearer anna-first-key-of-all"}
    body = {**ASK, **ASK_CHAT, **usage}
    async with app.session.post(app.url + "/chat/completions", json=body, headers=headers) as got:
        seen = 0
        while seen < 40_000:
            seen += len(await got.content.readany())
        got.close()
    read = len(json.dumps(body)) // 4
    assert await _used(app) == {
        "owner:n:anna tokens_per_month": read + 10_000,
        "owner:n:anna cost_per_month": read + 100_000,
    }


@pytest.mark.parametrize(
    ("limits", "output"),
    [
        ({"n": 3, "max_tokens": 100}, 300),
        ({"n": "3", "max_tokens": "100"}, 300),
        ({"n": 3}, 3 * 1000),
        ({"max_tokens": -1}, 1000),
        ({"max_completion_tokens": -1, "max_tokens": 70, "n": -1}, 70),
        ({"max_completion_tokens": 0, "max_tokens": 70, "n": 0}, 70),
        ({"max_completion_tokens": 1, "max_tokens": 70}, 70),
    ],
)
async def test_the_estimate_of_a_forwarded_request_counts_all_its_answers(
    made: Processes, limits: dict[str, Any], output: int
) -> None:
    made.chat.script(answer(parts=text_stream("hi", usage=False)))
    quotas = {"each_owner": {"tokens_per_month": 1_000_000}, "expected_output_tokens": 1000}
    app = await made.start(owner_keys=KEYS, quotas=quotas)
    body = {**ASK_CHAT, **limits, "stream": True}
    assert (await _post(app, "/chat/completions", **body))[0] == 200
    assert (await _used(app))["owner:n:anna tokens_per_month"] == len(json.dumps({**ASK, **body})) // 4 + output


@pytest.mark.parametrize("path", ["/chat/completions", "/embeddings", "/rerank"])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"model":"m","messages":[],"user":"\\ud800"}', "unpaired surrogate at byte 35"),
        (b'{"model":"m","messages":[],"top_p":NaN}', "not valid JSON"),
        (b'{"model":5,"model":"m","messages":[]}', "Invalid 'model': the body has this field twice"),
        (b'{"model":"m","messages":[],"max_tokens":[6000]}', "Invalid type for 'max_tokens'"),
    ],
)
async def test_a_forwarded_body_that_hides_its_model_from_the_quotas_is_refused(
    made: Processes, path: str, body: bytes, told: str
) -> None:
    quotas = {"models": {"m": {"requests_per_minute": 1}}}
    app = await made.start(owner_keys=KEYS, quotas=quotas, path_allow=("/rerank",))
    headers = {"authorization": "Bearer anna-first-key-of-all", "content-type": "application/json"}
    async with app.session.post(app.url + path, data=body, headers=headers) as got:
        refused = (await got.json())["error"]
    assert got.status == 400 and told in refused["message"] and made.chat.requests == []


async def test_the_model_of_a_forwarded_form_has_its_limit(made: Processes) -> None:
    quotas = {"models": {"m": {"tokens_per_month": 2_500}}, "expected_output_tokens": 1000}
    app = await made.start(owner_keys=KEYS, quotas=quotas, path_allow=("/audio/transcriptions",))
    made.chat.default = lambda _: json_answer({"text": "x"})
    headers = {"authorization": "Bearer anna-first-key-of-all"}
    for expected in (200, 200, 429):
        form = aiohttp.FormData({"model": "m", "file": io.BytesIO(b"x" * 100)})
        async with app.session.post(app.url + "/audio/transcriptions", data=form, headers=headers) as got:
            assert got.status == expected, await got.text()


NAMES: list[dict[str, Any]] = [
    {"model": "m, Dear"},
    {"model": " dear"},
    {"model": "DEAR"},
    {"models": ["m", "dear"]},
    {"fallbacks": [{"model": "dear"}]},
    {"context_window_fallbacks": [{"m": ["dear"]}]},
    {"extra_body": {"model": "dear"}},
]


@pytest.mark.parametrize(
    ("path", "models"), [("/responses", ()), ("/responses", NATIVE), ("/chat/completions", ()), ("/rerank", ())]
)
async def test_a_request_counts_for_each_model_that_it_names(
    made: Processes, path: str, models: tuple[ModelSettings, ...]
) -> None:
    if models or path == "/rerank":
        made.chat.default = lambda _: json_answer({"usage": {"input_tokens": 2, "output_tokens": 3}})
    quotas = {"models": {"dear": {"requests_per_minute": 100, "tokens_per_month": 1_000_000}}}
    app = await made.start(owner_keys=KEYS, quotas=quotas, models=models, path_allow=("/rerank",))
    for number, names in enumerate(NAMES, 1):
        status, body, _ = await _post(app, path, **ASK_CHAT if path != "/responses" else {}, **names)
        assert status == 200, body
        assert (await _used(app))["model:dear tokens_per_month"] == 5 * number, names


async def test_a_background_response_counts_for_each_model_that_it_names(made: Processes) -> None:
    app = await made.start(owner_keys=KEYS, quotas={"models": {"dear": {"tokens_per_month": 1_000_000}}})
    body = await app.create(token="anna-first-key-of-all", fallbacks=["dear"])
    ended = await app.ended(body["id"], token="anna-first-key-of-all")
    async with asyncio.timeout(20):
        while (await _used(app))["model:dear tokens_per_month"] != ended["usage"]["total_tokens"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "models"), [("/responses", ()), ("/responses", NATIVE), ("/chat/completions", ()), ("/rerank", ())]
)
async def test_a_field_that_hides_models_is_refused_if_a_quota_limits_a_model(
    made: Processes, path: str, models: tuple[ModelSettings, ...]
) -> None:
    if models or path == "/rerank":
        made.chat.default = lambda _: json_answer({})
    for quotas, status in (({"models": {"dear": {"requests_per_minute": 9}}}, 400), ({"each_owner": {}}, 200)):
        app = await made.start(owner_keys=KEYS, quotas=quotas, models=models, path_allow=("/rerank",))
        got, body, _ = await _post(app, path, **ASK_CHAT if path != "/responses" else {}, engine="dear")
        assert got == status, body
        assert status == 200 or "A quota limits a model" in body["error"]["message"]


@pytest.mark.parametrize("body", ['{"model":"m","Model":"x","input":"hi"}', '{"model":"x","model":"m","input":"hi"}'])
async def test_a_native_upstream_gets_no_body_with_two_models(made: Processes, body: str) -> None:
    headers = {"authorization": "Bearer anna-first-key-of-all", "content-type": "application/json"}
    listed = {"anna": {**KEYS["anna"], "models": ["*"]}}
    made.chat.default = lambda _: json_answer({})
    for keys, quotas, status in (
        (KEYS, {"each_owner": {"requests_per_minute": 9}}, 400),
        (listed, {}, 400),
        (KEYS, {}, 200),
    ):
        app = await made.start(owner_keys=keys, quotas=quotas, models=NATIVE)
        async with app.session.post(app.url + "/responses", data=body, headers=headers) as got:
            assert got.status == status, await got.text()
        assert len(made.chat.requests) == (status == 200)


@pytest.mark.parametrize("field", ["models", "fallbacks", "engine"])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_form_names_models_only_in_the_field_model(made: Processes, field: str, plain: bool) -> None:
    made.chat.default = lambda _: json_answer({"text": "x"})
    # A limit per month: no minute ends between the two requests.
    quotas = {"models": {"dear": {"tokens_per_month": 1_000_000}}}
    app = await made.start(owner_keys=KEYS, quotas=quotas, path_allow=("/audio/transcriptions",))
    headers = {"authorization": "Bearer anna-first-key-of-all"}
    file: dict[str, Any] = {} if plain else {"file": io.BytesIO(b"x")}
    used = []
    for fields, status in (({"model": "m,dear"}, 200), ({"model": "m", field: "dear"}, 400)):
        form = aiohttp.FormData({**fields, **file})
        async with app.session.post(app.url + "/audio/transcriptions", data=form, headers=headers) as got:
            assert got.status == status, await got.text()
        used.append((await _used(app))["model:dear tokens_per_month"])
    assert used[0] == used[1] > 0


LONG = "word " * 3200
"""An input of 16,000 bytes, which is estimated as 4,000 tokens."""


async def test_parallel_requests_with_a_long_history_stay_within_the_limit(made: Processes) -> None:
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 20_000}})
    status, first, _ = await _post(app, input=LONG)
    assert status == 200
    before = await _used(app)
    gate = asyncio.Event()
    made.chat.script(*(answer(parts=[Wait(gate), *text_stream("hi")]) for _ in range(40)))
    asked = {"previous_response_id": first["id"], "stream": True, "max_output_tokens": 400}
    ended = asyncio.as_completed([asyncio.create_task(_post(app, **asked)) for _ in range(40)])
    # Four times 4,400 tokens fit, and the model server answers none of these requests yet.
    for one in [next(ended) for _ in range(36)]:
        status, body, _ = await one
        assert status == 429 and "owner 'anna' on tokens per month: limit 20000" in body
    gate.set()
    assert [(await one)[0] for one in ended] == [200] * 4
    after = await _used(app)
    assert after["owner:n:anna tokens_per_month"] == 5 * before["owner:n:anna tokens_per_month"]
    assert (await _post(app, previous_response_id=first["id"]))[0] == 200


async def test_a_long_history_is_refused_as_a_long_input_is(made: Processes) -> None:
    quotas = {"each_owner": {"tokens_per_minute": 6_000, "requests_per_minute": 50, "parallel_requests": 1}}
    app = await made.start(owner_keys=KEYS, quotas=quotas)

    async def attempt(token: str) -> None:
        _, first, _ = await _post(app, token=token, input=LONG)
        auth = {"authorization": f"Bearer {token}"}
        items = {"items": [{"role": "user", "content": LONG}]}
        async with app.session.post(f"{app.url}/conversations", json=items, headers=auth) as got:
            conversation = (await got.json())["id"]
        await _used(app)
        more: dict[str, Any] = {"token": token, "max_output_tokens": 3_000}
        _, expected, as_told = await _post(app, **more, input=LONG)
        names = ("type", "code", "param")
        every: tuple[dict[str, Any], ...] = ({}, {"stream": True}, {"background": True})
        for history in ({"previous_response_id": first["id"]}, {"conversation": conversation}):
            for ways in every:
                status, body, headers = await _post(app, **more, **history, **ways)
                assert status == 429 and "on tokens per minute: limit 6000, this request needs 7" in str(body)
                for name in ("x-ratelimit-limit-tokens", "x-ratelimit-limit-requests", "x-should-retry"):
                    assert headers[name] == as_told[name]
                # The refused requests are not counted.
                assert headers["x-ratelimit-remaining-requests"] == "49"
                assert headers.keys() == as_told.keys() and headers["content-type"] == "application/json"
                if not ways:
                    assert [body["error"][name] for name in names] == [expected["error"][name] for name in names]
        async with app.session.ws_connect(f"{app.url}/responses", headers=auth) as socket:
            for asked in ({"input": LONG}, {"previous_response_id": first["id"]}):
                await socket.send_json({"type": "response.create", **ASK, "max_output_tokens": 3_000, **asked})
                told = await socket.receive_json()
                assert (told["type"], told["status"]) == ("error", 429) and told["error"]["type"] == "tokens"
        # The refusals hold neither the conversation nor the slot of the parallel request.
        assert (await _post(app, token=token, conversation=conversation))[0] == 200

    await _in_one_minute(attempt)


async def test_a_background_response_is_charged_its_history_until_it_ends(made: Processes) -> None:
    app = await made.start(owner_keys=KEYS, quotas={"each_owner": {"tokens_per_month": 20_000}})
    _, first, _ = await _post(app, input=LONG)
    before = (await _used(app))["owner:n:anna tokens_per_month"]
    gate = asyncio.Event()
    made.chat.script(answer(parts=[Wait(gate), *text_stream("hi")]))
    token = KEYS["anna"]["keys"][0]
    queued = await app.create(token=token, previous_response_id=first["id"])
    assert (await _used(app))["owner:n:anna tokens_per_month"] > before + 4_000
    gate.set()
    assert (await app.ended(queued["id"], token=token))["status"] == "completed"
    async with asyncio.timeout(20):
        while (await _used(app))["owner:n:anna tokens_per_month"] != 2 * before:
            await asyncio.sleep(0.01)


async def _upload(
    app: BackgroundApp, token: str, content: bytes = b"the words of a file", key: str = ""
) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("purpose", "user_data")
    form.add_field("file", content, filename="a.txt", content_type="text/plain")
    headers = {"authorization": f"Bearer {token}", **({"idempotency-key": key} if key else {})}
    async with app.session.post(f"{app.url}/files", data=form, headers=headers) as got:
        return got.status, await got.json()


async def test_stored_data_of_an_owner_and_of_a_team_is_limited(made: Processes) -> None:
    keys = {
        "anna": {"keys": ["anna-first-key-of-all"], "team": "research"},
        "cleo": {"keys": ["cleo-first-key-of-all"], "team": "research"},
        "dora": {"keys": ["dora-first-key-of-all"]},
    }
    quotas = {
        "each_owner": {"stored_bytes": 1, "vector_chunks": 1},
        "owners": {"cleo": {"stored_bytes": None, "vector_chunks": 10}},
        "teams": {"research": {"file_bytes": 8192, "vector_chunks": 2}},
    }
    app = await made.start(owner_keys=keys, quotas=quotas)
    anna, cleo, dora = "anna-first-key-of-all", "cleo-first-key-of-all", "dora-first-key-of-all"
    assert (await _post(app, token=anna))[0] == 200
    status, body, _ = await _post(app, token=anna)
    assert status == 429 and "'quotas.each_owner.stored_bytes'" in body["error"]["message"]
    assert (await _post(app, token=anna, store=False))[0] == 200
    assert [(await _post(app, token=cleo))[0] for _ in range(2)] == [200, 200]
    # The team's files count together, and those of others do not.
    assert [(await _upload(app, token))[0] for token in (anna, dora, cleo)] == [200, 200, 200]
    status, body = await _upload(app, cleo)
    assert status == 429 and "'quotas.teams.research.file_bytes'" in body["error"]["message"]
    assert body["error"]["code"] == "storage_limit_exceeded"
    assert (await _upload(app, dora))[0] == 200


async def test_limits_of_stored_data_refuse_nothing_in_shadow_mode(made: Processes) -> None:
    keys = {"anna": {"keys": ["anna-first-key-of-all"], "team": "research"}}
    limits = {"stored_bytes": 1, "file_bytes": 5_000}
    app = await made.start(owner_keys=keys, quotas={"shadow": True, "each_owner": limits, "each_team": limits})
    with capture_logs() as logged:
        for _ in range(2):
            assert (await _post(app))[0] == 200
            assert (await _upload(app, "anna-first-key-of-all"))[0] == 200
    seen = [(one["subject"], one["measure"]) for one in logged if one["event"] == "quota_would_refuse"]
    assert seen == [(who, what) for what in limits for who in ("owner:n:anna", "team:research")]
    counted = app.app.context.telemetry.metrics.quota_refusals.numbers()
    assert counted == {(kind, what, "shadow"): 1 for what in limits for kind in ("owner", "team")}


async def test_a_file_that_does_not_fit_into_a_limit_is_refused(made: Processes) -> None:
    keys = {
        "anna": {"keys": ["anna-first-key-of-all"], "team": "research"},
        "cleo": {"keys": ["cleo-first-key-of-all"], "team": "research"},
        "dora": {"keys": ["dora-first-key-of-all"]},
    }
    quotas = {"each_owner": {"file_bytes": 9_500}, "teams": {"research": {"file_bytes": 10_000}}}
    app = await made.start(owner_keys=keys, quotas=quotas)
    anna, cleo, dora = (f"{name}-first-key-of-all" for name in ("anna", "cleo", "dora"))
    # A file of 4,000 bytes counts as 4,096 bytes.
    assert [(await _upload(app, token, b"x" * 4_000, "key"))[0] for token in (anna, cleo, dora)] == [200] * 3
    found = []
    for token, size in ((cleo, 1), (anna, 4_000), (dora, 5_405)):
        status, body = await _upload(app, token, b"y" * size)
        assert status == 429 and body["error"]["code"] == "storage_limit_exceeded"
        found.append(body["error"]["message"].partition("'")[2].partition("'")[0])
    assert found == ["quotas.teams.research.file_bytes"] * 2 + ["quotas.each_owner.file_bytes"]
    # A refused file leaves no row and no content.
    assert [await app.app.stores.files.used(f"n:{name}") for name in ("anna", "cleo", "dora")] == [4_096] * 3
    assert await app.app.stores.files.sweep() == (0, 0)
    assert sum(path.stat().st_size == 5_405 for path in made.data.rglob("*") if path.is_file()) == 0
    # A retry of a served upload gets the same file, and a file that fits exactly is stored.
    status, again = await _upload(app, cleo, b"x" * 4_000, "key")
    assert status == 200 and again["bytes"] == 4_000
    assert (await _upload(app, dora, b"y" * 5_404))[0] == 200


async def test_chunks_in_vector_stores_are_limited(made: Processes) -> None:
    keys = {"dora": {"keys": ["dora-first-key-of-all"]}}
    app = await made.start(owner_keys=keys, quotas={"each_owner": {"vector_chunks": 2}})
    headers = {"authorization": "Bearer dora-first-key-of-all"}
    _, file = await _upload(app, "dora-first-key-of-all")
    url = f"{app.url}/vector_stores"
    async with app.session.post(url, json={"file_ids": [file["id"]]}, headers=headers) as got:
        store = await got.json()
    async with asyncio.timeout(30):
        while store["file_counts"]["completed"] != 1:
            async with app.session.get(f"{url}/{store['id']}", headers=headers) as got:
                store = await got.json()
    # The store and its chunk count. A store without files has metadata.
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        ("", {"file_ids": [file["id"]]}),
        (f"/{store['id']}/files", {"file_id": file["id"]}),
        ("", {}),
    )
    for path, asked in refused:
        async with app.session.post(url + path, json=asked, headers=headers) as got:
            assert got.status == 429
            assert "'quotas.each_owner.vector_chunks'" in (await got.json())["error"]["message"]


async def test_containers_of_a_team_are_limited(made: Processes) -> None:
    if (reason := trial().reason) and not os.environ.get("CI"):
        pytest.skip(f"there is no local sandbox on this machine: {reason}")
    keys = {
        "anna": {"keys": ["anna-first-key-of-all"], "team": "research"},
        "cleo": {"keys": ["cleo-first-key-of-all"], "team": "research"},
        "dora": {"keys": ["dora-first-key-of-all"]},
    }
    quotas = {
        "each_owner": {"containers": 1},
        "owners": {"cleo": {"containers": 5}},
        "teams": {"research": {"containers": 2}},
    }
    app = await made.start(owner_keys=keys, quotas=quotas, code_interpreter=CodeInterpreterSettings(sandbox="local"))

    async def create(name: str) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {name}-first-key-of-all"}
        async with app.session.post(f"{app.url}/containers", json={"name": "c"}, headers=headers) as got:
            return got.status, await got.json()

    async def code(name: str, container: Any, **more: Any) -> tuple[int, Any]:
        tools = [{"type": "code_interpreter", "container": container}]
        status, body, _ = await _post(app, token=f"{name}-first-key-of-all", tools=tools, **more)
        return status, body

    status, container = await create("anna")
    assert status == 200
    assert (await code("cleo", {"type": "auto"}))[0] == 200
    for status, body in (await create("anna"), await code("anna", {"type": "auto"})):
        assert status == 429 and "'quotas.each_owner.containers'" in body["error"]["message"]
        assert body["error"]["code"] == "storage_limit_exceeded"
    # A container that exists may be used.
    assert (await code("anna", container["id"]))[0] == 200
    assert (await create("cleo"))[0] == 200
    for status, body in (await create("cleo"), await code("cleo", {"type": "auto"})):
        assert status == 429 and "(2, 'quotas.teams.research.containers')" in body["error"]["message"]
    queued = await app.create(
        token="cleo-first-key-of-all", tools=[{"type": "code_interpreter", "container": {"type": "auto"}}]
    )
    failed = await app.ended(queued["id"], token="cleo-first-key-of-all")
    assert failed["status"] == "failed" and "'quotas.teams.research.containers'" in failed["error"]["message"]
    assert (await create("dora"))[0] == 200
