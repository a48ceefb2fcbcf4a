"""The list of contradictions is exact: each still happens, and nothing outside of it does."""

from __future__ import annotations

import pytest

from tests.schemas.contradictions import CONTRADICTIONS, Contradiction
from tests.schemas.samples import SAMPLES, outcome_of
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.schemas import check_error, event_violations


@pytest.mark.parametrize("one", CONTRADICTIONS, ids=lambda one: f"{one.schema}: {one.place}")
def test_a_listed_contradiction_still_happens(one: Contradiction) -> None:
    events = parse_sse(outcome_of(one.sample).body)
    found = {violation.key for event in events for violation in event_violations(event)}
    assert (one.schema, one.place, one.rule) in found, "this is valid by now: take it off the list"


def test_no_contradiction_is_listed_twice() -> None:
    keys = [(one.schema, one.place, one.rule) for one in CONTRADICTIONS]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_valid_but_for_the_listed_contradictions(name: str) -> None:
    final = check_stream(parse_sse(outcome_of(name).body))
    outcome = outcome_of(name, stream=False)
    assert outcome.head is not None
    if final["status"] == "failed":
        assert outcome.head.status >= 400
        check_error(outcome.json)
    else:
        check_response(outcome.json)
        assert outcome.json == final


def test_a_violation_is_found_and_named() -> None:
    """The judge itself: what is broken on purpose is seen, at the right place."""
    event = parse_sse(outcome_of("function calls").body)[-1]
    response = event["response"]
    response["output"][1]["arguments"] = {}
    del response["output"][0]["content"][0]["annotations"]
    response["temperature"] = None
    found = {(violation.schema, violation.place, violation.rule) for violation in event_violations(event)}
    for schema in ("openai", "open responses"):
        assert (schema, "function_call.arguments", "type") in found
        assert (schema, "output_text.annotations", "required") in found
    assert ("open responses", "response.temperature", "type") in found
