"""Rewrites Envoy's own error answers (local replies) as OpenAI error objects.

The package `doors/extproc` handles the local replies that the sidecar receives.

Invariant: a response that Envoy did not make itself is never rewritten.
"""

from __future__ import annotations

import json
from typing import Any

from antiphon.envoy.messages import Config, error_body, where
from antiphon.envoy.routes import NOT_FOUND, NOT_HANDLED, NOTHING, RESPONSES
from antiphon.types.transport import LOCAL_REPLY, OWN_JSON, OWN_STREAM


def local_replies(*, to_sidecar: bool = False) -> Config:
    """Build the local reply configuration, which rewrites Envoy's own responses as OpenAI error objects.

    Each mapper selects responses by their response code details. A format without a filter would also rewrite the
    sidecar's immediate responses. If `to_sidecar` is True, the sidecar reads the reply. In that case a header tells the
    sidecar that no upstream answered.
    """
    unavailable = {"header": {"key": "retry-after", "value": "1"}}
    no_answer = "response.code_details.startsWith('upstream_reset_before_response_started')"
    no_answer = f"({no_answer} || response.code_details == 'no_healthy_upstream')"
    relayed = "(xds.route_name.startsWith('translated') || xds.route_name.startsWith('native'))"
    unreachable = ("The upstream cannot be reached.", "upstream_unreachable")
    told = {"header": {"key": LOCAL_REPLY, "value": "unreachable:%RESPONSE_CODE_DETAILS%"}}
    nothing = f"xds.route_name == '{NOTHING}' && response.code_details in ['no_healthy_upstream', 'direct_response']"
    unhandled = f"xds.route_name == '{RESPONSES}' && response.code_details == 'no_healthy_upstream'"
    return {
        "mappers": [
            # These mappers keep the sidecar's immediate responses unchanged, even if an operator sets a body format for
            # Envoy's own responses.
            *([] if to_sidecar else [_kept(OWN_STREAM, "text/event-stream"), _kept(OWN_JSON, "application/json")]),
            *([] if to_sidecar else [mapper(nothing, NOT_FOUND, None, "invalid_request_error", status_code=404)]),
            mapper(
                "response.code_details.startsWith('ext_proc_error')",
                "The responses adapter is not available. Try again shortly.",
                "adapter_unavailable",
                status_code=503,
                headers_to_add=[unavailable],
            ),
            # Requests to this cluster involve no upstream, so every connection failure is the sidecar's.
            mapper(
                "xds.cluster_name == 'sidecar_http' && "
                f"({no_answer} || response.code_details.startsWith('upstream_reset_after_response_started'))",
                "The responses adapter is not available. Try again shortly.",
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


REQUEST_ID: Config = {
    "header": {"key": "x-request-id", "value": "%REQ(X-REQUEST-ID)%"},
    "append_action": "ADD_IF_ABSENT",
}
"""Adds the header `x-request-id` with the request's id to a response without this header."""


_NULL = "%DYNAMIC_METADATA(antiphon:nothing)%"
"""A reference to metadata that is never set, so that Envoy writes null into the JSON. Istio drops a literal null in an
EnvoyFilter."""


def _kept(details: str, content_type: str) -> Config:
    return {
        "filter": where(f"response.code_details.startsWith('{details}')"),
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": content_type,
        },
    }


def mapper(expression: str, message: str, code: str | None, kind: str = "server_error", **fields: Any) -> Config:
    """Build a mapper that rewrites Envoy's own response as an error object, if the CEL expression is true."""
    error = json.loads(error_body(message, kind, code))["error"]
    error = {name: _NULL if value is None else value for name, value in error.items()}
    # `request_id` is also null when Envoy responds before it has read a request head.
    return {
        "filter": where(expression),
        **fields,
        "headers_to_add": [*fields.get("headers_to_add", ()), REQUEST_ID],
        "body_format_override": {"json_format": {"error": {**error, "request_id": "%REQ(X-REQUEST-ID)%"}}},
    }
