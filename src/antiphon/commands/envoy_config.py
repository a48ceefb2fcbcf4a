"""`antiphon envoy-config`: print the bootstrap, or what an existing Envoy needs."""

from __future__ import annotations

import argparse
import sys

from antiphon.commands.flags import settings_of
from antiphon.config import Settings, parse_address
from antiphon.envoy.bootstrap import SidecarEndpoint, bootstrap, to_yaml
from antiphon.envoy.snippet import snippet

__all__ = ["endpoints", "run"]

_HEADER = """\
# Envoy bootstrap for Antiphon, printed by `antiphon envoy-config`. Made for Envoy 1.40.
# It holds no secrets: an upstream key is read from ANTIPHON_UPSTREAM_KEY in Envoy's environment (that of the upstream
# a-b from ANTIPHON_UPSTREAM_KEY_A_B), a sidecar secret from ANTIPHON_SIDECAR_SECRET. Where ${ANTIPHON_SIDECAR_SECRET}
# is written out (the model door on TCP), put it in before you start Envoy, with envsubst for example.
"""


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    sidecars = endpoints(settings)
    if arguments.snippet:
        sys.stdout.write(snippet(settings, sidecars))
    else:
        sys.stdout.write(_HEADER + to_yaml(bootstrap(settings, sidecars=sidecars)))
    return 0


def endpoints(settings: Settings) -> list[SidecarEndpoint]:
    """Where each worker listens: `-0` in a socket's name, or the port, counts up."""
    return [
        SidecarEndpoint(_numbered(settings.sidecar.grpc, number), _numbered(settings.sidecar.http, number))
        for number in range(settings.workers)
    ]


def _numbered(address: str, number: int) -> str:
    if number == 0:
        return address
    if parse_address(address)[0] == "unix":
        return address.replace("-0.", f"-{number}.") if "-0." in address else f"{address}.{number}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}"
