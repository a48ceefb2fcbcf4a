"""Builds the objects that concern owners from the settings: the check of an issuer's tokens, quotas, and the adoption
of data by named owners.

`doors/issuer_tokens.py` checks a token, and `upstream/issuer.py` reads the issuer's keys. `engine/ports/quotas.py`
decides which quotas apply to a request, and `engine/running/quotas.py` counts requests. In an adoption, a named owner
takes over the data that was stored under the hashes of its tokens. `engine/running/adoption.py` decides when an
adoption begins, and `stores/owner_data.py` moves the rows in the database.

Only this module imports the packages of the extra `jwt`, so only a gateway with `owner.source: jwt` needs these
packages.

Invariant: until all data has moved, the old owner (a token's hash) counts as an owner with data. So if the process is
killed, or a container is in use, a later adoption moves the remaining data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

from antiphon.app.keys import known_bodies
from antiphon.app.trust import trusted
from antiphon.config.limits import QuotaLimits, QuotaSettings
from antiphon.config.owners import JwtSettings, OwnerSettings
from antiphon.config.problems import extra_missing
from antiphon.config.settings import Settings
from antiphon.config.upstreams import PriceSettings
from antiphon.config.urls import shown_text
from antiphon.doors.owners import ClaimNames, LeftClaims
from antiphon.engine.ports.callers import NAMED, KnownTokens
from antiphon.engine.ports.quotas import MEASURES, STOCKS, Amounts, Kind, Measure, QuotaCounters, QuotaRules, Stock
from antiphon.engine.ports.state import NotMovable
from antiphon.engine.running.adoption import Adoption
from antiphon.engine.running.quotas import Quotas
from antiphon.ids import new_id
from antiphon.observability.endings import Endings
from antiphon.observability.metrics import Metrics
from antiphon.stores import Stores
from antiphon.stores.audit import AuditEntry
from antiphon.stores.choice import backend_of


@asynccontextmanager
async def open_identities(settings: JwtSettings) -> AsyncIterator[KnownTokens]:
    """Yield the object that checks the issuer's tokens. Until the context ends, a task reads the issuer's keys again at
    intervals. Raises `ConfigError`."""
    try:
        from antiphon.doors.issuer_tokens import Identities, TokenKeys, TokenRules, read_keys
    except ImportError:
        raise extra_missing("owner.source: jwt", "jwt") from None
    from antiphon.engine.running.issuer_keys import IssuerKeys

    def read(data: bytes) -> TokenKeys:
        return read_keys(data, settings.algorithms)

    held = IssuerKeys(_fetch(settings), read, url=_keys_url(settings), refresh=settings.refresh, stale=settings.stale)
    rules = TokenRules(
        settings.issuer,
        settings.audience,
        settings.algorithms,
        ClaimNames(settings.owner_claim, settings.name_claim, settings.team_claim),
        settings.leeway,
    )
    await held.open()
    try:
        yield Identities(held, rules)
    finally:
        await held.aclose()


async def try_issuer(settings: JwtSettings) -> tuple[str, str]:
    """Read the issuer's keys once. Returns the URL or the file that Antiphon read, without secrets, and the cause if
    the keys could not be read (empty: success). Raises `ConfigError`."""
    try:
        from antiphon.doors.issuer_tokens import read_keys
    except ImportError:
        raise extra_missing("owner.source: jwt", "jwt") from None
    from antiphon.upstream.issuer import IssuerUnread

    url, cause = "", ""
    try:
        if not read_keys(await _fetch(settings)(), settings.algorithms):
            cause = "the key set has no key for the algorithms of owner.jwt.algorithms"
    except (IssuerUnread, ValueError) as error:
        url, cause = error.url if isinstance(error, IssuerUnread) else "", str(error)
    return shown_text(url or _keys_url(settings)), cause


def left_claims(owner: OwnerSettings) -> LeftClaims | None:
    """Return the metadata keys under which an Envoy filter writes the client's claims. Returns None if `owner.source`
    is not `metadata`."""
    if owner.source != "metadata":
        return None
    left = owner.metadata
    return LeftClaims(
        ClaimNames(left.owner_claim, left.name_claim, left.team_claim), left.namespace, left.key, owner.header
    )


def _fetch(settings: JwtSettings) -> Callable[[], Awaitable[bytes]]:
    # The module imports an HTTP client, which `antiphon admin` and most gateways do not need.
    from antiphon.upstream.issuer import read_discovered, read_file, read_url

    if settings.jwks and "://" not in settings.jwks:
        return partial(read_file, Path(settings.jwks))
    tls = trusted("owner.jwt.ca_file", settings.ca_file)
    if settings.jwks:
        return partial(read_url, settings.jwks, tls)
    return partial(read_discovered, settings.issuer, tls)


def _keys_url(settings: JwtSettings) -> str:
    """The URL or the file from which Antiphon reads the issuer's keys, or the URL of the issuer's OpenID
    configuration."""
    from antiphon.upstream.issuer import discovery_url

    return settings.jwks or discovery_url(settings.issuer)


def make_adoption(
    settings: Settings, stores: Stores, *, moved: Callable[[str], None] = lambda _kind: None
) -> Adoption | None:
    """Return the object that moves data to named owners. Returns None if no key names an owner, or if the state is in
    memory. After each step of a move, the object calls `moved` with the kind of the moved data."""
    owner = settings.owner
    if owner.source != "bearer" or not (owner.keys or owner.managed_keys) or settings.state.place.kind == "memory":
        return None

    async def has_data(old: str) -> bool:
        return await stores.usage.has_data(old) or await _has_containers(settings, stores, old)

    async def move(old: str, new: str) -> None:
        # The statements of the move find only entries in the journal's table.
        await stores.journal.move_batches()
        async with aclosing(
            await backend_of(settings.state, settings.data).open_owner_data(known_bodies(settings))
        ) as data:
            if problems := await data.obstacles(old, new):
                raise NotMovable(" ".join(problems))
            # This function stores the audit row first, because an interrupted move may already have moved data.
            await stores.audit.note(AuditEntry("server", "adopt-owner", old, new))
            async with aclosing(data.move(old, new)) as moving:
                async for kind in moving:
                    moved(kind)
        # This function imports the package only here, because most gateways adopt nothing.
        from antiphon.tools.code_interpreter import OwnersContainers

        if left := await OwnersContainers(settings.data, stores.containers).move(old, new):
            raise NotMovable(f"Containers are in use: {', '.join(left)}.")
        moved("containers")

    return Adoption(has_data, move)


async def _has_containers(settings: Settings, stores: Stores, owner: str) -> bool:
    """Return whether the owner has containers. `OwnerData.move` does not move containers, so after a move the old owner
    may still have containers."""
    if stores.containers is not None:
        return await stores.containers.count([owner]) > 0
    if not (settings.data / "containers").exists():
        return False
    from antiphon.tools.code_interpreter import OwnersContainers

    return owner in await OwnersContainers(settings.data).count()


def quota_rules(settings: QuotaSettings) -> QuotaRules:
    """Return all quotas of the settings. The entry of a named owner, key or team also contains the limits that it
    inherits from `each_owner`, `each_key` or `each_team`."""
    each: dict[Kind, QuotaLimits] = {
        "owner": settings.each_owner,
        "key": settings.each_key,
        "team": settings.each_team,
        "model": QuotaLimits(),
    }
    named: dict[Kind, Mapping[str, QuotaLimits]] = {
        "owner": settings.owners,
        "key": settings.keys,
        "team": settings.teams,
        "model": settings.models,
    }
    return QuotaRules(
        {kind: _amounts(limits) for kind, limits in each.items()},
        {
            kind: {name: _amounts(limits.over(each[kind])) for name, limits in given.items()}
            for kind, given in named.items()
        },
    )


def storage_limits(settings: Settings) -> tuple[QuotaRules, Mapping[str, Sequence[str]]]:
    """Return the quotas of the settings, and the owners that the settings assign to each team."""
    teams: dict[str, list[str]] = {}
    for name, owner in (settings.owner.keys or {}).items():
        if owner.team:
            teams.setdefault(owner.team, []).append(f"{NAMED}{name}")
    return quota_rules(settings.quotas), teams


def make_quotas(
    settings: QuotaSettings,
    counters: QuotaCounters,
    price_of: Callable[[str], PriceSettings | None],
    metrics: Metrics,
    endings: Endings,
) -> Quotas | None:
    """Return the quotas of a process, or None when the settings limit nothing. `endings` has the requests that have
    ended and are not settled yet."""
    if not settings.in_force:
        return None

    def cost(model: str, read: int, written: int) -> int:
        price = price_of(model)
        return price.cost(read, 0, written) if price is not None else 0

    return Quotas(
        quota_rules(settings),
        counters,
        new_id,
        cost=cost,
        expected_output=settings.expected_output_tokens,
        shadow=settings.shadow,
        refuses=settings.when_unavailable == "refuse",
        warn_share=settings.warn_share,
        refused=metrics.quota_refusals.add,
        settle=endings.tell,
    )


def _amounts(limits: QuotaLimits) -> Amounts:
    """Return the limits that are set, by their names (such as `tokens_per_month`). A limit of cost is in millionths of
    the currency."""
    found: dict[Measure | Stock, int] = {}
    for name in (*MEASURES, *STOCKS):
        value = getattr(limits, name, None)
        if value is not None:
            found[name] = round(value * 1_000_000) if name == "cost_per_month" else value
    return found
