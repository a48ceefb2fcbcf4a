"""Configures Envoy's log lines for failures that only Envoy sees: passed-through requests, and sidecars that do not
answer.

Envoy logs each failed upstream of a request, because it retries with the next upstream and the sidecar sees only the
last one. Envoy logs a relayed stream that ended early, because only Envoy knows which side ended it.

This module selects the requests for these lines. The lines distinguish a client that disconnects from an upstream that
breaks off. Envoy's lines have the same fields as the sidecar's log lines (`observability/outcome.py`). `bootstrap.py`
generates the full access log, which a setting enables.

A line does not contain the upstream's message. So a line cannot distinguish an unknown model (404) from a wrong path,
and names the client as the cause of both. A sidecar that dies writes no lines for its requests, so Envoy writes a line
for each request that this sidecar was serving.

Invariant: Envoy writes no line `request` for a request that the sidecar logs.
"""

from __future__ import annotations

from antiphon.envoy.messages import Config, log_lines
from antiphon.types.transport import ENDED_EARLY

_RESET_BEFORE = "response.code_details.startsWith('upstream_reset_before_response_started')"
_NO_ANSWER = f"({_RESET_BEFORE} || response.code_details == 'no_healthy_upstream')"
_CUT = "response.code_details.startsWith('upstream_reset_after_response_started')"
_PASSED_ON = "xds.route_name.startsWith('model/')"
# A stream that the sidecar cuts also ends with `ext_proc_error`. But the connection of such a stream stays open, so
# `upstream_reset` is missing. The sidecar writes the log line for such a stream.
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
    f"{_DIED} ? 'the sidecar ended in the middle of it' : response.code_details == 'via_upstream' ? "
    "'the upstream answered with this status' : response.code_details"
)
_FAILED = f"{_NO_SIDECAR} || ({_PASSED_ON} && !{_LEFT} && (response.code >= 400 || {_CUT}))"
_CODE = (
    f"{_NO_SIDECAR} ? 'adapter_unavailable' : {_NO_ANSWER} ? 'upstream_unreachable' : {_CUT} ? 'upstream_cut' : "
    "response.code == 401 ? 'invalid_api_key' : response.code == 429 ? 'rate_limit_exceeded' : ''"
)
# The timeout is compared with 95 % of the caller's value, because the caller's clock started a moment earlier.
_NEARLY = 0.95
_SECONDS = "double(request.duration.getSeconds()) + double(request.duration.getMilliseconds()) / 1000.0"


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
        "upstream": f"%CEL({_NO_SIDECAR} ? '' : 'default')%",
        "upstream_status": f"%TYPED_CEL({_NO_SIDECAR} || {_NO_ANSWER} ? 0 : response.code)%",
        "status": "%RESPONSE_CODE%",
        "seconds": f"%TYPED_CEL({_SECONDS})%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH):256%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return log_lines("failures", parts, _FAILED)


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


def failed_tries(upstream: str, head_seconds: float) -> Config:
    """Build the access log of one upstream in a list. The log has the failures that make Envoy try the next upstream.
    On this listener a timeout looks like a client that disconnects after `head_seconds`. An earlier disconnect comes
    from the real client and is not logged."""
    silent = f"(response.code_details.startsWith('downstream') && {_SECONDS} >= {head_seconds * _NEARLY:.3f})"
    parts = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "message": "upstream_try_failed",
        "level": "warning",
        "door": "envoy",
        "fault": "upstream",
        "upstream": upstream,
        "cause": f"%CEL({silent} ? 'timed_out: nothing came in time (timeouts.head)' : {_CAUSE})%",
        "upstream_status": f"%TYPED_CEL({silent} || {_NO_ANSWER} ? 0 : response.code)%",
        "flags": "%RESPONSE_FLAGS%",
        "seconds": f"%TYPED_CEL({_SECONDS})%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return log_lines("failed_tries", parts, f"response.code == 429 || response.code >= 500 || {silent}")
