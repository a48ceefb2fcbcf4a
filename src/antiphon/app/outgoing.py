"""Builds the upstream clients and the guarded URL fetcher from the settings.

Lives here: targets and guards made of settings. Not here: calling and fetching (`upstream/`), the rest (`build.py`).

Invariant: whatever a client can name goes through the guarded fetcher.
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
    """Where a call of this upstream goes when no Envoy is between. Raises `ConfigError`."""
    headers: Headers = (("host", upstream.authority),) if upstream.host else ()
    if upstream.auth_mode is AuthMode.INJECT and upstream.api_key is not None:
        headers = (*headers, ("authorization", f"Bearer {upstream.api_key.get_secret_value()}"))
    context = upstream_trust(name, upstream)
    return UpstreamTarget(upstream.url, headers=headers, ssl=context)


def make_fetcher(fetch: FetchSettings) -> GuardedFetcher:
    """Fetches what clients and models name by URL. Raises `ConfigError`."""
    try:
        rule = AddressRule(fetch.allow_private)
    except ValueError as error:
        raise ConfigError(f"fetch.allow_private: {error}") from None
    # Those of the system are read once for the process, when one is first needed: 30 ms and 4 MiB each time.
    tls = trusted("fetch.ca_file", fetch.ca_file) if fetch.ca_file is not None else None
    return GuardedFetcher(fetch, rule, tls=tls)


def make_permit(
    settings: Settings, registered: Iterable[str], *, resolver: Callable[[], Resolve] = HostResolver
) -> Callable[[str, int, bool, bool], Awaitable[str]]:
    """Judges where a tool may connect to: `host, port, secure, registered -> address`, or OSError.

    `registered` are the hosts that the operator named for the purpose; `resolver` makes what knows the addresses of
    names. Raises `ConfigError`.
    """
    try:
        rule = AddressRule(settings.fetch.allow_private)
        own = AddressRule((*settings.fetch.allow_private, *registered))
    except ValueError as error:
        raise ConfigError(f"fetch.allow_private: {error}") from None

    # Hosts that clients name do not take the threads of those that the operator named.
    names, own_names = resolver(), resolver()

    async def permit(host: str, port: int, secure: bool, is_registered: bool) -> str:
        judge = own if is_registered else rule
        if not secure and not is_registered and not rule.is_named(host) and not settings.fetch.http:
            raise PermissionError("plain http")
        try:
            addresses = await (own_names if is_registered else names)(host, port)
        except UnicodeError:
            raise PermissionError("no name") from None
        # All of them: a name with one private address is not to be trusted with the others.
        if not addresses or not all(judge.allows(host, address) for address in addresses):
            raise PermissionError("not public")
        return addresses[0]

    return permit
