"""Generates the internal listener that holds the endpoint picker's filter.

This module generates the filter, and reports its failures as OpenAI error objects and log lines. `picker.py` explains
the separate listener and generates its clusters. `engine/exchange/phase.py` handles the error in the sidecar.

Invariant: each failure writes one log line, and a header of the error response shows that no model server sent it.
"""

from __future__ import annotations

from antiphon.config.settings import Settings
from antiphon.envoy.failures import local_replies, mapper
from antiphon.envoy.messages import (
    FULL_DUPLEX,
    Config,
    early_headers,
    http_filter,
    http_manager,
    listener,
    log_lines,
    typed,
)
from antiphon.envoy.picker import DESTINATION, PICKED, PICKER, is_picked, stripped
from antiphon.envoy.routes import BODY_LIMIT
from antiphon.types.transport import LOCAL_REPLY, PICKER_REPLY

_MOMENT = 0.25
_PICKED_NONE = "response.code_details == 'no_healthy_upstream'"
_WAITED = "response.code_details in ['max_duration_timeout', 'stream_idle_timeout']"
_TOO_SLOW = f"(xds.route_name == 'not_picked' && {_WAITED})"
_FAILED = "response.code_details.startsWith('ext_proc_error')"
_UNREACHED = "response.code_details.startsWith('upstream_reset_before_response_started')"
# Envoy sets no response code details when the picker itself refuses the request.
_REFUSED = "response.code_details == ''"
_NO_ANSWER = "response.code_details != 'via_upstream' && !response.code_details.startsWith('downstream')"
_CODE = (
    f"{_FAILED} ? 'endpoint_picker_unavailable' : {_TOO_SLOW} ? 'endpoint_picker_timeout' : "
    f"{_PICKED_NONE} ? 'no_endpoint_picked' : {_UNREACHED} ? 'upstream_unreachable' : "
    "response.code == 429 ? 'rate_limit_exceeded' : ''"
)
_PICKERS = f"{_REFUSED} || {_FAILED} || {_TOO_SLOW} || {_PICKED_NONE}"
_WHOSE = f"{_REFUSED} ? 'endpoint picker: the picker refused the request' : {_PICKERS} ? 'endpoint picker: ' : ''"


def picker_listeners(settings: Settings) -> list[Config]:
    """Return the internal listener with the picker's filter. The list is empty if no picker is configured."""
    if not is_picked(settings):
        return []
    manager = http_manager(
        PICKER,
        _routes(settings),
        stream_idle_timeout="3600s",
        delayed_close_timeout="0.25s",
        early_header_mutation_extensions=[early_headers("only_the_picker_says_where", stripped())],
        local_reply_config=_replies(),
        filters=[http_filter(PICKER, _filter())],
    )
    manager["access_log"] = [_failed_picks()]
    return [listener(PICKER, None, manager)]


def _routes(settings: Settings) -> list[Config]:
    """Return two routes: the route to the picked server, and the route of a request before the pick. The second route
    leads nowhere and has a timeout.

    The timeout of the second route limits the time that the picker may take. In FULL_DUPLEX_STREAMED mode Envoy ignores
    `message_timeout`, and a timeout of the gRPC call would end long streams. The second route has two timeouts. After
    the first timeout Envoy sends its own response through the picker's filter. A filter that waits for the picker may
    hold back this response too. After the second timeout, Envoy's response bypasses the filters.
    """
    chosen: Config = {
        "cluster": PICKED,
        "timeout": "0s",
        "max_stream_duration": {"max_stream_duration": "0s"},
        "idle_timeout": "3600s",
    }
    if settings.envoy.retries:
        # The retry uses the same server, because a reused connection may have just closed. An unreachable server needs
        # another pick instead.
        chosen["retry_policy"] = {
            "retry_on": "refused-stream,reset-before-request",
            "num_retries": settings.envoy.retries,
        }
    seconds = settings.envoy.endpoint_picker.timeout
    return [
        {
            "name": "picked",
            "match": {"prefix": "/", "headers": [{"name": DESTINATION, "present_match": True}]},
            "route": chosen,
            "request_body_buffer_limit": BODY_LIMIT,
            # Envoy removes this header from servers' responses, because only Envoy may set it.
            "response_headers_to_remove": [LOCAL_REPLY],
        },
        {
            "name": "not_picked",
            "match": {"prefix": "/"},
            "route": {
                "cluster": PICKED,
                "timeout": "0s",
                "max_stream_duration": {"max_stream_duration": f"{seconds + _MOMENT:g}s"},
                "idle_timeout": f"{seconds:g}s",
            },
        },
    ]


def _filter() -> Config:
    unseen = {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.2s"},
    }
    secret = [{"exact": name} for name in ("authorization", "proxy-authorization", "cookie", "x-api-key")]
    return typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": PICKER}, "retry_policy": unseen},
        failure_mode_allow=False,
        # Envoy selects the route again after the pick, even if the picker does not request it.
        route_cache_action="CLEAR",
        status_on_error={"code": "ServiceUnavailable"},
        forward_rules={"disallowed_headers": {"patterns": secret}},
        # Pickers also send the picked server as metadata, which this configuration does not use.
        metadata_options={"receiving_namespaces": {"untyped": ["envoy.lb"]}},
        processing_mode=FULL_DUPLEX,
    )


def _replies() -> Config:
    """Build Envoy's own responses for requests that no server answered. A header tells the sidecar that the response is
    Envoy's, and which status the client gets."""

    def told(what: str) -> list[Config]:
        return [{"header": {"key": LOCAL_REPLY, "value": what}}]

    def picker(status: int | str, why: str) -> list[Config]:
        return told(f"{PICKER_REPLY}:{status}:{why}")

    again = {"header": {"key": "retry-after", "value": "1"}, "append_action": "ADD_IF_ABSENT"}
    refused = picker("%RESPONSE_CODE%", "")
    said = "%LOCAL_REPLY_BODY%"
    return {
        "mappers": [
            mapper(
                _FAILED,
                "The endpoint picker is not available. Try again shortly.",
                "endpoint_picker_unavailable",
                status_code=503,
                headers_to_add=[again, *picker(503, "%RESPONSE_CODE_DETAILS%")],
            ),
            mapper(
                _TOO_SLOW,
                "The endpoint picker took too long to choose a server. Try again shortly.",
                "endpoint_picker_timeout",
                status_code=504,
                headers_to_add=picker(504, "the picker chose no server in time (envoy.endpoint_picker.timeout)"),
            ),
            mapper(
                _PICKED_NONE,
                "The endpoint picker chose no server. Try again shortly.",
                "no_endpoint_picked",
                status_code=503,
                headers_to_add=[again, *picker(503, "the picker chose no server, or its answer is not an address")],
            ),
            mapper(
                _UNREACHED,
                "The upstream cannot be reached.",
                "upstream_unreachable",
                status_code=502,
                headers_to_add=told(
                    "unreachable:%UPSTREAM_HOST%, which the endpoint picker chose: %RESPONSE_CODE_DETAILS%"
                ),
            ),
            mapper(f"{_REFUSED} && response.code == 429", said, None, "rate_limit_error", headers_to_add=refused),
            mapper(f"{_REFUSED} && response.code >= 500", said, None, headers_to_add=[again, *refused]),
            mapper(_REFUSED, said, None, "invalid_request_error", headers_to_add=refused),
            *local_replies(to_sidecar=True)["mappers"],
        ]
    }


def _failed_picks() -> Config:
    parts = {
        "timestamp": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "message": "pick_failed",
        "level": "warning",
        "door": "envoy",
        "fault": "upstream",
        "upstream": "default",
        "code": f"%CEL({_CODE})%",
        "cause": f"%CEL({_WHOSE})%%RESPONSE_CODE_DETAILS%",
        "status": "%RESPONSE_CODE%",
        "endpoint": "%UPSTREAM_HOST%",
        "flags": "%RESPONSE_FLAGS%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return log_lines("failed_picks", parts, _NO_ANSWER)
