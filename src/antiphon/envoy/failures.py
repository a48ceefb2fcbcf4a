"""Configures Envoy's own error answers (local replies) and its log lines for failures that only Envoy sees.

Envoy rewrites its own error answers as OpenAI error objects. The package `doors/extproc` handles the local replies that
the sidecar receives.

Envoy logs failures of passed-through requests, and of sidecars that do not answer. Envoy logs each failed upstream of a
request, because Envoy retries with the next upstream and the sidecar sees only the last upstream. Envoy logs a relayed
stream that ended early, because only Envoy knows which side ended it. With the console, Envoy also logs each request to
a path that does not exist.

This module selects the requests for which Envoy writes a log line. The lines distinguish a client that disconnects from
an upstream that breaks off. Envoy's lines have the same fields as the sidecar's log lines (`observability/outcome.py`).
`bootstrap.py` generates the full access log, which a setting enables.

A line does not contain the upstream's message. So a line cannot distinguish an unknown model (404) from a wrong path,
and names the client as the cause of both. A sidecar that dies writes no lines for its requests, so Envoy writes a line
for each request that this sidecar was serving.

Invariants: a response that Envoy did not make itself is never rewritten. Envoy writes no log line of the event
`request` for a request that the sidecar logs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from antiphon.envoy.messages import Config, error_body, log_lines, where
from antiphon.envoy.routes import NOT_FOUND, NOT_HANDLED, NOTHING, RESPONSES, UNKNOWN_URL
from antiphon.types.transport import ENDED_EARLY, LOCAL_REPLY, OWN_JSON, OWN_STREAM

REQUEST_ID: Config = {
    "header": {"key": "x-request-id", "value": "%REQ(X-REQUEST-ID)%"},
    "append_action": "ADD_IF_ABSENT",
}
"""Adds the header `x-request-id` with the request's id to a response without this header."""
_NULL = "%DYNAMIC_METADATA(antiphon:nothing)%"
"""A reference to metadata that is never set, so that Envoy writes null into the JSON. Istio drops a literal null in an
EnvoyFilter."""
_OMIT = "xds.nothing"
"""A CEL expression without a value, because of which Envoy omits the field from a log line."""
_RESET_BEFORE = "response.code_details.startsWith('upstream_reset_before_response_started')"
_NO_ANSWER = f"({_RESET_BEFORE} || response.code_details == 'no_healthy_upstream')"
_CUT = "response.code_details.startsWith('upstream_reset_after_response_started')"
_PASSED_ON = "xds.route_name.startsWith('model/')"
# A stream that the sidecar cuts also ends with `ext_proc_error`. But the connection of such a stream stays open, so
# `upstream_reset` is missing. The sidecar itself writes the log line of such a stream.
_DIED = "(response.code_details.startsWith('ext_proc_error') && response.code_details.contains('upstream_reset'))"
_NO_SIDECAR = (
    "((response.code == 503 && response.code_details.startsWith('ext_proc_error')) "
    f"|| {_DIED} || (xds.cluster_name == 'sidecar_http' && ({_NO_ANSWER} || {_CUT})))"
)
_RELAYED = "(xds.route_name.startsWith('translated') || xds.route_name.startsWith('native'))"
# An HTTP/1 client that leaves ends its connection. An HTTP/2 or HTTP/3 client that leaves resets the stream
# (`http2.remote_reset`).
_LEFT = "(response.code_details.startsWith('downstream') || response.code_details.contains('.remote_re'))"
_CLIENTS = "(response.code in [400, 404, 408, 413, 422])"
_CAUSE = (
    f"{_DIED} ? 'the sidecar ended in the middle of the request' : response.code_details == 'via_upstream' ? "
    "'the upstream answered with this status' : response.code_details"
)
_FAILED = f"{_NO_SIDECAR} || ({_PASSED_ON} && !{_LEFT} && (response.code >= 400 || {_CUT}))"
_CODE = (
    f"{_NO_SIDECAR} ? 'adapter_unavailable' : {_NO_ANSWER} ? 'upstream_unreachable' : {_CUT} ? 'upstream_cut' : "
    f"response.code == 401 ? 'invalid_api_key' : response.code == 429 ? 'rate_limit_exceeded' : {_OMIT}"
)
_ADVICE = (
    "if Antiphon was stopping, nothing is wrong, and clients retry; otherwise find out why the sidecar ended or hangs "
    "(process_ended, gave_up)"
)
# The timeout is compared with 95 % of the caller's value, because the caller's clock started a moment earlier.
_NEARLY = 0.95
_SECONDS = "double(request.duration.getSeconds() * 1000 + request.duration.getMilliseconds()) / 1000.0"


def local_replies(*, to_sidecar: bool = False) -> Config:
    """Build the local reply configuration, which rewrites Envoy's own responses as OpenAI error objects.

    Each mapper selects responses by their response code details. Without such a selection, a format would also rewrite
    the sidecar's immediate responses. If `to_sidecar` is True, the sidecar reads the reply. In that case a header tells
    the sidecar that no upstream answered.
    """
    unavailable = {"header": {"key": "retry-after", "value": "1"}}
    no_answer = "response.code_details.startsWith('upstream_reset_before_response_started')"
    no_answer = f"({no_answer} || response.code_details == 'no_healthy_upstream')"
    relayed = "(xds.route_name.startsWith('translated') || xds.route_name.startsWith('native'))"
    unreachable = ("The upstream cannot be reached.", "upstream_unreachable")
    told = {"header": {"key": LOCAL_REPLY, "value": "unreachable:%RESPONSE_CODE_DETAILS%"}}
    nothing = f"xds.route_name == '{NOTHING}' && response.code_details in ['no_healthy_upstream', 'direct_response']"
    no_page = mapper(nothing, NOT_FOUND, UNKNOWN_URL, "invalid_request_error", status_code=404)
    unhandled = f"xds.route_name == '{RESPONSES}' && response.code_details == 'no_healthy_upstream'"
    return {
        "mappers": [
            # These mappers keep the sidecar's immediate responses unchanged, even if an operator sets a body format for
            # Envoy's own responses.
            *([] if to_sidecar else [_kept(OWN_STREAM, "text/event-stream"), _kept(OWN_JSON, "application/json")]),
            *([] if to_sidecar else [no_page]),
            mapper(
                "response.code_details.startsWith('ext_proc_error')",
                "Antiphon's sidecar is not available. Try again shortly.",
                "adapter_unavailable",
                status_code=503,
                headers_to_add=[unavailable],
            ),
            # Requests to this cluster involve no upstream, so every connection failure is the sidecar's.
            mapper(
                "xds.cluster_name == 'sidecar_http' && "
                f"({no_answer} || response.code_details.startsWith('upstream_reset_after_response_started'))",
                "Antiphon's sidecar is not available. Try again shortly.",
                "adapter_unavailable",
                status_code=503,
                headers_to_add=[unavailable],
            ),
            # This route itself answers a request only in an Envoy without the ext_proc filter.
            *([] if to_sidecar else [mapper(unhandled, NOT_HANDLED, None, status_code=502)]),
            mapper(
                "response.code_details.startsWith('upstream_reset_after_response_started')",
                "The upstream broke off its answer.",
                "upstream_cut",
                status_code=502,
            ),
            mapper(
                no_answer if to_sidecar else f"{no_answer} && {relayed}",
                *unreachable,
                status_code=502,
                headers_to_add=[told],
            ),
            *([] if to_sidecar else [mapper(no_answer, *unreachable, status_code=502)]),
            # The sidecars answer `/ready` with the same message (`api/router.py`).
            {
                **mapper("response.code_details == 'health_check_failed'", "", None),
                "body_format_override": {"json_format": {"status": "unavailable", "reason": "shutting_down"}},
            },
            mapper(
                "response.code_details == 'overload'",
                "The server is out of memory. Try again shortly.",
                "overloaded",
                status_code=503,
                headers_to_add=[unavailable],
            ),
            mapper(
                "response.code_details == 'request_header_timeout'",
                "The request was not sent completely in time.",
                "request_timeout",
                kind="invalid_request_error",
            ),
            mapper(
                "response.code_details == 'request_payload_too_large'",
                "The request body is too large.",
                "request_too_large",
                kind="invalid_request_error",
            ),
            mapper(
                "response.code_details.startsWith('path_normalization_failed')"
                " || response.code_details.startsWith('http1.')"
                " || response.code_details.startsWith('http2.')",
                "The request is malformed.",
                "invalid_request",
                kind="invalid_request_error",
            ),
        ]
    }


def _kept(details: str, content_type: str) -> Config:
    return {
        "filter": where(f"response.code_details.startsWith('{details}')"),
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": content_type,
        },
    }


def mapper(
    expression: str,
    message: str,
    code: str | None,
    kind: str = "server_error",
    *,
    headers_to_add: Sequence[Config] = (),
    **fields: object,
) -> Config:
    """Build a mapper that rewrites Envoy's own response as an error object, if the CEL expression is true."""
    error = json.loads(error_body(message, kind, code))["error"]
    error = {name: _NULL if value is None else value for name, value in error.items()}
    # `request_id` is also null when Envoy responds before it has read a request head.
    return {
        "filter": where(expression),
        **fields,
        "headers_to_add": [*headers_to_add, REQUEST_ID],
        "body_format_override": {"json_format": {"error": {**error, "request_id": "%REQ(X-REQUEST-ID)%"}}},
    }


def failure_lines() -> Config:
    """Build the access log of failed requests: JSON lines on standard output."""
    parts = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "message": "request",
        "level": f"%CEL({_CLIENTS} && !{_NO_SIDECAR} ? 'info' : 'warning')%",
        "door": "envoy",
        "fault": f"%CEL({_NO_SIDECAR} ? 'ours' : {_CLIENTS} ? 'client' : 'upstream')%",
        "code": f"%CEL({_CODE})%",
        "cause": f"%CEL({_CAUSE})%",
        "operation": f"%CEL({_NO_SIDECAR} ? 'ask_sidecar' : 'pass_on')%",
        "upstream": f"%CEL({_NO_SIDECAR} ? {_OMIT} : 'default')%",
        "upstream_status": f"%TYPED_CEL({_NO_SIDECAR} || {_NO_ANSWER} ? {_OMIT} : response.code)%",
        "status": "%RESPONSE_CODE%",
        "seconds": f"%TYPED_CEL({_SECONDS})%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):256%",
        "advice": f"%CEL({_NO_SIDECAR} ? '{_ADVICE}' : {_OMIT})%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    lines = log_lines("failures", parts, _FAILED)
    lines["typed_config"]["log_format"]["omit_empty_values"] = True
    return lines


def early_ends() -> Config:
    """Build the access log of relayed streams that the client or the upstream ended early."""
    parts = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "message": ENDED_EARLY,
        "level": f"%CEL({_LEFT} ? 'info' : 'warning')%",
        "door": "envoy",
        "fault": f"%CEL({_LEFT} ? 'cancelled' : 'upstream')%",
        "cause": f"%CEL({_LEFT} ? 'the client left' : 'the upstream broke off its answer')%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "status": "%RESPONSE_CODE%",
        "seconds": f"%TYPED_CEL({_SECONDS})%",
        "model": "%DYNAMIC_METADATA(antiphon:model)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    lines = log_lines("early_ends", parts, f"{_RELAYED} && ({_LEFT} || {_CUT})")
    # A successful request has no response flag, so Envoy does not evaluate the CEL expression for it.
    lines["filter"] = {"and_filter": {"filters": [{"response_flag_filter": {}}, lines["filter"]]}}
    return lines


def unknown_paths() -> Config:
    """Build the access log of requests to paths that no route serves. Envoy answers these requests itself."""
    parts = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "message": "request",
        "level": "info",
        "door": "envoy",
        "fault": "client",
        "code": UNKNOWN_URL,
        "cause": "no endpoint has this path",
        "status": "%RESPONSE_CODE%",
        "seconds": f"%TYPED_CEL({_SECONDS})%",
        "method": "%REQ(:METHOD):32%",
        # This attribute has no query, and clients may send a key in the query.
        "path": "%CEL(request.url_path):256%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return log_lines("unknown_paths", parts, f"xds.route_name == '{NOTHING}'")


def failed_tries(upstream: str, head_seconds: float) -> Config:
    """Build the access log of one upstream in a list. The log has the failures that make Envoy try the next upstream.
    If the upstream sends no response head within `head_seconds`, Envoy itself closes the connection to the upstream's
    internal listener. This listener then logs a disconnect of its client. An earlier disconnect comes from the real
    client, and the log leaves it out."""
    silent = f"(response.code_details.startsWith('downstream') && {_SECONDS} >= {head_seconds * _NEARLY:.3f})"
    parts = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "message": "upstream_try_failed",
        "level": "warning",
        "door": "envoy",
        "fault": "upstream",
        "upstream": upstream,
        "cause": f"%CEL({silent} ? 'timed_out: no response head came in time (timeouts.head)' : {_CAUSE})%",
        "upstream_status": f"%TYPED_CEL({silent} || {_NO_ANSWER} ? {_OMIT} : response.code)%",
        "flags": "%RESPONSE_FLAGS%",
        "seconds": f"%TYPED_CEL({_SECONDS})%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    lines = log_lines("failed_tries", parts, f"response.code == 429 || response.code >= 500 || {silent}")
    lines["typed_config"]["log_format"]["omit_empty_values"] = True
    return lines
