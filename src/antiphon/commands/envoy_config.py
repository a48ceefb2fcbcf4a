"""`antiphon envoy-config`: print the bootstrap, or what an existing Envoy needs."""

from __future__ import annotations

import argparse
import sys

from antiphon.commands.flags import settings_of
from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.clusters import SidecarEndpoint
from antiphon.envoy.snippet import snippet

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
