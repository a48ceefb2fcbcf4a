"""Where settings come from: a YAML file, the environment, flags.

Lives here: reading and merging the sources into one nested mapping. Not here: what settings there are and whether their
values are right (`antiphon.config`).

Invariants: an unknown name is an error in every source, with the nearest known name as advice; what is said about a
source that cannot be read holds no line of it, since a key may stand there.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antiphon.config.otel import otel_defaults
from antiphon.config.problems import NotYaml, advice, shown_name
from antiphon.config.reading import SecretStr
from antiphon.config.section import Section
from antiphon.config.state_url import HIDDEN
from antiphon.errors import ConfigError

_PREFIX = "ANTIPHON_"
CONFIG_VARIABLE = "ANTIPHON_CONFIG"
"""Names the settings file when no flag does."""
ENDPOINT_VARIABLE, KEY_VARIABLE = "OPENAI_API_ENDPOINT", "OPENAI_API_KEY"
# No settings: where settings are, and what carries secrets to Envoy's process.
_OTHERS = frozenset({CONFIG_VARIABLE, "ANTIPHON_UPSTREAM_KEY", "ANTIPHON_SIDECAR_SECRET"})
_KEYS_PREFIX = "ANTIPHON_UPSTREAM_KEY_"
# ANTIPHON_PORT, ANTIPHON_PORT_8080_TCP and that with _ADDR, _PORT, _PROTO; the same of a Service antiphon-x.
_PORT = re.compile(r"ANTIPHON(_[A-Z0-9_]+)?_PORT(_[0-9]+_(TCP|UDP|SCTP))?")
_PART_OF_PORT = re.compile(r"ANTIPHON(_[A-Z0-9_]+)?_PORT_[0-9]+_(TCP|UDP|SCTP)_(ADDR|PORT|PROTO)")
_SERVICE = re.compile(r"(ANTIPHON(?:_[A-Z0-9_]+?)??)_SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)")
_REDACTED = str(SecretStr("x"))
_HIDDEN_IN_URL = re.compile(rf"://[^/?#]*:{re.escape(HIDDEN)}@|[?&]\w*password={re.escape(HIDDEN)}(&|$)", re.IGNORECASE)
_NO_SECRET = "is what is shown in place of a secret; put the secret there, or leave it out and set its variable"


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings, the second over the first."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_file(path: Path, model: type[Section], wrong: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file, without what is no setting, which is added to `wrong`.

    Raises `ConfigError` for a file that cannot be read at all.
    """
    try:
        values = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the settings file {path} is not UTF-8, from byte {error.start} on") from None
    except NotYaml as error:
        raise ConfigError(f"the settings file {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"the settings file {path} must hold a mapping of settings")
    return _known(values, model, str(path), (), wrong)


def _yaml(text: str) -> Any:
    """What a text in YAML says. Raises `NotYaml`."""
    # A process whose settings are flags and single words has none to read: 10 ms, 1 MiB.
    from antiphon.config.yaml_text import read_yaml

    return read_yaml(text)


def _known(
    values: Mapping[Any, Any], model: type[Section], source: str, above: tuple[str, ...], wrong: list[str]
) -> dict[str, Any]:
    """The values that belong to a setting; what is wrong about the others is added to `wrong`."""
    found = {}
    for name, value in values.items():
        path = ".".join((*above, shown_name(name)))
        kind = model.kinds().get(str(name))
        if kind is None:
            known = [".".join(known) for known, _ in field_paths(model, above)]
            wrong.append(f"{source}: {path} is not a setting{advice(path, known)}")
            continue
        if isinstance(kind, type) and issubclass(kind, Section):
            if not isinstance(value, Mapping):
                wrong.append(f"{source}: {path} must hold a mapping of settings")
                continue
            value = _known(value, kind, source, (*above, str(name)), wrong)
        found[str(name)] = value
    return found


def redacted_values(values: Any, above: tuple[str, ...] = ()) -> list[str]:
    """What is wrong about values that are what is shown in place of a secret."""
    if isinstance(values, Mapping):
        parts = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list | tuple):
        parts = [(str(number), value) for number, value in enumerate(values)]
    else:
        shown = _REDACTED if values == _REDACTED else ""
        if isinstance(values, str) and _HIDDEN_IN_URL.search(values):
            shown = HIDDEN
        return [f"{'.'.join(above)}: {shown} {_NO_SECRET}"] if shown else []
    return [line for name, value in parts for line in redacted_values(value, (*above, name))]


def read_environment(environ: Mapping[str, str], model: type[Section], wrong: list[str]) -> dict[str, Any]:
    """The settings in `ANTIPHON_*` variables; two underscores stand between a section and its setting.

    Lists are separated by commas or YAML in brackets; what holds settings of its own (`models`, `upstreams`) is YAML.
    Variables that are no settings are added to `wrong`, but for those that Kubernetes makes of a Service's name.
    """
    known = {_PREFIX + "__".join(path).upper(): (path, kind) for path, kind in field_paths(model)}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(_PREFIX) or name in _OTHERS or name.startswith(_KEYS_PREFIX):
            continue
        if name not in known:
            if not _is_of_a_service(name, text, environ):
                wrong.append(f"{name} is not a setting{advice(name, known)}")
            continue
        path, kind = known[name]
        section = values
        for part in path[:-1]:
            section = section.setdefault(part, {})
        try:
            section[path[-1]] = _value(name, text, kind)
        except ConfigError as error:
            wrong.append(str(error))
    return values


def read_other_names(values: Mapping[str, Any], environ: Mapping[str, str], wrong: list[str]) -> dict[str, Any]:
    """Values from well-known variables without our prefix, where `values` (all other sources) lack them: the
    upstream's, and OpenTelemetry's. Unusable ones are added to `wrong`."""
    own = values.get("tracing", {})
    tracing = otel_defaults(environ, own, wrong) if isinstance(own, Mapping) else {}
    return _other_upstream(values, environ) | ({"tracing": tracing} if tracing else {})


def _other_upstream(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """By the names that gateways of this kind share: `OPENAI_API_ENDPOINT` for its URL, and `OPENAI_API_KEY` for that
    URL alone.

    A key that merely lies in the environment is never sent anywhere: it may be meant for somebody else.
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
    """Whether Kubernetes (or Docker, of a link) says by this where a Service named `antiphon` or `antiphon-…` is.

    Every pod beside such a Service has these variables. Names alone would swallow somebody's `ANTIPHON_PORT=8080`.
    """
    service = _SERVICE.fullmatch(name)
    if service is not None and {f"{service[1]}_SERVICE_HOST", f"{service[1]}_SERVICE_PORT"} <= environ.keys():
        return True
    if _PART_OF_PORT.fullmatch(name):
        return True
    return _PORT.fullmatch(name) is not None and re.match(r"(tcp|udp|sctp)://", text) is not None


def _value(name: str, text: str, kind: Any) -> Any:
    """The text of a variable as a value of this type; lists are `a,b` or, as in YAML and JSON, `["a", "b"]`."""
    nested = typing.get_origin(kind) is dict or any(
        isinstance(part, type) and issubclass(part, Section) for part in typing.get_args(kind)
    )
    listed = typing.get_origin(kind) is tuple
    if nested or (listed and text.lstrip().startswith("[")):
        try:
            return _yaml(text)
        except NotYaml as error:
            raise ConfigError(f"{name} is not valid YAML: {error}") from None
    if listed:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def field_paths(model: type[Section], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every setting as its path and type, sections first to last."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, kind in model.kinds().items():
        if isinstance(kind, types.UnionType):
            kind = next((part for part in typing.get_args(kind) if part is not type(None)), kind)
        if isinstance(kind, type) and issubclass(kind, Section):
            found += field_paths(kind, (*above, name))
        else:
            found.append(((*above, name), kind))
    return found
