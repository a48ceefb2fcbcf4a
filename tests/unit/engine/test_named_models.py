"""All models that a request names count against quotas, wherever the request names them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from antiphon.engine.exchange.named_models import check_model_once, fields_of, other_models
from antiphon.errors import InvalidRequest


def _others(model: str = "m", **fields: Any) -> tuple[str, ...]:
    return other_models(model, fields_of(json.dumps({"model": model, **fields}).encode()))


@pytest.mark.parametrize(
    ("model", "fields", "others"),
    [
        ("m", {}, ()),
        ("m", {"messages": [{"model": "gpt"}], "metadata": {"models": ["gpt"]}}, ()),
        ("m,gpt", {}, ("m", "gpt")),
        ("m, gpt,", {}, ("m", "gpt")),
        (" gpt", {}, ("gpt",)),
        ("m", {"Model": "gpt\n"}, ("gpt\n", "gpt")),
        ("m", {"models": ["m", "gpt", "gpt"]}, ("gpt",)),
        ("m", {"Models": "gpt"}, ("gpt",)),
        ("m", {"models": ["m,gpt"]}, ("m,gpt", "gpt")),
        ("m", {"fallbacks": ["gpt"], "models": None}, ("gpt",)),
        ("m", {"context_window_fallbacks": [{"m": ["gpt", "qwen"]}]}, ("gpt", "qwen")),
        ("m", {"fallbacks": [{"model": "gpt", "models": ["qwen"]}]}, ("gpt", "qwen")),
        ("m", {"extra_body": {"model": "gpt", "fallbacks": ["qwen"]}}, ("gpt", "qwen")),
        ("m", {"extra_body": {"extra_body": {"model": "gpt"}}}, ("gpt",)),
        ("", {"models": ["gpt"]}, ("gpt",)),
    ],
)
def test_all_models_of_a_request(model: str, fields: dict[str, Any], others: tuple[str, ...]) -> None:
    assert _others(model, **fields) == others


def test_fields_with_one_name_all_count() -> None:
    assert other_models("m", fields_of(b'{"model":"gpt","model":"m","models":["a"],"mod\\u0065ls":["b"]}')) == (
        *("gpt", "a", "b"),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"models": [{"model": "gpt"}]}, "models[0]"),
        ({"models": 5}, "models[0]"),
        ({"MODEL": ["gpt"]}, "MODEL"),
        ({"fallbacks": "gpt"}, "fallbacks"),
        ({"fallbacks": [{"model": "a", "m": ["gpt"]}]}, "fallbacks[0].m"),
        ({"router_settings_override": {}}, "router_settings_override"),
        ({"extra_body": {"engine": "gpt"}}, "extra_body.engine"),
        ({"extra_body": "{}"}, "extra_body"),
    ],
)
def test_a_field_that_hides_models_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"cannot find the models in '{param}'")) as refused:
        _others(**fields)
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)
    assert "API key" not in refused.value.message


@pytest.mark.parametrize("fields", [{"models": [f"m{n}" for n in range(101)]}, {"Model": "m," * 100 + "gpt"}])
def test_a_request_names_only_so_many_models(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="at most 100 models"):
        _others(**fields)


@pytest.mark.parametrize(
    "body",
    [b'{"model":"m","model":"m"}', b'{"model":"m","Model":"m"}', b'{"MODEL":"m"}', b'{"mod\\u0065l":1,"model":2}'],
)
def test_a_body_has_one_field_model(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check_model_once(fields_of(body))
    check_model_once(fields_of(b'{"model":"m","models":[],"input":[{"model":"a"}]}'))
