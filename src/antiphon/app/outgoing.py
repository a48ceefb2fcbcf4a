"""Builds the upstream clients and the guarded URL fetcher from the settings.

Lives here: building call targets, the fetcher and the connection check from the settings. Not here: calling and
fetching (`upstream/`), the other components (`build.py`).

Invariant: every URL from a client goes through the guarded fetcher.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from antiphon.app.trust import trusted, upstream_trust
from antiphon.config.limits import FetchSettings
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.errors import ConfigError
from antiphon.types.transport import Headers
from antiphon.upstream.addresses import AddressRule
from antiphon.upstream.fetch import GuardedFetcher, HostResolver, Resolve
from antiphon.upstream.http import UpstreamTarget


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
    """Return a function that checks a connection of a tool: `host, port, secure, is_registered -> address`. The
    function raises OSError if the tool may not connect.

    `registered` are the hosts that the operator configured for this tool. `resolver` creates a resolver of host names.
    Raises `ConfigError`.
    """
    try:
        rule = AddressRule(settings.fetch.allow_private)
        own = AddressRule((*settings.fetch.allow_private, *registered))
    except ValueError as error:
        raise ConfigError(f"fetch.allow_private: {error}") from None

    # Two resolvers, so that host names from clients cannot occupy the resolver threads for the operator's hosts.
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
