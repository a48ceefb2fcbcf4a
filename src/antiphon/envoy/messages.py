"""The few Envoy configuration messages that are used, as plain dictionaries.

Lives here: type URLs and shapes. Not here: what Antiphon wants from them (`routes.py`, `bootstrap.py`).

Invariant: nothing here reads settings.
"""

from __future__ import annotations

import json
from typing import Any

Config = dict[str, Any]

EXTENSIONS = "type.googleapis.com/envoy.extensions."
"""What the type of every extension message begins with."""


def typed(kind: str, **fields: Any) -> Config:
    """A typed extension message, `kind` below `envoy.extensions.`."""
    return {"@type": EXTENSIONS + kind, **fields}


def address(text: str) -> Config:
    """`unix:PATH` or `HOST:PORT` as an Envoy address."""
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host.strip("[]") or "0.0.0.0", "port_value": int(port)}}


def error_body(message: str, kind: str, code: str | None) -> str:
    """An OpenAI error object as text."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def direct_response(name: str, match: Config, status: int, body: str) -> Config:
    """A route that answers by itself, with JSON."""
    return {
        "name": name,
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": body}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


def http_filter(name: str, config: Config, *, disabled: bool = False) -> Config:
    """An entry of `http_filters`."""
    entry: Config = {"name": name}
    if disabled:
        entry["disabled"] = True
    return {**entry, "typed_config": config}


def listener(name: str, where: str | None, manager: Config) -> Config:
    """A listener with one HTTP connection manager; without an address one that only this Envoy's clusters reach."""
    return {
        "name": name,
        **({"internal_listener": {}} if where is None else {"address": address(where)}),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def overwritten(header: str, value: str) -> Config:
    """A header that has this value, whatever it had before."""
    return {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def cluster(name: str, endpoints: list[Config], *, retries: int = 100, **fields: Any) -> Config:
    """A cluster with these endpoint addresses; `retries` at once (one counts until its stream ends)."""
    return shaped_cluster(
        name, [{"lb_endpoints": [{"endpoint": {"address": where}} for where in endpoints]}], retries=retries, **fields
    )


def shaped_cluster(name: str, localities: list[Config], *, retries: int, **fields: Any) -> Config:
    """A cluster whose endpoints have priorities or weights."""
    return {
        "name": name,
        "connect_timeout": "5s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 100000,
                    "max_pending_requests": 100000,
                    "max_requests": 100000,
                    "max_retries": retries,
                }
            ]
        },
        **fields,
        "load_assignment": {"cluster_name": name, "endpoints": localities},
    }
