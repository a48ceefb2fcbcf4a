"""What a reader of a failed request is told to do, also if the client caused the failure."""

from __future__ import annotations

import pytest

from antiphon.engine.ports.journal import Detail, Entry
from antiphon.observability.outcome import hint_for


def hint(fault: str, code: str = "", **detail: object) -> str:
    status = 429 if code in ("rate_limit_exceeded", "insufficient_quota") else 400
    return hint_for(Entry("entry_1", "n:anna", fault=fault, code=code, status=status, detail=Detail(**detail)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("previous_response_not_found", "start a new thread"),
        ("model_not_found", "no upstream serves this model"),
        ("context_length_exceeded", "longer than the model's context"),
        ("unsupported_tool", "enable the tool in the settings"),
        ("request_too_large", "limits.request_body_bytes"),
        ("file_not_found", "upload the file again"),
        ("conversation_not_found", "create a new conversation"),
        ("not_found", "belongs to another owner"),
    ],
)
def test_mistakes_of_clients_have_a_hint(code: str, says: str) -> None:
    assert says in hint("client", code)


@pytest.mark.parametrize("code", ["upstream_error", "model_overheated", "", "server_error"])
@pytest.mark.parametrize("status", [0, 500, 503])
def test_every_failure_of_the_upstream_has_a_hint(code: str, status: int) -> None:
    assert "read its log at the time of this request" in hint("upstream", code, upstream_status=status)


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "insufficient_quota"])
def test_a_429_names_who_refused(code: str) -> None:
    assert hint("client", code).startswith("a limit of this server refused the request, not the model server")
    assert "upstream" in hint("upstream", code, upstream_status=429)


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "too_many_tokens", ""])
def test_a_429_of_the_upstream_names_its_rate_limit(code: str) -> None:
    assert hint("upstream", code, upstream_status=429).startswith("the upstream's rate limit is reached")


def test_a_refusal_by_the_upstream_is_not_one_by_antiphon() -> None:
    assert "what the upstream's message names" in hint("client", "", upstream_status=400, message="odd")
    assert "only the client has the upstream's message" in hint("client", "", upstream_status=422)


def test_the_advice_of_the_log_line_comes_first() -> None:
    assert hint("upstream", "upstream_error", advice="look there") == "look there"


def test_a_failure_of_antiphon_points_to_its_log() -> None:
    assert "request id" in hint("ours", "server_error")


@pytest.mark.parametrize("fault", ["", "none"])
def test_a_success_has_no_hint(fault: str) -> None:
    assert hint(fault) == ""
