"""Generates Envoy's CORS filter, which answers preflight requests from browsers.

Lives here: the filter and its policy. Not here: which headers (`types/cors.py`), where they go (`bootstrap.py`).

Invariant: without `cors.origins` there is neither.
"""

from __future__ import annotations

from antiphon.config.settings import Settings
from antiphon.envoy.messages import Config, http_filter, typed
from antiphon.types import cors

_FILTER = "envoy.filters.http.cors"


def cors_filters(settings: Settings) -> list[Config]:
    """Entries of `http_filters`, before all others that answer."""
    if not settings.cors.origins:
        return []
    # The first filter has the last word on whatever is answered, by whomever: no cache may give one page's answer to
    # another. (Headers of the virtual host are lost with answers that replace the router's.)
    vary = {"header": {"key": "vary", "value": "origin"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
    varies = typed(
        "filters.http.header_mutation.v3.HeaderMutation", mutations={"response_mutations": [{"append": vary}]}
    )
    return [
        http_filter("envoy.filters.http.header_mutation", varies),
        http_filter(_FILTER, typed("filters.http.cors.v3.Cors")),
    ]


def cors_policy(settings: Settings) -> Config:
    """Fields of the virtual host."""
    if not settings.cors.origins:
        return {}
    policy = typed(
        "filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[_matcher(origin) for origin in settings.cors.origins],
        allow_methods=cors.ALLOW_METHODS,
        allow_headers=cors.ALLOW_HEADERS,
        expose_headers=cors.EXPOSE_HEADERS,
        max_age=cors.MAX_AGE,
    )
    return {"typed_per_filter_config": {_FILTER: policy}}


def _matcher(origin: str) -> Config:
    return {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}
