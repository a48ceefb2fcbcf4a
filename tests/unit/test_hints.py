"""What a reader of a failed request is told to do, also if the client caused the failure."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.engine.ports.journal import Detail, Entry
from antiphon.observability import outcome
from antiphon.observability.outcome import blamed, hint_for


def hint(fault: str, code: str = "", **detail: object) -> str:
    status = 429 if code in ("rate_limit_exceeded", "insufficient_quota") else 400
    return hint_for(Entry("entry_1", "n:anna", fault=fault, code=code, status=status, detail=Detail(**detail)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("previous_response_not_found", "start a new thread"),
        ("model_not_found", "this server does not serve the model"),
        ("missing_api_key", "the client sent no API key"),
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


def test_a_model_that_a_setting_or_an_upstream_refuses() -> None:
    def told(**detail: Any) -> tuple[str, str]:
        refused = Entry("entry_1", "n:anna", fault="client", code="model_not_found", detail=Detail(**detail))
        return blamed(refused), hint_for(refused)

    caused = told(message="no", cause="disabled by models[1] (match: old)")
    assert caused[0] == "a setting of this server" and "change what the cause names" in caused[1]
    assert told(message="no", cause="no")[0] == "the client" and "does not serve the model" in told()[1]
    answered = told(message="no", cause="none", upstream_status=404)
    assert answered[0] == "the client" and "the upstream does not know the model" in answered[1]


@pytest.mark.parametrize(
    ("fault", "code", "status", "who"),
    [
        ("client", "rate_limit_exceeded", 429, "a limit of this server, which the message names"),
        ("client", "invalid_json", 400, "the client"),
        ("cancelled", "client_gone", 499, "the client, which disconnected"),
        ("cancelled", "cancelled_by_operator", 503, "a user of the console, who cancelled the request"),
        ("cancelled", "", 0, "a cancellation"),
        ("unknown", "connection_ended", 0, "the client or the upstream"),
        ("upstream", "upstream_cut", 502, "the upstream"),
        ("none", "", 200, ""),
    ],
)
def test_who_caused_a_failure(fault: str, code: str, status: int, who: str) -> None:
    assert blamed(Entry("entry_1", "n:anna", fault=fault, code=code, status=status)) == who


def test_no_hint_has_backticks() -> None:
    values = [value for name, value in vars(outcome).items() if name != "__doc__" and isinstance(value, str | dict)]
    told = [value for value in values if value is not vars(outcome)["__builtins__"]]
    assert told and "`" not in str(told)


def test_a_failure_of_antiphon_points_to_its_log() -> None:
    assert "request id" in hint("ours", "server_error")


@pytest.mark.parametrize("fault", ["", "none"])
def test_a_success_has_no_hint(fault: str) -> None:
    assert hint(fault) == ""
