"""Applies the patches of an EnvoyFilter to an Envoy's configuration, as Istio does.

Lives here: the operations that Antiphon's EnvoyFilter uses, on plain dictionaries. Not here: the patches themselves
(`antiphon/envoy/istio.py`).

Istio adds clusters and listeners last, so no patch sees objects that another patch added. A MERGE works as in protobuf:
it replaces single values, and appends to lists. A MERGE replaces an entry of a map, or a message of another type, as a
whole. A real istiod produced the same order of filters and routes from the same patches.
"""

from __future__ import annotations

import copy
from typing import Any

_MANAGER = "envoy.filters.network.http_connection_manager"
_LAST = ("CLUSTER", "LISTENER")


def applied(bootstrap: dict[str, Any], envoy_filter: dict[str, Any]) -> dict[str, Any]:
    """The bootstrap with the patches applied. The bootstrap's listeners and routes stand for the configuration that
    Istio sends."""
    whole = copy.deepcopy(bootstrap)
    static = whole["static_resources"]
    patches = envoy_filter["spec"]["configPatches"]
    for patch in patches:
        if patch["patch"]["operation"] != "ADD":
            for listener in static["listeners"]:
                _change(listener, patch)
    for patch in patches:
        if patch["patch"]["operation"] == "ADD":
            assert patch["applyTo"] in _LAST
            static.setdefault(f"{patch['applyTo'].lower()}s", []).append(patch["patch"]["value"])
    return whole


def _change(listener: dict[str, Any], patch: dict[str, Any]) -> None:
    kind, operation, value = patch["applyTo"], patch["patch"]["operation"], patch["patch"]["value"]
    matches = [patch["match"].get(name, {}) for name in ("listener", "routeConfiguration")]
    if listener["address"]["socket_address"]["port_value"] not in [one.get("portNumber") for one in matches]:
        return
    managers = [one for chain in listener["filter_chains"] for one in chain["filters"] if one["name"] == _MANAGER]
    if (kind, operation) == ("LISTENER", "MERGE"):
        _merge(listener, value)
    for one in managers:
        manager = one["typed_config"]
        hosts = manager["route_config"]["virtual_hosts"]
        match (kind, operation):
            case ("NETWORK_FILTER", "MERGE"):
                assert matches[0]["filterChain"]["filter"]["name"] == one["name"]
                assert value["typed_config"]["@type"] == manager["@type"]
                _merge(manager, value["typed_config"])
            case ("HTTP_FILTER", "INSERT_BEFORE"):
                names = [each["name"] for each in manager["http_filters"]]
                place = names.index(matches[0]["filterChain"]["filter"]["subFilter"]["name"])
                manager["http_filters"].insert(place, value)
            case ("VIRTUAL_HOST", "MERGE"):
                for host in hosts:
                    _merge(host, value)
            case ("HTTP_ROUTE", "INSERT_FIRST"):
                for host in hosts:
                    host.setdefault("routes", []).insert(0, value)
            case ("HTTP_ROUTE", "INSERT_AFTER"):
                for host in hosts:
                    host.setdefault("routes", []).append(value)
            case ("LISTENER", "MERGE"):
                pass
            case _:
                raise AssertionError(f"not Istio's: {operation} of {kind}")


def _merge(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, value in theirs.items():
        there = mine.get(name)
        if isinstance(value, list):
            mine[name] = [*(there or []), *copy.deepcopy(value)]
        elif (
            isinstance(value, dict)
            and isinstance(there, dict)
            and name not in ("typed_config", "typed_per_filter_config")
        ):
            _merge(there, value)
        elif name == "typed_per_filter_config" and isinstance(there, dict):
            there.update(value)
        else:
            mine[name] = copy.deepcopy(value)
