"""Parameters of chat servers that the Responses API does not have: who gets them, and what nobody can reach by them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES, read_flags, with_flags
from antiphon.translation.request.fields import REQUEST_FIELDS
from antiphon.translation.request.parameters import DECIDED_HERE, PARAMETERS
from tests.support.effort import examples
from tests.support.exchanges import JSON, Outcome, run

COMPLETION = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
).encode()
FUNCTIONS = [{"type": "function", "name": name} for name in ("weather", "note")]
VALUES = {"seed": 5, "top_k": 5, "chat_template_kwargs": {"enable_thinking": False}}


def ask(request: dict[str, Any], profile: str = "generic", **route: Any) -> Outcome:
    options: dict[str, Any] = {}
    if route:
        route["extra"] = {name: Raw(json.dumps(value).encode()) for name, value in route.pop("extra", {}).items()}
        options["routes"] = ModelRoutes(ModelRoute(PROFILES[profile], **route))
    return run({"model": "m", "input": "Hi", **request}, [COMPLETION], headers=JSON, profile=profile, **options)


def ignored(outcome: Outcome) -> str:
    assert outcome.head is not None and outcome.head.status == 200, outcome.body
    return dict(outcome.head.headers).get("antiphon-ignored", "")


@pytest.mark.parametrize("request_", [VALUES, {"extra_body": VALUES}, {"seed": 5, "extra_body": {**VALUES, "seed": 6}}])
def test_what_clients_send_reaches_the_server(request_: dict[str, Any]) -> None:
    outcome = ask(request_)
    assert {name: outcome.chat.get(name) for name in VALUES} == VALUES
    assert ignored(outcome) == ("extra_body.seed" if "seed" in request_ and "extra_body" in request_ else "")
    assert "extra_body" not in outcome.chat


def test_what_a_server_does_not_take_is_named() -> None:
    outcome = ask(VALUES, "openai")
    assert outcome.chat["seed"] == 5 and "top_k" not in outcome.chat
    assert ignored(outcome) == "top_k, chat_template_kwargs"


def test_mistrals_seed_has_a_name_of_its_own() -> None:
    assert ask({"seed": 7}, "mistral").chat["random_seed"] == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "five"),
        ("top_k", [1]),
        ("min_p", "low"),
        ("stop", 5),
        ("stop", [5]),
        ("logit_bias", "x"),
        ("chat_template_kwargs", []),
        ("guided_regex", {}),
        ("structured_outputs", "x"),
        ("ignore_eos", 1),
        ("extra_body", []),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("profile", ["generic", "openai"])
def test_a_wrong_type_is_a_400_wherever_it_stands(name: str, value: Any, inside: bool, profile: str) -> None:
    outcome = ask({"extra_body": {name: value}} if inside and name != "extra_body" else {name: value}, profile)
    assert outcome.head is not None and outcome.head.status == 400 and not outcome.calls
    error = outcome.json["error"]
    assert (error["param"].partition("[")[0], error["code"]) == (name, "invalid_type")


@pytest.mark.parametrize("name", PARAMETERS)
def test_null_is_as_if_it_were_not_there(name: str) -> None:
    outcome = ask({name: None})
    assert name not in outcome.chat and ignored(outcome) == ""


def test_an_operator_lets_further_members_pass() -> None:
    request = {"provider": {"only": ["a"]}, "top_k": 5, "extra_body": {"transforms": []}, "other": 1}
    outcome = ask(request, "openai", fields=frozenset({"provider", "top_k", "transforms"}))
    assert outcome.chat["provider"] == {"only": ["a"]} and outcome.chat["transforms"] == []
    assert outcome.chat["top_k"] == 5
    assert "other" not in outcome.chat and ignored(outcome) == "other"


def test_what_an_operator_adds_gives_way_to_what_the_client_says() -> None:
    extra = {"top_k": 40, "seed": 1, "temperature": 0.5, "chat_template_kwargs": {"a": 1, "b": 1}}
    route: dict[str, Any] = {"extra": extra}
    outcome = ask({"seed": 2, "temperature": 0.25, "chat_template_kwargs": {"b": 2}}, **route)
    assert outcome.chat["top_k"] == 40 and outcome.chat["seed"] == 2 and outcome.chat["temperature"] == 0.25
    assert outcome.chat["chat_template_kwargs"] == {"a": 1, "b": 2}
    assert ignored(outcome) == ""
    assert ask({}, **route).chat["temperature"] == 0.5


PLAIN = ask({}).chat
names = st.sampled_from(
    sorted(DECIDED_HERE | REQUEST_FIELDS | {"input", "frequency_penalty", "unheard"} - {"extra_body"})
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=examples(300), deadline=None)
@given(st.dictionaries(names, values, max_size=6))
def test_extra_body_decides_nothing_that_is_decided_here(extra: dict[str, Any]) -> None:
    outcome = ask({"extra_body": extra})
    assert outcome.head is not None
    if outcome.head.status == 400:
        # Sampling fields of the API are lifted, and looked at.
        assert outcome.json["error"]["param"] in ("temperature", "top_p", "presence_penalty", "frequency_penalty")
        return
    sent = {name: value for name, value in outcome.chat.items() if name not in ("temperature", "top_p")}
    sent = {name: value for name, value in sent.items() if not name.endswith("_penalty")}
    assert sent == PLAIN
    assert outcome.json["store"] is True


def test_a_summary_is_not_made_to_look_like_the_answer() -> None:
    outcome = run(
        {
            "model": "m",
            "input": [{"role": "user", "content": "word " * 1000}, {"role": "user", "content": "Hi"}],
            "context_management": [{"type": "compaction", "compact_threshold": 1000}],
            "guided_regex": "[0-9]",
            "stop": "a",
            "chat_template_kwargs": {"enable_thinking": False},
        },
        [COMPLETION],
        headers=JSON,
        sealer=Sealer([b"a key of sixteen letters"], max_bytes=1 << 20),
    )
    summary, answer = (json.loads(call.request.body) for call in outcome.calls)
    assert "guided_regex" not in summary and "stop" not in summary
    assert summary["chat_template_kwargs"] == answer["chat_template_kwargs"] == {"enable_thinking": False}
    assert answer["guided_regex"] == "[0-9]" and answer["stop"] == "a"


def test_flags_of_a_profile_can_be_overridden() -> None:
    flags = read_flags({"named_tool_choice": "required", "replay_reasoning": False, "parameters": ["seed"]})
    assert flags == {"named_tool_choice": "required", "replay_reasoning": "off", "parameters": frozenset({"seed"})}
    profile = with_flags(PROFILES["groq"], {"reasoning_effort": False})
    # What the operator says holds for models of which the vendor says otherwise too.
    assert not profile.for_model("openai/gpt-oss-120b").reasoning_effort
    assert profile.name == "groq"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"named_tool_choise": "required"}, "known flags are .*named_tool_choice"),
        ({"named_tool_choice": "always"}, "named_tool_choice: 'always' cannot be used"),
        ({"images": "no"}, "images"),
        ({"name": "x"}, "not a flag"),
        ({"parameters": ["top_q"]}, "field_allow"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_flags(flags)


def test_llamacpp_is_asked_for_a_named_tool_in_a_way_it_keeps() -> None:
    chat = ask({"tools": FUNCTIONS, "tool_choice": {"type": "function", "name": "weather"}}, "llamacpp").calls
    sent = json.loads(chat[0].request.body)
    assert sent["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["weather"]


def test_llamacpp_is_asked_for_json_in_a_way_it_keeps() -> None:
    sent = ask({"text": {"format": {"type": "json_object"}}}, "llamacpp").chat
    assert sent["response_format"] == {"type": "json_object", "schema": {"type": "object"}}
