"""Which failures an operator should see."""

from __future__ import annotations

import pytest

from antiphon.engine.exchange.failure import Failure, Fault, cancelled, refusal
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason
from antiphon.errors import ApiError


@pytest.mark.parametrize(
    ("fault", "code", "loud"),
    [
        ("upstream", "", True),
        ("ours", "", True),
        ("client", "", False),
        ("cancelled", "", False),
        # Silence that may be an unread stream's.
        ("unknown", "upstream_timeout", True),
    ],
)
def test_a_failure_is_loud_unless_it_may_be_its_clients_own_affair(fault: Fault, code: str, loud: bool) -> None:
    assert Failure(fault, "a cause", code=code).loud is loud


def test_a_line_of_the_log_has_what_is_known_and_not_too_much_of_it() -> None:
    assert Failure("ours", "a cause").fields() == {"fault": "ours", "cause": "a cause"}
    failure = Failure("upstream", "x" * 10_000, 200, "upstream_cut", "read_answer", "default", 200, counted=True)
    fields = failure.fields()
    assert len(fields.pop("cause")) == 500
    assert fields == {
        "fault": "upstream",
        "status": 200,
        "code": "upstream_cut",
        "operation": "read_answer",
        "upstream": "default",
        "upstream_status": 200,
    }


def test_who_ended_a_connection_in_relay_is_not_known_and_mostly_the_client() -> None:
    ended = {reason: cancelled(reason, "it ended", State.STREAMING, "default") for reason in CancelReason}
    assert {reason: failure.loud for reason, failure in ended.items()} == {
        CancelReason.CLIENT_GONE: False,
        CancelReason.CONNECTION_ENDED: False,
        CancelReason.SHUTTING_DOWN: True,
    }


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (400, None, "client"),
        (413, None, "client"),
        (422, None, "client"),
        (404, "model_not_found", "client"),
        (404, None, "upstream"),
        (401, "invalid_api_key", "upstream"),
        (429, "rate_limit_exceeded", "upstream"),
        (502, None, "upstream"),
    ],
)
def test_whose_fault_an_upstreams_answer_is(status: int, code: str | None, fault: Fault) -> None:
    found = refusal(ApiError("no", status=status, code=code), State.PASSING, "default", status)
    assert (found.fault, found.operation, found.upstream, found.upstream_status) == (
        fault,
        "pass_on",
        "default",
        status,
    )


def test_an_error_knows_at_whom_it_came_about() -> None:
    error = ApiError("no")
    assert refusal(error).upstream == ""
    error.upstream = "one"
    assert refusal(error).upstream == "one"
