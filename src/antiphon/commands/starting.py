"""What is looked at when a gateway starts, and what its operator is told then.

Lives here: files that cannot be used, an address that is taken, who could spend the gateway's keys, what other machines
cannot read, and that all is ready. Not here: whether the upstreams answer (`upstream_warnings.py`), settings that are
wrong (`antiphon.config`), what upstreams can do (`doctor.py`). A bootstrap for another machine (`envoy-config`) names
files that are not here: they are not checked.

Invariants: what cannot be used is a `ConfigError` that names the setting, whichever door is open; each warning is one
line, with what to do about it; no secret is in a line.
"""

from __future__ import annotations

import ipaddress
import socket
import sys

import structlog

from antiphon.app.trust import section, upstream_trust
from antiphon.commands.asking import join_address
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.doors.descriptors import max_requests
from antiphon.doors.listening import why_not
from antiphon.doors.tls import TlsFiles, check_readable
from antiphon.errors import ConfigError

CONTENTS_ADVICE = (
    "uploaded files can be read on the machine that took them alone, others answer 503 content_elsewhere: set "
    "blobs.url to a bucket that all machines share"
)
"""For `contents_are_here_alone`."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WILDCARDS = ("0.0.0.0", "::")

_log = structlog.get_logger(__name__)


# What keeps it from starting


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


def free_address(listen: str) -> str:
    """The address as numbers, if it can be listened on.

    Asked here, since Envoy shares a port with whoever else listens on it without a word, and knows no names.
    """
    host, port = parse_address(listen)
    if host == "unix":
        raise ConfigError(f"listen: {listen} is not HOST:PORT")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ConfigError(f"listen: cannot listen on {listen}: {why_not(error)}") from None
    return join_address(str(where[0]), port)


def refuse_own_upstream(settings: Settings) -> None:
    """Raise `ConfigError` when an upstream is the address at which clients connect: each request would ask itself."""
    host, port = parse_address(settings.listen)
    own = {host, *_LOOPBACK} if host in (*_LOOPBACK, *_WILDCARDS) else {host}
    for name, upstream in settings.every_upstream.items():
        there, at = upstream.address
        if port != 0 and at == port and there in own:
            raise ConfigError(
                f"{section(name)}.url: {upstream.url} is where Antiphon itself listens (listen: {settings.listen}), so "
                "that each request would ask itself: set the chat server's URL, or another port in listen"
            )


# What an operator should know, although it starts


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


def announce(settings: Settings, where: str) -> None:
    """Say that all is ready: one line for programs, and more on a terminal."""
    print(f"ready: http://{where}/v1", flush=True)
    if sys.stderr.isatty():
        door = "Envoy" if settings.door == "envoy" else "the HTTP door"
        lines = (
            f"  clients    http://{where}/v1, answered by {door} and {settings.workers} worker process(es)",
            *(
                f"  upstream   {one.url}, credentials: {one.auth_mode.value}"
                + ("" if name == "default" else f", for the models of {name}")
                for name, one in settings.every_upstream.items()
            ),
            f"  data       {settings.data}",
            "  Ctrl-C     finishes what is in flight and stops; again stops at once",
        )
        print("\n".join(lines), file=sys.stderr, flush=True)
