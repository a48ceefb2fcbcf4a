"""Reads settings from a YAML file, environment variables and flags.

The variables of the OpenTelemetry standard are defaults of the section `tracing`
(https://opentelemetry.io/docs/specs/otel/protocol/exporter and …/configuration/sdk-environment-variables). The
OpenTelemetry SDK itself reads the variables for compression, certificates and resource attributes. The other modules of
this package define and validate the settings, and `yaml_text.py` parses YAML.

Invariants: an unknown name is an error in every source, and the error message suggests the most similar known name. An
error about an unreadable source repeats no line of the source, because the line may contain an API key. Antiphon's own
settings override the variables of OpenTelemetry. If Antiphon sends no traces, an invalid variable of OpenTelemetry is
no error.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any
from urllib.parse import unquote

from antiphon.config.problems import MAPPING, NotYaml, Place, advice, written_place
from antiphon.config.section import Section, field_paths, section_in
from antiphon.errors import ConfigError

_PREFIX = "ANTIPHON_"
CONFIG_VARIABLE = "ANTIPHON_CONFIG"
"""The variable with the path of the settings file. The flag `--config` overrides it."""
ENDPOINT_VARIABLE, KEY_VARIABLE = "OPENAI_API_ENDPOINT", "OPENAI_API_KEY"
# Variables that are not settings: the path of the settings file, and the secrets that Envoy's process reads.
_OTHERS = frozenset({CONFIG_VARIABLE, "ANTIPHON_UPSTREAM_KEY", "ANTIPHON_SIDECAR_SECRET"})
_EXTENSIONS_PREFIX = "ANTIPHON_EXTENSIONS__"
# Prefixes that `read_environment` skips: the keys of further upstreams, and the settings of extensions, which
# `_read_extensions` reads.
_NO_SETTINGS = ("ANTIPHON_UPSTREAM_KEY_", _EXTENSIONS_PREFIX)
# For a Service `antiphon`, Kubernetes sets ANTIPHON_PORT, ANTIPHON_PORT_8080_TCP, and variables such as
# ANTIPHON_PORT_8080_TCP_ADDR (also with _PORT, _PROTO). For a Service `antiphon-x` the names begin with ANTIPHON_X.
_PORT = re.compile(r"ANTIPHON(_[A-Z0-9_]+)?_PORT(_[0-9]+_(TCP|UDP|SCTP))?")
_PART_OF_PORT = re.compile(r"ANTIPHON(_[A-Z0-9_]+)?_PORT_[0-9]+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO)")
_SERVICE = re.compile(r"(ANTIPHON(?:_[A-Z0-9_]+?)??)_SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)")
_SERVICE_NAME = re.compile(r"(?:^|,)\s*service\.name\s*=([^,]+)")
_BASE, _TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_SAMPLER, _SHARE = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
_SHARES = {"always_on": 1.0, "always_off": 0.0}
_PARENT_BASED = "parentbased_"
_BY_RATIO = "traceidratio"


def merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Merge two nested mappings. Values of `above` override values of `below`."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def put(values: dict[str, object], path: Sequence[str], value: object) -> None:
    """Set the value at `path` in nested mappings, and create missing mappings."""
    for part in path[:-1]:
        below = values.setdefault(part, {})
        assert isinstance(below, dict)
        values = below
    values[path[-1]] = value


def read_file(path: Path) -> dict[object, object]:
    """Read a YAML file that contains a mapping. For an empty file, return an empty mapping. Raises `ConfigError`."""
    try:
        values = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the settings file {path} is not UTF-8, from byte {error.start} on") from None
    except NotYaml as error:
        raise ConfigError(f"the settings file {path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"the settings file {path} must be a mapping of settings (name: value)")
    return values or {}


def _yaml(text: str) -> object:
    """Parse a YAML text. Raises `NotYaml`."""
    # This function imports PyYAML only when it is needed. The import takes 10 ms and 1 MiB, and many processes read no
    # YAML.
    from antiphon.config.yaml_text import read_yaml

    return read_yaml(text)


def without_unknown(
    values: Mapping[Any, object], section: type[Section], wrong: list[str], source: str = "", place: Place = ()
) -> dict[str, object]:
    """Return `values`, the settings of a section, without unknown names. Append an error message to `wrong` for each
    unknown name."""
    found = {}
    for name, value in values.items():
        here = (*place, str(name))
        field = section.model_fields.get(str(name))
        if field is None:
            known = [written_place((*place, *path)) for path, _ in field_paths(section)]
            wrong.append(f"{source}{written_place(here)} is not a setting{advice(written_place(here), known)}")
        elif section_in(field.annotation) is field.annotation and not isinstance(value, Mapping):
            wrong.append(f"{source}{written_place(here)} {MAPPING}")
        elif Path in (field.annotation, *typing.get_args(field.annotation)) and (problem := _wrong_path(value)):
            wrong.append(f"{source}{written_place(here)} {problem}")
        else:
            found[str(name)] = _known(value, field.annotation, wrong, source, here)
    return found


def _known(value: object, kind: object, wrong: list[str], source: str, place: Place) -> object:
    """Return the value of a setting of the type `kind`, without the unknown names in its sections."""
    section = section_in(kind)
    if section is None:
        return value
    if isinstance(value, list | tuple):
        return [_known(one, section, wrong, source, (*place, number)) for number, one in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if typing.get_origin(kind) is dict:
        return {name: _known(one, section, wrong, source, (*place, name)) for name, one in value.items()}
    return without_unknown(value, section, wrong, source, place)


def _wrong_path(value: object) -> str:
    """Return an error message for a path that no system accepts, or that would name an unexpected folder (such as `~`).
    For other paths, return an empty string."""
    text = str(value)
    if not text.strip():
        return "is empty; leave the setting out, or write . for the current folder"
    if text.startswith("~"):
        return "begins with ~, which only a shell expands; write the whole path, or ./~ for a folder of that name"
    return "contains a character that no path can have" if "\0" in text else ""


def read_environment(environ: Mapping[str, str], model: type[Section], wrong: list[str]) -> dict[str, object]:
    """Read the settings in `ANTIPHON_*` variables. Two underscores separate a section and a setting.

    A list is comma-separated, or a YAML list in brackets. The value of a setting that contains further settings
    (`models`, `upstreams`) is YAML. The function appends an error message to `wrong` for each unknown setting. It
    ignores variables that Kubernetes sets for a Service named `antiphon` or `antiphon-…`.
    """
    known = {_PREFIX + "__".join(path).upper(): (path, kind) for path, kind in field_paths(model)}
    values: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in _OTHERS or name.startswith(_NO_SETTINGS):
            continue
        if name not in known:
            if not _is_of_a_service(name, text, environ):
                wrong.append(f"{name} is not a setting{advice(name, known)}")
            continue
        path, kind = known[name]
        try:
            put(values, path, _value(name, text, kind))
        except ConfigError as error:
            wrong.append(str(error))
    return merge(values, _read_extensions(environ, wrong))


def _read_extensions(environ: Mapping[str, str], wrong: list[str]) -> dict[str, object]:
    """Read the settings of tools from other packages in `ANTIPHON_EXTENSIONS__*` variables. If a variable's value is in
    brackets, the function parses the value as YAML."""
    values: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith(_EXTENSIONS_PREFIX):
            continue
        kind: object = dict[str, object] if text.lstrip()[:1] in ("[", "{") else str
        found: dict[str, object] = {}
        try:
            put(found, name.removeprefix(_PREFIX).lower().split("__"), _value(name, text, kind))
        except ConfigError as error:
            wrong.append(str(error))
        values = merge(values, found)
    return values


def read_other_names(values: Mapping[str, object], environ: Mapping[str, str], wrong: list[str]) -> dict[str, object]:
    """Read the variables `OPENAI_API_ENDPOINT`, `OPENAI_API_KEY` and `OTEL_*`, for settings that no other source sets.
    `values` has the settings from all other sources. The function appends an error message to `wrong` for each invalid
    variable."""
    own = values.get("tracing", {})
    tracing = otel_defaults(environ, own, wrong) if isinstance(own, Mapping) else {}
    return _other_upstream(values, environ) | ({"tracing": tracing} if tracing else {})


def _other_upstream(values: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, object]:
    """Read the upstream's URL from `OPENAI_API_ENDPOINT`, and the upstream's key from `OPENAI_API_KEY`. Other gateways
    use the same variables.

    Without `OPENAI_API_ENDPOINT`, `OPENAI_API_KEY` has no effect, because then the key may be for another program.
    """
    endpoint = environ.get(ENDPOINT_VARIABLE)
    upstream = values.get("upstream", {})
    if not endpoint or "upstreams" in values or not isinstance(upstream, Mapping) or "url" in upstream:
        return {}
    found = {"url": endpoint}
    key = environ.get(KEY_VARIABLE)
    if key and "api_key" not in upstream and upstream.get("auth") in (None, "inject"):
        found["api_key"] = key
    return {"upstream": found}


def _is_of_a_service(name: str, text: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes (or a Docker link) has set this variable for a Service named `antiphon` or `antiphon-…`.

    Every pod in the Service's namespace has such variables. The function also compares the value, because a mistake
    like `ANTIPHON_PORT=8080` must remain an error.
    """
    service = _SERVICE.fullmatch(name)
    if service is not None and {f"{service[1]}_SERVICE_HOST", f"{service[1]}_SERVICE_PORT"} <= environ.keys():
        return True
    if _PART_OF_PORT.fullmatch(name):
        return True
    return _PORT.fullmatch(name) is not None and re.match(r"(tcp|udp|sctp)://", text) is not None


def _value(name: str, text: str, kind: object) -> object:
    """Convert the text of a variable to a value of the type `kind`. A list is `a,b` or, as in YAML and JSON, `["a",
    "b"]`."""
    if isinstance(kind, UnionType):
        # An optional setting: the other type of the union determines how the text is parsed.
        kind = next(one for one in typing.get_args(kind) if one is not NoneType)
    listed = typing.get_origin(kind) is tuple
    if section_in(kind) is not None or typing.get_origin(kind) is dict or (listed and text.lstrip().startswith("[")):
        try:
            return _yaml(text)
        except NotYaml as error:
            raise ConfigError(f"{name} is not valid YAML: {error}") from None
    if listed:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def otel_defaults(environ: Mapping[str, str], own: Mapping[str, object], wrong: list[str]) -> dict[str, object]:
    """Return the settings of the section `tracing` that only OpenTelemetry's variables set. `own` has the settings of
    the section from all other sources.

    The function appends an error message to `wrong` for each invalid variable.
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
    """Return the variable's value, or an empty string if the variable is unset."""
    return environ.get(name, "").strip()


def _service_name(environ: Mapping[str, str]) -> str | None:
    in_attributes = _SERVICE_NAME.search(_read(environ, "OTEL_RESOURCE_ATTRIBUTES"))
    return _read(environ, "OTEL_SERVICE_NAME") or (unquote(in_attributes[1].strip()) if in_attributes else None)


def _endpoint(environ: Mapping[str, str], mistakes: list[str]) -> str | None:
    """The URL that receives spans: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` unchanged, or `OTEL_EXPORTER_OTLP_ENDPOINT`
    with `/v1/traces` appended."""
    name = _TRACES if _read(environ, _TRACES) else _BASE
    url = _read(environ, name)
    if not url:
        return None
    # This code checks only the scheme of the URL. The validator of the setting checks the rest.
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
    """Return the fraction of the requests without `traceparent` that Antiphon traces. A request with `traceparent` is
    not affected, because its sender decides."""
    sampler = _read(environ, _SAMPLER).lower()
    kind = sampler.removeprefix(_PARENT_BASED)
    if not sampler or kind in _SHARES:
        return _SHARES.get(kind)
    if kind != _BY_RATIO:
        known = ", ".join(f"{prefix}{one}" for prefix in ("", _PARENT_BASED) for one in (*_SHARES, _BY_RATIO))
        mistakes.append(f"{_SAMPLER} must be one of {known}; correct it, or set tracing.sample")
        return None
    try:
        share = float(_read(environ, _SHARE) or 1)
    except ValueError:
        share = -1.0
    if 0 <= share <= 1:
        return share
    mistakes.append(f"{_SHARE} must be a number from 0 to 1")
    return None
