"""Merges the parts of Antiphon's Envoy configuration, such as clusters and routes, into an existing configuration.

This module parses the configuration as Envoy does and finds the listener, the connection manager and the virtual host.
This module then merges Antiphon's parts into the configuration and describes the changes. `snippet.py` generates the
parts, the package `commands` reads and writes files, and `bootstrap.to_yaml` formats the result.

Invariants: the merge loses nothing of the existing configuration, and reports every changed value. If one of Antiphon's
names already exists, nothing is merged. The input objects are not modified. Values keep the meaning that they have for
Envoy. For example, YAML 1.1 reads `1.10` as the number 1.1 and `1:20` as 80, but Envoy reads both as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import yaml

from antiphon.envoy.messages import Config, router
from antiphon.envoy.routes import NOTHING
from antiphon.errors import ConfigError

_MANAGER = "HttpConnectionManager"
_KEPT = ("resource_monitors", "actions", "bootstrap_extensions")
"""The lists in which an entry's name must be unique. If the file already has an entry with Antiphon's name, the
existing entry stays."""


class _EnvoyYamlLoader(yaml.SafeLoader):
    """Parses plain YAML scalars as Envoy's parser (yaml-cpp) does."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    bool_values = {**yaml.SafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012


_WORDS = (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"[yYnN]|(?i:yes|no|true|false|on|off)"),
    ("int", r"-?(?:0|[1-9][0-9]*|0[0-7]+|0x[0-9a-fA-F]+)"),
    # The merge key lets the loader read files that merge anchors.
    ("merge", r"<<"),
)
for _kind, _pattern in _WORDS:
    _EnvoyYamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


def read(text: str) -> object:
    """Parse the text as JSON or YAML. Raises `yaml.YAMLError`, or `RecursionError` when the text is nested too
    deeply."""
    try:
        # Some JSON is not valid YAML, for example JSON with tabs as indentation.
        return json.loads(text)
    except ValueError:
        return yaml.load(text, Loader=_EnvoyYamlLoader)


class MergeTarget(NamedTuple):
    """The names of the listener and the virtual host into which the parts are merged. None for a name means that the
    file has only one such object."""

    listener: str | None = None
    virtual_host: str | None = None


class _Place(NamedTuple):
    listener: Config
    manager: Config
    host: Config


def merged(
    theirs: object,
    parts: Config,
    wanted: MergeTarget,
    tell: Callable[[str], None],
    *,
    by_token: bool = True,
    passes_tokens: bool = False,
) -> Config:
    """Return the whole configuration with Antiphon's parts. The function calls `tell` with one line for each change.
    `by_token` is whether the settings tell owners apart by the client's token. `passes_tokens` is whether an upstream
    gets the client's Authorization header.

    Raises `ConfigError` when the target does not exist or is ambiguous, or when the configuration already uses one of
    Antiphon's names.
    """
    whole = _bootstrap(_copied(theirs))
    static = _message(whole, "static_resources")
    ours = {"clusters": parts["clusters"], "listeners": parts["listener"]}
    # An earlier merge has added a virtual host to the file, so this check comes before the search for the virtual host.
    for kind, entries in ours.items():
        _check_free(_list(static, kind), entries, f"static_resources.{kind}")
    place = _find(whole, wanted)
    filters = _list(place.manager, "http_filters")
    if not filters or filters[-1].get("name") != router()["name"]:
        raise ConfigError(
            f"--into: the last entry of http_filters must be the router filter, with the name {router()['name']}"
        )
    for kind, entries in ours.items():
        _list(static, kind).extend(entries)
    # The file must not have a filter with the same name, because a route that enables Antiphon's filter would also
    # enable the other filter.
    _check_free(filters, parts["http_filter"], "http_filters")
    filters[len(filters) - 1 : len(filters) - 1] = parts["http_filter"]
    for provider in _keeping_tokens(filters) if passes_tokens else ():
        tell(
            f"jwt_authn: the provider {provider} leaves the client's token in the request (`forward: true`), and "
            "upstreams with `auth: passthrough` would get the token. Set `auth` of the upstreams to `inject` or `none`"
        )
    for provider in _taking_tokens(filters) if by_token else ():
        tell(
            f"jwt_authn: the provider {provider} removes the token that Antiphon needs to tell owners apart, so all "
            "clients of this provider would see one another's responses. Set `forward: true` in the provider, or "
            "set owner.source to `metadata` or `header`"
        )
    routes = _list(place.host, "routes")
    # The route for unknown paths is left out, because the existing configuration already handles unknown paths.
    routes[:0] = [one for one in parts["routes"] if one["name"] != NOTHING]
    _into(place.manager, parts["connection_manager"], "connection manager", tell)
    _into(place.listener, parts["public_listener"], "listener", tell)
    _into(place.host, parts["virtual_host"], "virtual host", tell)
    for name in ("overload_manager", "bootstrap_extensions"):
        if parts.get(name):
            _into(whole, {name: parts[name]}, "", tell)
    return whole


def _bootstrap(whole: object) -> Config:
    if not isinstance(whole, dict) or not _message(whole, "static_resources"):
        raise ConfigError("--into: the file is not an Envoy bootstrap with static_resources")
    return whole


def _find(whole: Config, wanted: MergeTarget) -> _Place:
    places = list(_places(whole))
    if not places:
        raise ConfigError(
            "--into: no listener of static_resources has an HTTP connection manager with an inline route_config. "
            "If a control plane sends the routes (RDS) or the listeners (LDS), add the parts that --for snippet "
            "prints to that control plane"
        )
    found = [
        one
        for one in places
        if wanted.listener in (None, one.listener.get("name")) and wanted.virtual_host in (None, one.host.get("name"))
    ]
    if len(found) == 1:
        return found[0]
    there = ", ".join(map(_called, places))
    if found and len({_called(one) for one in found}) == 1:
        raise ConfigError(
            f"--into: several virtual hosts have the same name: {there} (listener/virtual host). Give the wanted "
            "virtual host a unique name; Envoy accepts any name"
        )
    said = "several virtual hosts match" if found else "no virtual host matches"
    raise ConfigError(
        f"--into: {said}. Choose one with --into-listener and --into-virtual-host. The file has (listener/virtual "
        f"host): {there}"
    )


def _called(place: _Place) -> str:
    return f"{place.listener.get('name', '')}/{place.host.get('name', '')}"


def _places(whole: Config) -> Iterator[_Place]:
    for listener in _list(_message(whole, "static_resources"), "listeners"):
        chains = [*_list(listener, "filter_chains"), _message(listener, "default_filter_chain")]
        for chain in chains:
            for one in _list(chain, "filters"):
                manager = _message(one, "typed_config")
                if str(manager.get("@type")).endswith(f".{_MANAGER}"):
                    for host in _list(_message(manager, "route_config"), "virtual_hosts"):
                        yield _Place(listener, manager, host)


def _taking_tokens(filters: list[Config]) -> Iterator[str]:
    """Yield the names of the jwt_authn providers that remove the token from requests."""
    return (name for name, provider in _token_providers(filters) if provider.get("forward") is not True)


def _keeping_tokens(filters: list[Config]) -> Iterator[str]:
    """Yield the names of the jwt_authn providers that leave the token in the header Authorization."""
    for name, provider in _token_providers(filters):
        headers, params, cookies = (
            provider.get(_spelled(provider, field)) or [] for field in ("from_headers", "from_params", "from_cookies")
        )
        elsewhere = headers or params or cookies
        named = any(isinstance(one, dict) and str(one.get("name")).lower() == "authorization" for one in headers)
        if provider.get("forward") is True and (named or not elsewhere):
            yield name


def _token_providers(filters: list[Config]) -> Iterator[tuple[str, Config]]:
    """Yield each provider of the filters jwt_authn with its name."""
    for one in filters:
        message = _message(one, "typed_config")
        if str(message.get("@type")).endswith(".JwtAuthentication"):
            for name, provider in _message(message, "providers").items():
                yield str(name), provider if isinstance(provider, dict) else {}


def _check_free(theirs: list[Config], ours: list[Config], what: str) -> None:
    """Raise `ConfigError` if the file's list `what` has an entry with one of Antiphon's names."""
    taken = sorted({one["name"] for one in ours if _named(theirs, one["name"])})
    if taken:
        raise ConfigError(
            f"--into: {what} already contains {', '.join(taken)}. If these names are yours, rename them everywhere "
            "in the file. If an earlier merge added them, use the file from before that merge"
        )


def _into(mine: Config, part: Config, where: str, tell: Callable[[str], None]) -> None:
    """Merge a part into a message. Antiphon's values replace existing values, and Antiphon's list entries come before
    existing entries."""
    for field, value in part.items():
        name = _spelled(mine, field)
        called = f"{where}: {field}" if where else field
        there = mine.get(name)
        if there is None:
            mine[name] = value
        elif isinstance(value, list) and isinstance(there, list):
            kept = [one for one in value if field in _KEPT and _named(there, one["name"])]
            for one in kept:
                tell(f"{called}: your value stays, {one['name']}")
            mine[name] = [*(one for one in value if one not in there and one not in kept), *there]
        elif _plain(value) and _plain(there):
            _into(there, value, called, tell)
        elif value != there:
            mine[name] = value
            # The old value is not shown when it is a message or a list, because it may contain a token.
            whole = isinstance(there, dict | list)
            tell(f"{called}: {'yours' if whole else _short(there)} is now {_short(value)}")


def _named(entries: Sequence[object], name: str) -> bool:
    return any(isinstance(one, dict) and one.get("name") == name for one in entries)


def _plain(value: object) -> bool:
    """Return whether the value is a message without `@type`, so that its fields can be merged with those of another
    message."""
    return isinstance(value, dict) and "@type" not in value and "typed_config" not in value


def _short(value: object) -> str:
    return re.sub(r"\s+", " ", str(value))[:80]


def _spelled(message: Config, field: str) -> str:
    """Return the field's name as the file spells it, because Envoy accepts both snake case and camel case."""
    camel = re.sub("_([a-z])", lambda found: found[1].upper(), field)
    return camel if camel in message else field


def _message(message: Config, field: str) -> Config:
    """Return the message in this field, or an empty one."""
    found = message.get(_spelled(message, field)) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"--into: {field} must be an object")
    return found


def _list(message: Config, field: str) -> list[Config]:
    """Return the list in this field. If the field is missing, create an empty list in the message."""
    name = _spelled(message, field)
    if message.get(name) is None:
        message[name] = []
    found = message[name]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"--into: {field} must be a list of messages")
    return found


def _copied(value: object) -> object:
    """Copy the value deeply. YAML anchors share objects, and a change to a shared object would change every use of the
    anchor."""
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value
