"""All models that a request names count against quotas, wherever the request names them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule, no_such_model
from antiphon.engine.exchange.named_models import check_model_once, fields_of, hides_models, other_models
from antiphon.engine.ports.actions import RequestHead
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.observer import Unobserved
from antiphon.errors import InvalidRequest
from antiphon.translation.profiles import PROFILES
from tests.support.exchanges import make_exchange


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


class _ByModel:
    """A reservation in a quota that limits a model."""

    caller = Caller("owner")
    by_model = True
    headers = ()
    others: Sequence[str] = ()


@pytest.mark.parametrize("mode", ["translated", "native"])
def test_a_request_passes_its_other_models_to_its_reservation(mode: Any) -> None:
    generic = PROFILES["generic"]
    rule = ModelRule("m", ModelRoute(generic, upstream="other", mode=mode))
    exchange, observer, reservation = (
        make_exchange(routes=ModelRoutes(ModelRoute(generic), (rule,))),
        Unobserved(),
        _ByModel(),
    )
    observer.reservation = cast(Any, reservation)
    exchange.observe(observer)
    body = b'{"model":"m","input":"hi","fallbacks":["gpt"]}'
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert exchange.actions() and reservation.others == ("gpt",)


@pytest.mark.parametrize(("name", "hides"), [("model", False), ("Model", False), ("engine", True), ("file", False)])
def test_fields_of_forms_that_may_name_models(name: str, hides: bool) -> None:
    assert hides_models(name) == hides


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("models[1] (match: m)", "disabled by models[1] (match: m)"),
        ("", "no entry of the setting models matches this model, and the settings have no default upstream"),
    ],
)
def test_the_cause_of_a_model_that_no_upstream_serves(entry: str, cause: str) -> None:
    route = ModelRoute(PROFILES["generic"], mode="disabled", entry=entry)
    assert no_such_model("m", route=route).cause == cause
    assert not no_such_model("m").cause
