"""Which failures an operator should see."""

from __future__ import annotations

import pytest

from antiphon.engine.exchange.failure import Failure, Fault, cancelled, ended_early, in_words, refusal
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason
from antiphon.errors import ApiError, AtCapacity, ConnectorFailed, UpstreamFailed, UpstreamTimedOut


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
    assert len(str(fields.pop("cause"))) == 500
    assert fields == {
        "fault": "upstream",
        "status": 200,
        "code": "upstream_cut",
        "operation": "read_answer",
        "upstream": "default",
        "upstream_status": 200,
    }


def test_who_ended_a_connection_in_relay_is_not_known_and_mostly_the_client() -> None:
    ended = {reason: cancelled(reason, State.STREAMING, "default") for reason in CancelReason}
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


@pytest.mark.parametrize(
    ("error", "state", "answered", "fault"),
    [
        (ApiError("no", status=499), State.NEW, 0, "client"),
        (ApiError("no", status=500), State.NEW, 0, "ours"),
        (ApiError("no", status=503), State.CALLING, 0, "ours"),
        (ApiError("no", status=404), State.CALLING, 0, "client"),
        (UpstreamFailed("no"), State.CALLING, 0, "upstream"),
        (UpstreamTimedOut("no"), State.STREAMING, 200, "upstream"),
        *((ApiError("no", status=status), State.REFUSED, status, "client") for status in (400, 413, 422)),
        *((ApiError("no", status=status), State.REFUSED, status, "upstream") for status in (401, 404, 429, 500)),
        # What an earlier turn's upstream said has nothing to do with what is wrong now.
        (ApiError("no", status=404), State.SAVING, 200, "client"),
    ],
)
def test_whose_fault_it_was(error: ApiError, state: State, answered: int, fault: Fault) -> None:
    failure = refusal(error, state, "default", answered)
    assert failure.fault == fault and failure.cause == "no" and failure.status == error.status
    at_it = state in (State.CALLING, State.STREAMING, State.REFUSED)
    assert (failure.upstream, failure.upstream_status) == (("default", answered) if at_it else ("", 0))


def test_what_an_upstream_said_is_left_out_where_nothing_may_rest() -> None:
    error = ApiError("your secret words", status=400)
    said = {
        (state, answered): refusal(error, state, "default", answered, quoted=False).cause
        for state in (State.REFUSED, State.SAVING)
        for answered in (400, 0)
    }
    assert said.pop((State.REFUSED, 400)) == "the upstream's message is not logged (store: false)"
    assert set(said.values()) == {"your secret words"}, "that is our own word"
    error.cause = "a cause"
    assert refusal(error, State.REFUSED, "default", 400, quoted=False).cause == "a cause"


def test_what_was_refused_for_want_of_room_is_counted_elsewhere() -> None:
    assert refusal(AtCapacity("full", "limits.all")).counted and not refusal(ApiError("no", status=503)).counted


def test_the_operator_caused_the_failure_of_a_connector_of_the_settings() -> None:
    failure = refusal(ConnectorFailed("no", "tools[0]", "buses", "connection refused"))
    assert failure.fault == "ours" and failure.cause == "the MCP server 'buses' (mcp.connectors): connection refused"


def test_what_was_being_done_is_told() -> None:
    assert refusal(ApiError("no"), State.SAVING).operation == "save"
    error = ApiError("no")
    error.operation = "idempotency_key"
    assert refusal(error, State.SAVING).operation == "idempotency_key"


@pytest.mark.parametrize(("status", "told"), [(200, 200), (0, 502)])
@pytest.mark.parametrize(
    ("left", "fault", "code"), [(True, "cancelled", "client_gone"), (False, "upstream", "upstream_cut")]
)
def test_a_relayed_stream_that_ended_early_is_its_clients_or_its_upstreams(
    left: bool, fault: Fault, code: str, status: int, told: int
) -> None:
    failure = ended_early(Failure("unknown", "ended", 502), "connection_termination", status, client_left=left)
    assert (failure.fault, failure.code, failure.status) == (fault, code, told)
    assert left or "connection_termination" in failure.cause


def test_the_cause_of_a_cut_answer_has_words() -> None:
    details = "upstream_reset_after_response_started{protocol_error}"
    failure = ended_early(Failure("unknown", "ended", 502), details, 200, client_left=False)
    what = "the upstream closed the connection in the middle of its answer, or broke the rules of HTTP"
    assert failure.cause == f"cut: {what} ({details})"


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("reset{remote_connection_failure|delayed_connect_error:_Connection_refused}", "connection refused"),
        ("reset{remote_connection_failure|immediate_connect_error:_No_route_to_host}", "no route to host"),
        (
            "reset{remote_connection_failure|TLS_error:|268435581:CERTIFICATE_VERIFY_FAILED:TLS_error_end}",
            "the TLS handshake failed",
        ),
        ("reset{connection_timeout}", "the connection timed out"),
        ("no_healthy_upstream", "Envoy has no address of it that works"),
        ("reset{remote_connection_failure}", ""),
    ],
)
def test_the_words_of_an_unreachable_upstream_come_before_envoys_details(details: str, words: str) -> None:
    assert in_words(details) == (f"{words} ({details})" if words else details)
