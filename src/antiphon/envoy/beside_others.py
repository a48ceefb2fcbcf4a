"""The parts for a listener that others' routes stand on too.

Lives here: what of our parts holds for a whole listener or process, and the same said for our routes alone where Envoy
can. Not here: the parts (`snippet.py`), who prints them (`gateway_api.py`, `istio.py`).

What only a whole listener can be told is left to whoever runs it: times for heads and idle connections, the spelling of
paths, limits of its process, tracing. One thing is kept although it holds for every request of the listener: headers of
trust are taken from what clients send, for by them routes are chosen.

Invariant: a request on somebody else's route gets the same answer as without Antiphon, but for those headers.
"""

from __future__ import annotations

from typing import Any

from antiphon.envoy.local_replies import mapper, where
from antiphon.envoy.messages import Config
from antiphon.envoy.routes import NOT_FOUND, NOTHING, NOWHERE

Parts = dict[str, Any]
PREFLIGHT = "preflight"
"""The name of routes that only the cors filter answers."""


def beside_others(found: Parts) -> Parts:
    """`snippet.parts`, of which nothing changes what others' routes do."""
    manager = found["connection_manager"]
    ours = f"xds.cluster_name in [{', '.join(repr(one['name']) for one in found['clusters'])}]"
    replies = manager["local_reply_config"]
    asked = f"xds.route_name == '{PREFLIGHT}' && response.code_details == 'no_healthy_upstream'"
    no_page = mapper(asked, NOT_FOUND, None, "invalid_request_error", status_code=404)
    kept = {
        "early_header_mutation_extensions": manager["early_header_mutation_extensions"],
        "local_reply_config": {**replies, "mappers": [no_page, *(_only(ours, one) for one in replies["mappers"])]},
        "access_log": [_only(ours, one) for one in manager["access_log"]],
    }
    routes = [one for one in found["routes"] if one["name"] != NOTHING]
    if "typed_per_filter_config" in found["virtual_host"]:
        routes += _preflights(routes)
    return {
        **found,
        "connection_manager": kept,
        "public_listener": {},
        "overload_manager": {},
        "virtual_host": {},
        "routes": [_with_hosts_fields(one, found["virtual_host"], manager["stream_idle_timeout"]) for one in routes],
    }


def _only(ours: str, entry: Config) -> Config:
    """An entry with a filter, for our clusters alone. Theirs comes first: it is made to be cheap."""
    chosen = entry["filter"]
    filters = chosen["and_filter"]["filters"] if "and_filter" in chosen else [chosen]
    return {**entry, "filter": {"and_filter": {"filters": [*filters, where(ours)]}}}


def _preflights(routes: list[Config]) -> list[Config]:
    """What a page asks before it posts to a path that is passed on: for the cors filter, which needs a route."""
    paths = {one["match"]["path"]: None for one in routes if one["name"].startswith("model/")}
    asked = {"name": ":method", "string_match": {"exact": "OPTIONS"}}
    return [
        {
            "name": PREFLIGHT,
            "match": {"path": path, "headers": [asked]},
            "route": {"cluster": NOWHERE, "timeout": "0s"},
        }
        for path in paths
    ]


def _with_hosts_fields(route: Config, host: Config, idle: str) -> Config:
    """The route with what its virtual host would say, and the time for silence that the listener would allow."""
    filters = {**host.get("typed_per_filter_config", {}), **route.get("typed_per_filter_config", {})}
    headers = [*route.get("response_headers_to_add", ()), *host.get("response_headers_to_add", ())]
    return {
        **route,
        "route": {**route["route"], "idle_timeout": idle},
        "response_headers_to_add": headers,
        **({"typed_per_filter_config": filters} if filters else {}),
    }
