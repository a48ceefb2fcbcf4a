"""What a routing table says of itself, and what it learns. (Which rule decides, and names: `test_native.py`.)"""

from __future__ import annotations

from dataclasses import replace

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule, corrected
from antiphon.errors import InvalidRequest, NotFound
from antiphon.translation.profiles import PROFILES

_GENERIC, _VLLM = PROFILES["generic"], PROFILES["vllm"]


def test_a_disabled_model_is_served_to_nobody() -> None:
    assert ModelRoute(_GENERIC).serves("m")
    assert not ModelRoute(_GENERIC, mode="disabled").serves("m")
    assert not ModelRoute(_GENERIC, mode="disabled", models=frozenset({"m"})).serves("m")


@pytest.mark.parametrize(
    ("pattern", "exact"), [("gpt-5", True), ("a/b:1.5", True), ("gpt-*", False), ("gpt-?", False), ("gpt-[45]", False)]
)
def test_a_pattern_without_wildcards_is_the_name_of_one_model(pattern: str, exact: bool) -> None:
    assert ModelRule(pattern, ModelRoute(_GENERIC)).exact is exact


def test_native_upstreams_are_known_by_their_rules() -> None:
    native = ModelRule("n", ModelRoute(_GENERIC, mode="native"))
    assert ModelRoutes(ModelRoute(_GENERIC), (native,)).has_native
    assert not ModelRoutes(ModelRoute(_GENERIC), (ModelRule("n", ModelRoute(_GENERIC)),)).has_native


def test_only_upstreams_that_are_translated_for_have_a_profile_to_learn() -> None:
    """A native one needs no profile, and a disabled one is never asked."""
    routes = ModelRoutes(
        ModelRoute(_GENERIC, assumed=True),
        (
            ModelRule("a*", ModelRoute(_GENERIC, upstream="a", assumed=True)),
            ModelRule("b*", ModelRoute(_GENERIC, upstream="b")),
            ModelRule("c*", ModelRoute(_GENERIC, upstream="c", mode="native", assumed=True)),
            ModelRule("d*", ModelRoute(_GENERIC, upstream="d", mode="disabled", assumed=True)),
        ),
    )
    assert routes.assumed == {"default", "a"}


def test_what_an_upstream_is_holds_wherever_it_was_assumed_and_for_new_requests_only() -> None:
    told = ModelRule("told", ModelRoute(_GENERIC, upstream="a"))
    assumed = ModelRule("assumed", ModelRoute(_GENERIC, upstream="a", assumed=True, model="x"))
    routes = ModelRoutes(ModelRoute(_GENERIC, assumed=True), (told, assumed))
    before = routes.choose("assumed")
    routes.learn("a", _VLLM)
    assert before.profile is _GENERIC, "a route never changes"
    assert routes.choose("assumed") == replace(before, profile=_VLLM, assumed=False)
    assert routes.choose("told").profile is _GENERIC and routes.choose("else").profile is _GENERIC
    assert routes.assumed == {"default"}
    routes.learn("default", _VLLM)
    assert routes.choose("else").profile is _VLLM and not routes.assumed
    # It is known by now: who says something else is not believed.
    routes.learn("a", PROFILES["sglang"])
    assert routes.choose("assumed").profile is _VLLM


def test_what_the_operator_knows_better_holds_for_the_learned_profile_too() -> None:
    route = ModelRoute(_GENERIC, assumed=True, flags={"images": False})
    learned = corrected(route, "default", _VLLM).profile
    assert learned.images is False and _VLLM.images is True
    assert learned.tokenizer == _VLLM.tokenizer == "vllm"
    assert corrected(replace(route, flags={}), "default", _VLLM).profile is _VLLM


def test_what_serves_a_model_or_requests_that_name_none() -> None:
    named = ModelRoute(_GENERIC, models=frozenset({"here"}))
    routes = ModelRoutes(ModelRoute(_GENERIC), (ModelRule("h*", named),))
    assert routes.serving(None, "Name one.") is routes.default
    assert routes.serving("here", "Name one.") is named
    with pytest.raises(NotFound, match="hidden"):
        routes.serving("hidden", "Name one.")
    with pytest.raises(InvalidRequest, match=r"Name one\."):
        ModelRoutes(ModelRoute(_GENERIC, mode="disabled")).serving(None, "Name one.")
