"""Reads OpenTelemetry's standard environment variables as defaults of the section `tracing`.

Lives here: the mapping of `OTEL_*` variables to settings (https://opentelemetry.io/docs/specs/otel/protocol/exporter
and …/configuration/sdk-environment-variables). Not here: the section (`processes.py`), variables that the OpenTelemetry
SDK reads itself (compression, certificates, further attributes of the resource).

Invariants: Antiphon's own settings override the variables. An invalid variable is an error only if Antiphon would send
traces. No message contains a value, because a value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

_SERVICE_NAME = re.compile(r"(?:^|,)\s*service\.name\s*=([^,]+)")
_BASE, _TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_SAMPLER, _SHARE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SHARES = {"always_on": 1.0, "always_off": 0.0}
_PARENT_BASED = "parentbased_"
_BY_RATIO = "traceidratio"


def otel_defaults(environ: Mapping[str, str], own: Mapping[str, object], wrong: list[str]) -> dict[str, object]:
    """Return the values for the section `tracing` that the variables set and `own` does not. `own` is the section from
    all other sources.

    A message for each invalid variable is appended to `wrong`.
    """
    mistakes: list[str] = []
    found: dict[str, object] = {
        "service_name": _service_name(environ),
        "enabled": False if _read(environ, "OTEL_SDK_DISABLED").lower() == "true" else None,
        "traces_endpoint": _endpoint(environ, mistakes) if "endpoint" not in own else None,
        "sample": _sample(environ, mistakes) if "sample" not in own else None,
        "headers": _headers(environ, mistakes),
    }
    found = {
        name: value for name, value in found.items() if value is not None and (name not in own or name == "headers")
    }
    collector = any(_read(environ, name) for name in (_BASE, _TRACES)) or own.keys() & {"endpoint", "traces_endpoint"}
    if collector and found.get("enabled", True):
        wrong += mistakes
    return found


def _read(environ: Mapping[str, str], name: str) -> str:
    """The variable's value. An empty variable counts as unset."""
    return environ.get(name, "").strip()


def _service_name(environ: Mapping[str, str]) -> str | None:
    in_attributes = _SERVICE_NAME.search(_read(environ, "OTEL_RESOURCE_ATTRIBUTES"))
    return _read(environ, "OTEL_SERVICE_NAME") or (unquote(in_attributes[1].strip()) if in_attributes else None)


def _endpoint(environ: Mapping[str, str], mistakes: list[str]) -> str | None:
    """The URL that receives spans: the traces variable unchanged, or the base variable with `/v1/traces` appended."""
    name = _TRACES if _read(environ, _TRACES) else _BASE
    url = _read(environ, name)
    if not url:
        return None
    # This checks only the scheme. The validator of the setting checks the rest.
    if not url.lower().startswith(("http://", "https://")):
        mistakes.append(f"{name} must be an http:// or https:// URL: traces are sent by OTLP over HTTP")
        return None
    return url if name == _TRACES else f"{url.rstrip('/')}/v1/traces"


def _headers(environ: Mapping[str, str], mistakes: list[str]) -> dict[str, str] | None:
    """Parse `name=value` pairs, separated by commas and percent-encoded. Header names become lower case, as in the
    SDK."""
    name = next((name for name in _HEADERS if _read(environ, name)), "")
    headers = {}
    for number, entry in enumerate(_read(environ, name).split(","), 1):
        key, equals, value = entry.partition("=")
        if equals and key.strip():
            headers[unquote(key).strip().lower()] = unquote(value).strip()
        elif entry.strip():
            mistakes.append(f"{name}: entry {number} is not name=value")
    return headers or None


def _sample(environ: Mapping[str, str], mistakes: list[str]) -> float | None:
    """The share of requests without `traceparent` that Antiphon traces. For requests with `traceparent`, the sender
    decides, whatever the sampler."""
    sampler = _read(environ, _SAMPLER).lower()
    kind = sampler.removeprefix(_PARENT_BASED)
    if not sampler or kind in _SHARES:
        return _SHARES.get(kind)
    if kind != _BY_RATIO:
        known = ", ".join(f"{prefix}{one}" for prefix in ("", _PARENT_BASED) for one in (*_SHARES, _BY_RATIO))
        mistakes.append(f"{_SAMPLER} is none of {known}; choose one, or set tracing.sample")
        return None
    try:
        share = float(_read(environ, _SHARE) or 1)
    except ValueError:
        share = -1.0
    if 0 <= share <= 1:
        return share
    mistakes.append(f"{_SHARE} must be a number from 0 to 1")
    return None
