"""What is told of a model call that Envoy answered itself."""

from __future__ import annotations

import json

import pytest

from antiphon.engine.exchange.failure import not_answered

_SAID = json.dumps({"error": {"message": "Said.", "type": "server_error", "param": None, "code": "some_code"}}).encode()


@pytest.mark.parametrize(
    ("told", "said", "status", "code", "cause"),
    [
        ("unreachable:why", b"", 502, "upstream_unreachable", "unreachable: Envoy could not reach the upstream: why"),
        ("unreachable:", b"", 502, "upstream_unreachable", "unreachable: Envoy could not reach the upstream"),
        (
            "unreachable:upstream_reset_before_response_started{connection_termination}",
            b"",
            502,
            "upstream_cut",
            "cut: the connection ended before the upstream answered: upstream_reset_before_response_started"
            "{connection_termination}",
        ),
        (
            "unreachable:upstream_reset_before_response_started{remote_connection_failure}",
            b"",
            502,
            "upstream_unreachable",
            "unreachable: Envoy could not reach the upstream: "
            "upstream_reset_before_response_started{remote_connection_failure}",
        ),
        ("picker:503:a:b", _SAID, 503, "some_code", "endpoint picker: a:b"),
        ("picker:504:late", _SAID, 504, "some_code", "endpoint picker: late"),
        ("picker:429:", _SAID, 429, "some_code", "endpoint picker: the picker refused the request: Said."),
        ("picker:odd", _SAID, 503, "some_code", "endpoint picker: the picker refused the request: Said."),
    ],
)
def test_envoys_answer(told: str, said: bytes, status: int, code: str, cause: str) -> None:
    error = not_answered(told, (("retry-after", "7"), ("x-other", "1")), said)
    assert (error.status, error.code, error.cause) == (status, code, cause)
    assert error.headers == (() if told.startswith("unreachable") else (("retry-after", "7"),))
