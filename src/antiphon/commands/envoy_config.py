"""`antiphon envoy-config`: what an Envoy needs, printed for whoever configures it.

Lives here: for whom it can be printed (`FORMS`), and for which version. Not here: what is printed (`envoy/`).

Invariant: nothing that is printed holds a secret.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from antiphon.commands.flags import settings_of
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.envoy.binary import find_envoy, version_of
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.clusters import SidecarEndpoint
from antiphon.envoy.snippet import snippet
from antiphon.envoy.versions import NEWEST, EnvoyVersion, parse_version
from antiphon.errors import ConfigError

_HEADER = """\
# Envoy bootstrap for Antiphon, printed by `antiphon envoy-config`. Made for Envoy {version}.
# It holds no secrets: an upstream key is read from ANTIPHON_UPSTREAM_KEY in Envoy's environment (that of the upstream
# a-b from ANTIPHON_UPSTREAM_KEY_A_B), a sidecar secret from ANTIPHON_SIDECAR_SECRET. Where ${{ANTIPHON_SIDECAR_SECRET}}
# is written out (the model door on TCP), put it in before you start Envoy, with envsubst for example.
"""


def _bootstrap(settings: Settings, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion) -> str:
    return _HEADER.format(version=version) + to_yaml(bootstrap(settings, sidecars=sidecars, version=version))


Form = Callable[[Settings, Sequence[SidecarEndpoint], EnvoyVersion], str]
FORMS: dict[str, Form] = {"bootstrap": _bootstrap, "snippet": snippet}
"""What can be printed, by the value of `--for`."""


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    form = FORMS.get(arguments.form)
    if form is None:
        raise ConfigError(f"--for: {arguments.form!r} is unknown; choose of {', '.join(FORMS)}")
    sys.stdout.write(form(settings, endpoints(settings), _version(arguments.envoy_version, settings)))
    return 0


def _version(given: str | None, settings: Settings) -> EnvoyVersion:
    """The version that was named, else that of the Envoy which `antiphon up` would start, else the newest."""
    if given is not None:
        return parse_version(given)
    try:
        binary = find_envoy(settings.envoy.binary)
    except ConfigError:
        if settings.envoy.binary is not None:
            raise
        # Where a sidecar alone is installed there is none.
        return NEWEST
    return version_of(binary)


def endpoints(settings: Settings) -> list[SidecarEndpoint]:
    """Where each worker listens: `-0` in a socket's name, or the port, counts up."""
    return [
        SidecarEndpoint(numbered(settings.sidecar.grpc, number), numbered(settings.sidecar.http, number))
        for number in range(settings.workers)
    ]


def numbered(address: str, number: int) -> str:
    """The address of a worker: `-0` in a socket's name, or the port, counts up."""
    if number == 0:
        return address
    if parse_address(address)[0] == "unix":
        return address.replace("-0.", f"-{number}.") if "-0." in address else f"{address}.{number}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}"
