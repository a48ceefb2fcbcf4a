"""Builds the objects that call other servers: the upstream of each model, the clients of upstreams, and the URL
fetcher.

This module builds the table of models and upstreams, the targets of calls, and the URL fetcher that checks addresses.
This module also builds the function that decides whether a tool may connect to a host.
`engine/exchange/model_routes.py` chooses the route of a request, and the package `upstream` calls and fetches.
`build.py` builds the other components.

Invariants: upstreams that share a model have the same profile, because the sidecar encodes a request before the
upstream is chosen. Only the guarded fetcher requests the URLs that clients send.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from antiphon.app.extensions import known_profiles
from antiphon.app.trust import section, trusted, upstream_trust
from antiphon.config.limits import FetchSettings
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, ModelSettings, UpstreamGroup, UpstreamSettings
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM, ModelRoute, ModelRoutes, ModelRule
from antiphon.errors import ConfigError
from antiphon.translation.profiles import PROFILES, UpstreamProfile, choose_profile, read_flags, with_flags
from antiphon.types.json import raw
from antiphon.types.transport import Headers
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.fetch import AddressRule, GuardedFetcher, HostResolver, Resolve
from antiphon.upstream.http import UpstreamTarget
from antiphon.upstream.routing import SeveralUpstreams

_log = structlog.get_logger(__name__)


def direct_target(name: str, upstream: UpstreamSettings) -> UpstreamTarget:
    """Return the target of direct calls to this upstream, without Envoy. Raises `ConfigError`."""
    headers: Headers = (("host", upstream.authority),) if upstream.host else ()
    if upstream.auth_mode is AuthMode.INJECT and upstream.api_key is not None:
        headers = (*headers, ("authorization", f"Bearer {upstream.api_key.get_secret_value()}"))
    context = upstream_trust(name, upstream)
    return UpstreamTarget(upstream.url, headers=headers, ssl=context)


def make_fetcher(fetch: FetchSettings) -> GuardedFetcher:
    """Return the fetcher for URLs from clients and models. Raises `ConfigError`."""
    try:
        rule = AddressRule(fetch.allow_private)
    except ValueError as error:
        raise ConfigError(f"fetch.allow_private: {error}") from None
    # Without `ca_file`, the fetcher uses the system's certificates. The certificates are loaded once per process at the
    # first use, because loading takes 30 ms and 4 MiB.
    tls = trusted("fetch.ca_file", fetch.ca_file) if fetch.ca_file is not None else None
    return GuardedFetcher(fetch, rule, tls=tls)


def make_permit(
    settings: Settings, registered: Iterable[str], *, resolver: Callable[[], Resolve] = HostResolver
) -> Callable[[str, int, bool, bool], Awaitable[str]]:
    """Return a function that decides whether a tool may connect to a host: `host, port, secure, is_registered ->
    address`. The function raises OSError if the tool may not connect.

    `registered` are the hosts that the operator configured for this tool. `resolver` creates a resolver of host names.
    Raises `ConfigError`.
    """
    try:
        rule = AddressRule(settings.fetch.allow_private)
        own = AddressRule((*settings.fetch.allow_private, *registered))
    except ValueError as error:
        raise ConfigError(f"fetch.allow_private: {error}") from None

    # Clients' host names and the operator's hosts have separate resolvers, so that clients cannot occupy the resolver
    # threads for the operator's hosts.
    names, own_names = resolver(), resolver()

    async def permit(host: str, port: int, secure: bool, is_registered: bool) -> str:
        judge = own if is_registered else rule
        if not secure and not is_registered and not rule.is_named(host) and not settings.fetch.http:
            raise PermissionError("plain http")
        try:
            addresses = await (own_names if is_registered else names)(host, port)
        except UnicodeError:
            raise PermissionError("no name") from None
        # All addresses must be allowed: a name with one private address is suspicious, even if others are public.
        if not addresses or not all(judge.allows(host, address) for address in addresses):
            raise PermissionError("not public")
        return addresses[0]

    return permit


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

    def chosen(number: int, rule: ModelSettings) -> ModelRoute:
        first, *others = (route(name, rule) for name in rule.upstreams)
        first = replace(first, entry=f"models[{number}] (match: {rule.match})")
        group = rule.group
        if group is None or rule.mode == "disabled":
            return first
        for other in others:
            if (other.profile, other.assumed) != (first.profile, first.assumed):
                raise ConfigError(
                    f"models ({rule.match}): the upstreams {_shown(first)} and {_shown(other)} have different "
                    "profiles. Antiphon translates a request for one profile before it chooses the upstream. Set "
                    "'profile' in this entry of 'models', next to 'upstream'."
                )
        return replace(
            first,
            upstream=group.name,
            several=group.names,
            ordered=not group.weights,
            # `SeveralUpstreams` removes the client's Authorization for upstreams without `passthrough`.
            passthrough=first.passthrough or any(other.passthrough for other in others),
        )

    rules = tuple(ModelRule(rule.match, chosen(number, rule)) for number, rule in enumerate(settings.models))
    return ModelRoutes(route(DEFAULT_UPSTREAM, None), rules)


def _shown(route: ModelRoute) -> str:
    until = " until Antiphon has detected the server" if route.assumed else ""
    return f"{route.upstream} (profile {route.profile.name}{until})"


def learn(routes: ModelRoutes, name: str, profile: str) -> None:
    """Record the detected profile of an upstream. Logs a warning if other upstreams of the same model have another
    profile."""
    for several in routes.learn(name, PROFILES[profile]):
        _log.warning(
            "upstreams_differ",
            upstreams=several,
            upstream=name,
            profile=profile,
            advice=(
                "Antiphon uses the profile that it detected first for all of these upstreams; choose the profile with "
                "models[].profile"
            ),
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
