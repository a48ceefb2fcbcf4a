"""Configures Envoy's own trace spans and how the sidecar's spans join them.

Lives here: the tracer of the listeners, and the collector's cluster. Not here: the sidecar's spans (`observability`).

Envoy 1.40 continues a client's `traceparent`, and its call of the external processor carries one of its own as gRPC
metadata, so that the sidecar's spans are within Envoy's. The model door only continues what the sidecar began: model
calls of requests that were sampled out begin no traces of their own.

Invariant: without `tracing.endpoint` there is nothing of it; no secret is in it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from antiphon.config.settings import Settings
from antiphon.envoy.messages import Config, overwritten, typed

COLLECTOR = "trace_collector"
_VARIABLE = "ANTIPHON_TRACING_HEADER_"
_EXPORT_SECONDS = "5s"
_MILLION = 1_000_000
_DEFAULT_PORTS = {"http": 80, "https": 443}


def header_variable(name: str) -> str:
    """The variable of Envoy's process that holds a header of `tracing.headers`."""
    return _VARIABLE + re.sub(r"\W", "_", name).upper()


def tracing(settings: Settings, *, begins: bool) -> Config:
    """The manager's fields; `begins`: whether requests that bring no trace may begin one."""
    chosen = settings.tracing
    if chosen.traces_url is None:
        return {}
    service: Config = {
        "http_uri": {"uri": chosen.traces_url, "cluster": COLLECTOR, "timeout": _EXPORT_SECONDS},
    }
    if chosen.headers:
        service["request_headers_to_add"] = [
            overwritten(name, f"%ENVIRONMENT({header_variable(name)})%") for name in chosen.headers
        ]
    return {
        "tracing": {
            # The sampler decides; a client's `x-client-trace-id` that asks for a trace is not heard.
            "client_sampling": {"value": 0},
            "random_sampling": {"value": 100},
            # A span for each try at an upstream, within the request's.
            "spawn_upstream_span": True,
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "http_service": service,
                    "service_name": chosen.service_name,
                    "sampler": _sampler(chosen.sample if begins else 0.0),
                },
            },
        }
    }


def _sampler(share: float) -> Config:
    # Whoever sent `traceparent` has decided. (Without a sampler Envoy lets its own dice decide once more.)
    kind = "tracers.opentelemetry.samplers.v3."
    of_its_own = typed(
        f"{kind}TraceIdRatioBasedSamplerConfig",
        sampling_percentage={"numerator": round(share * _MILLION), "denominator": "MILLION"},
    )
    name = "envoy.tracers.opentelemetry.samplers."
    return {
        "name": f"{name}parent_based",
        "typed_config": typed(
            f"{kind}ParentBasedSamplerConfig",
            wrapped_sampler={"name": f"{name}trace_id_ratio_based", "typed_config": of_its_own},
        ),
    }


def untraced(settings: Settings) -> Config:
    """A route's fields: who only looks whether somebody is there begins no trace."""
    return {"tracing": {"random_sampling": {"numerator": 0}}} if settings.tracing.traces_url is not None else {}


def collector_address(settings: Settings) -> tuple[str, int, bool] | None:
    """Where the collector listens, and whether by TLS; None where nothing is traced."""
    if settings.tracing.traces_url is None:
        return None
    url = urlsplit(settings.tracing.traces_url)
    return url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme], url.scheme == "https"
