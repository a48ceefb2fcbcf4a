"""Builds the routing table from the settings: which upstream serves which model.

Lives here: the routing table, and the check that all upstreams of one model have the same profile. Not here: choosing
the route of a request (`engine/exchange/model_routes.py`), the upstreams' addresses and keys (`outgoing.py`).

Invariant: upstreams that share a model have the same profile, because a request is encoded before one is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import structlog

from antiphon.app.extensions import known_profiles
from antiphon.app.trust import section
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, ModelSettings, UpstreamGroup
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM, ModelRoute, ModelRoutes, ModelRule
from antiphon.errors import ConfigError
from antiphon.translation.profiles import PROFILES, UpstreamProfile, choose_profile, read_flags, with_flags
from antiphon.types.json import raw
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.several import SeveralUpstreams

_log = structlog.get_logger(__name__)


def make_routes(settings: Settings) -> ModelRoutes:
    """Return the route of each model. Raises `ConfigError` for an unknown profile."""

    nowhere = ModelRoute(PROFILES["generic"], mode="disabled")

    def route(name: str, rule: ModelSettings | None) -> ModelRoute:
        if name not in settings.every_upstream:
            return nowhere
        upstream = settings.every_upstream[name]
        profile = _profile(upstream.profile, upstream.address[0], f"{section(name)}.profile")
        assumed = upstream.profile == "auto" and profile is PROFILES["generic"]
        if rule is not None and rule.profile is not None:
            profile = _profile(rule.profile, "", f"models ({rule.match}): profile")
            assumed = False
        flags = {**read_flags(upstream.profile_flags), **read_flags(rule.profile_flags if rule is not None else {})}
        return ModelRoute(
            with_flags(profile, flags),
            upstream=name,
            mode=rule.mode if rule is not None else "translate",
            model=rule.model if rule is not None else None,
            passthrough=upstream.auth_mode is AuthMode.PASSTHROUGH,
            headers=frozenset(upstream.header_allow),
            context_tokens=rule.context_tokens if rule is not None else None,
            models=frozenset(upstream.models),
            fields=frozenset(upstream.field_allow),
            extra={name: raw(value) for name, value in rule.extra.items()} if rule is not None else {},
            flags=flags if assumed else {},
            assumed=assumed,
        )

    def chosen(rule: ModelSettings) -> ModelRoute:
        first, *others = (route(name, rule) for name in rule.upstreams)
        group = rule.group
        if group is None or rule.mode == "disabled":
            return first
        for other in others:
            if (other.profile, other.assumed) != (first.profile, first.assumed):
                raise ConfigError(
                    f"models ({rule.match}): upstream: {first.upstream} has the profile {_shown(first)} and "
                    f"{other.upstream} {_shown(other)}, and a request is written before one of them is chosen; set "
                    "'profile' beside 'upstream'"
                )
        return replace(
            first,
            upstream=group.name,
            several=group.names,
            ordered=not group.weights,
            # `SeveralUpstreams` removes the client's Authorization for upstreams without `passthrough`.
            passthrough=first.passthrough or any(other.passthrough for other in others),
        )

    rules = tuple(ModelRule(rule.match, chosen(rule)) for rule in settings.models)
    return ModelRoutes(route(DEFAULT_UPSTREAM, None), rules)


def _shown(route: ModelRoute) -> str:
    return f"{route.profile.name} (until it says what it is)" if route.assumed else route.profile.name


def learn(routes: ModelRoutes, name: str, profile: str) -> None:
    """Record the detected profile of an upstream. Logs a warning if other upstreams of the same model have another
    profile."""
    for several in routes.learn(name, PROFILES[profile]):
        _log.warning(
            "upstreams_differ",
            upstreams=several,
            upstream=name,
            profile=profile,
            advice="requests for all of them follow the profile that was detected first: set models[].profile",
        )


def several_upstreams(settings: Settings, group: UpstreamGroup, called: Mapping[str, HttpUpstream]) -> SeveralUpstreams:
    """Return the client for a group of upstreams, in a process that calls upstreams without Envoy."""
    passed = (name for name in group.names if settings.every_upstream[name].auth_mode is AuthMode.PASSTHROUGH)
    return SeveralUpstreams({name: called[name] for name in group.names}, group.weights, passthrough=frozenset(passed))


def _profile(name: str, host: str, where: str) -> UpstreamProfile:
    try:
        return choose_profile(name, host, known_profiles())
    except KeyError:
        known = ", ".join(("auto", *known_profiles()))
        raise ConfigError(f"{where}: {name!r} is unknown; choose one of {known}") from None
