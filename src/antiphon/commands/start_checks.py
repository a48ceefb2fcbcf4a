"""Checks at the start of a gateway: files that settings name, and warnings for the operator.

Lives here: certificates that cannot be used, who could spend the gateway's keys, what other machines cannot read. Not
here: what certificates are for (`app/trust.py`, `doors/tls.py`, `envoy/clusters.py`), whether the upstreams answer
(`upstream_warnings.py`), settings that are wrong (`antiphon.config`), what upstreams can do
(`commands/doctor/command.py`). A bootstrap for another machine (`envoy-config`) names files that are not here: they are
not checked.

Invariants: what cannot be used is a `ConfigError` that names the setting and the file, whichever door is open; each
warning is one line, with what to do about it; no secret is in a line.
"""

from __future__ import annotations

import ipaddress

import structlog

from antiphon.app.trust import upstream_trust
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.doors.listening import max_requests
from antiphon.doors.tls import TlsFiles, check_readable

CONTENTS_ADVICE = (
    "uploaded files can be read on the machine that took them alone, others answer 503 content_elsewhere: set "
    "blobs.url to a bucket that all machines share"
)
"""For `contents_are_here_alone`."""

_log = structlog.get_logger(__name__)


def check_named_files(settings: Settings) -> None:
    """The files that this machine needs for `antiphon up`. Raises `ConfigError`."""
    for name, upstream in settings.every_upstream.items():
        upstream_trust(name, upstream)
    if settings.door == "envoy":
        check_sidecar_files(settings)


def check_sidecar_files(settings: Settings) -> None:
    """Both sides of `sidecar.tls`. Raises `ConfigError`."""
    if (files := sidecar_tls(settings)) is None:
        return
    files.context("h2")
    for name in ("ca", "envoy_cert", "envoy_key"):
        if (file := getattr(settings.sidecar.tls, name)) is not None:
            check_readable(f"sidecar.tls.{name}", file)


def sidecar_tls(settings: Settings) -> TlsFiles | None:
    """The files of TLS on the sidecar's own ports; None where it has none."""
    files = settings.sidecar.tls
    return TlsFiles(files.cert, files.key, files.client_ca) if files.cert and files.key else None


def warn(settings: Settings) -> None:
    """All warnings of a process at whose address clients connect."""
    warn_of_open_listener(settings)
    warn_of_few_descriptors(settings)
    warn_of_contents_here(settings)


def warn_of_open_listener(settings: Settings) -> None:
    """Say so when whoever reaches the listener spends a key of the gateway's."""
    paid = [name for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]
    if not paid or settings.owner.api_keys or _is_of_this_machine(parse_address(settings.listen)[0]):
        return
    _log.warning(
        "open_listener",
        listen=settings.listen,
        upstreams=paid,
        advice="everybody who reaches this address uses these upstreams with your keys: set owner.api_keys, or listen "
        "on 127.0.0.1 behind something that asks clients who they are",
    )


def warn_of_few_descriptors(settings: Settings) -> None:
    """Say so when the limit of open files leaves room for fewer requests than the settings."""
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
    """Say so when other machines have the rows of files, and this one alone their contents."""
    if contents_are_here_alone(settings):
        # All stores come with it.
        from antiphon.stores.blobs.disk import FILES_FOLDER

        _log.warning("contents_on_this_machine", folder=str(settings.data / FILES_FOLDER), advice=CONTENTS_ADVICE)


def contents_are_here_alone(settings: Settings) -> bool:
    """Whether machines may share rows of files whose contents they do not share."""
    return settings.state.place.kind == "postgresql" and settings.blobs.url is None and settings.files.enabled


def _is_of_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
