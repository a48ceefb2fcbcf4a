"""At the start of a gateway, checks the files that settings name, and logs warnings for the operator.

This module finds unusable certificates, a listener that exposes the gateway's API keys, and file contents that other
machines cannot read. The module also finds limits without effect, and upstreams that may get identity tokens.
`app/trust.py`, `doors/listening.py` and `envoy/clusters.py` use the certificates. `serving_process.py` checks that
upstreams answer, and `commands/doctor/command.py` checks their features. The package `config` validates the settings.
`antiphon envoy-config` checks no files, because its output may be for another machine.

Invariants: with `door: envoy` and with `door: http`, an unusable file raises `ConfigError` with the setting and the
file. Each warning is one line with advice. No line contains a secret.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec

import structlog

from antiphon.app.trust import upstream_trust
from antiphon.config.limits import QuotaLimits
from antiphon.config.problems import extra_missing
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.doors.listening import TlsFiles, check_readable, max_requests
from antiphon.engine.ports.callers import NAMED, ClientKey, settings_key_id
from antiphon.local_keys import exposed
from antiphon.types.transport import CONSOLE_PATH

CONTENTS_ADVICE = (
    "only the machine that received an uploaded file can read it, and other machines answer 503 content_elsewhere: "
    "set blobs.url to a bucket that all machines share"
)
"""The advice to print if `contents_are_here_alone` returns true."""

IDLE_QUOTA_ADVICE = "correct the name in the setting, or set 'prices' for a limit of cost"
"""The advice for each entry that `idle_quotas` returns."""

OMITTED_OWNER_ADVICE = "correct the owner's name, add the owner to quotas.owners, or set quotas.each_owner"
"""The advice for an owner for which `QuotaSettings.omits_owner` returns true."""

OMITTED_TEAM_ADVICE = "correct the team's name, add the team to quotas.teams, or set quotas.each_team"
"""The advice for a team for which `QuotaSettings.omits_team` returns true."""

PASSED_IDENTITY_ADVICE = (
    "the upstream gets the client's Authorization header: set the upstream's auth to inject (with an api_key) or none, "
    "unless the proxy removes the token that identifies the client from this header"
)
"""The advice for the upstreams that `passed_identities` returns."""

_CONSOLE_PACKAGES = ("jinja2", "markdown_it", "nh3")

_log = structlog.get_logger(__name__)


def check_named_files(settings: Settings) -> None:
    """Check the files that this machine needs for `antiphon up`. Raises `ConfigError`."""
    for name, upstream in settings.every_upstream.items():
        upstream_trust(name, upstream)
    if settings.door == "envoy":
        check_sidecar_files(settings)


def check_sidecar_files(settings: Settings) -> None:
    """Check the files in `sidecar.tls`, for the sidecar and for Envoy. Raises `ConfigError`."""
    if (files := sidecar_tls(settings)) is None:
        return
    files.context("h2")
    for name in ("ca", "envoy_cert", "envoy_key"):
        if (file := getattr(settings.sidecar.tls, name)) is not None:
            check_readable(f"sidecar.tls.{name}", file)


def check_console(settings: Settings) -> None:
    """Check that the console has its packages, if it is enabled. Raises `ConfigError`."""
    if settings.console.enabled and not all(map(find_spec, _CONSOLE_PACKAGES)):
        raise extra_missing("console.enabled", "console")


def console_url(where: str) -> str:
    """The URL of the console. `where` is the address of its listener."""
    return f"http://{where}{CONSOLE_PATH}"


def log_console(where: str) -> None:
    """Log the URL of the console, whose listener has the address `where`."""
    _log.info("console", url=console_url(where))


def sidecar_tls(settings: Settings) -> TlsFiles | None:
    """The TLS files of the sidecar's TCP ports, or None if these ports do not use TLS."""
    files = settings.sidecar.tls
    return TlsFiles(files.cert, files.key, files.client_ca) if files.cert and files.key else None


def warn(settings: Settings) -> None:
    """Log all warnings of a gateway to which clients connect directly."""
    warn_of_open_listener(settings)
    warn_of_few_descriptors(settings)
    warn_of_contents_here(settings)
    warn_of_idle_quotas(settings)
    warn_of_passed_identities(settings)


def warn_of_open_listener(settings: Settings) -> None:
    """Log a warning if the listener accepts every client and upstream calls use an API key of the gateway."""
    paid = [name for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]
    if not paid or settings.owner.has_client_keys or _is_of_this_machine(parse_address(settings.listen)[0]):
        return
    _log.warning(
        "open_listener",
        listen=settings.listen,
        upstreams=paid,
        advice="every client that reaches this address uses these upstreams with your keys: set owner.keys or "
        "owner.managed_keys, or listen on 127.0.0.1 behind a proxy that authenticates clients",
    )


def warn_of_few_descriptors(settings: Settings) -> None:
    """Log a warning if the limit of open files allows fewer requests than `limits.concurrent_requests`."""
    wanted = settings.limits.concurrent_requests
    limit = max_requests(wanted, raised=True)
    if limit < wanted and "concurrent_requests" in settings.limits.model_fields_set:
        _log.warning(
            "few_descriptors",
            requests=limit,
            wanted=wanted,
            advice="raise the limit of open files (ulimit -n, LimitNOFILE) or lower limits.concurrent_requests",
        )


def warn_of_contents_here(settings: Settings) -> None:
    """Log a warning if several machines can share the database but not the contents of files."""
    if contents_are_here_alone(settings):
        # This function imports the module only for the warning, because the import loads all stores.
        from antiphon.stores.blobs.disk import FILES_FOLDER

        _log.warning("contents_on_this_machine", folder=str(settings.data / FILES_FOLDER), advice=CONTENTS_ADVICE)


def warn_of_idle_quotas(settings: Settings) -> None:
    """Log a warning for each entry of `quotas` that limits nothing."""
    for setting, reason in idle_quotas(settings):
        _log.warning("quota_without_effect", setting=setting, reason=reason, advice=IDLE_QUOTA_ADVICE)


def warn_of_passed_identities(settings: Settings) -> None:
    """Log a warning if an upstream may get the token with which a proxy identified the client."""
    if upstreams := passed_identities(settings):
        source, advice = settings.owner.source, PASSED_IDENTITY_ADVICE
        _log.warning("identity_token_passed_on", source=source, upstreams=list(upstreams), advice=advice)


def passed_identities(settings: Settings) -> tuple[str, ...]:
    """Return the names of the upstreams that get the client's Authorization header although a proxy identifies the
    client, often by a token in this header.

    With `owner.source: jwt` or with client keys, the settings reject such an upstream. If a proxy identifies clients,
    the settings allow such an upstream, because the Authorization header may contain only the client's key for the
    upstream.
    """
    if settings.owner.source not in ("header", "metadata"):
        return ()
    return tuple(name for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.PASSTHROUGH)


def idle_quotas(settings: Settings) -> list[tuple[str, str]]:
    """Return the entries of `quotas` that limit nothing, each as a setting and the reason.

    A limit of cost needs `prices`. A name that the settings do not contain may be a typing error (`unknown_names`).
    """
    quotas, owner = settings.quotas, settings.owner
    named: dict[str, Mapping[str, QuotaLimits]] = {
        "owners": quotas.owners,
        "keys": quotas.keys,
        "teams": quotas.teams,
        "models": quotas.models,
    }
    every = {"each_owner": quotas.each_owner, "each_key": quotas.each_key, "each_team": quotas.each_team}
    every |= {f"{kind}.{name}": limits for kind, entries in named.items() for name, limits in entries.items()}
    idle = [
        (f"quotas.{name}.cost_per_month", "'prices' is empty, so every request costs nothing")
        for name, limits in every.items()
        if limits.cost_per_month is not None and not settings.prices
    ]
    return idle if owner.managed_keys else idle + unknown_names(settings)


def unknown_names(settings: Settings, managed: Sequence[ClientKey] = ()) -> list[tuple[str, str]]:
    """Return the entries of `quotas` whose owner, key or team has no client key, each as a setting and the reason.

    `managed`: the valid managed keys. Without keys of named owners the result is empty, because the names then come
    from a token issuer or a proxy.
    """
    quotas, owner = settings.quotas, settings.owner
    if owner.source != "bearer" or (owner.keys is None and not owner.managed_keys):
        return []
    listed = owner.keys or {}
    known: dict[str, tuple[Mapping[str, QuotaLimits], set[str]]] = {
        "owners": (quotas.owners, {*listed, *(key.owner.removeprefix(NAMED) for key in managed)}),
        "keys": (
            quotas.keys,
            {settings_key_id(name, number) for name, one in listed.items() for number in range(1, len(one.keys) + 1)}
            | {key.id for key in managed},
        ),
        "teams": (quotas.teams, {one.team for one in listed.values()} | {key.team for key in managed}),
    }
    no_key = "no managed key and no key of 'owner.keys' has such a name"
    reason = no_key if owner.managed_keys else "'owner.keys' has no such name"
    # A name with a colon is an owner id, which the database may contain.
    return [
        (f"quotas.{kind}.{name}", reason)
        for kind, (entries, names) in known.items()
        for name in entries
        if name not in names and ":" not in name
    ]


def contents_are_here_alone(settings: Settings) -> bool:
    """Whether machines can share the database rows of files (PostgreSQL), while each machine keeps contents of files on
    its own disk."""
    return settings.state.place.kind == "postgresql" and settings.blobs.url is None and settings.files.enabled


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def log_data_folder(settings: Settings) -> None:
    """Log the absolute path of the data folder, and a warning if other users can replace its files. If the setting
    `data` is unset, the path depends on the current folder."""
    _log.info("data_folder", path=str(settings.data.absolute()))
    with suppress(OSError):
        # A start creates a missing folder later, with mode 0700.
        if found := exposed(settings.data, settings.data.stat(), os.getuid()):
            _, problem, advice = found
            _log.warning("data_folder_exposed", problem=problem, advice=advice)
