"""Configures Envoy's own trace spans. The sidecar's spans become children of Envoy's spans.

This module configures the tracer of the listeners and the address of the trace collector. The package `observability`
makes the sidecar's spans.

Envoy 1.40 continues a client's `traceparent`, and sends its span's `traceparent` as gRPC metadata to the external
processor. So the sidecar's spans are children of Envoy's spans. The model listener only continues traces of the
sidecar, so model calls of unsampled requests begin no new traces.

Invariants: without `tracing.endpoint` Envoy's configuration contains no tracing. The configuration contains no secret.
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
    """Return the environment variable of Envoy's process with the value of this header of `tracing.headers`."""
    return _VARIABLE + re.sub(r"\W", "_", name).upper()


def tracing(settings: Settings, *, begins: bool) -> Config:
    """Return the tracing fields of a connection manager. If `begins` is True, a request without a trace may begin a new
    trace."""
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
            # Only the sampler below decides about sampling, so a client's `x-client-trace-id` has no effect.
            "client_sampling": {"value": 0},
            "random_sampling": {"value": 100},
            # Envoy makes a child span for each attempt at an upstream.
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
    # The sender of `traceparent` has already decided about sampling. Without the parent-based sampler Envoy would
    # decide again at random.
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
    """Return route fields that keep health checks from beginning a trace."""
    return {"tracing": {"random_sampling": {"numerator": 0}}} if settings.tracing.traces_url is not None else {}


def collector_address(settings: Settings) -> tuple[str, int, bool] | None:
    """Return the trace collector's host, its port, and whether it uses TLS. Returns None if tracing is not
    configured."""
    if settings.tracing.traces_url is None:
        return None
    url = urlsplit(settings.tracing.traces_url)
    return url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme], url.scheme == "https"
