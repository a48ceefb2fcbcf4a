"""Computes the addresses on which the sidecar processes listen.

`clusters.py` generates Envoy's clusters for these addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings


@dataclass(frozen=True)
class SidecarEndpoint:
    """The two addresses of one sidecar process, each as `unix:PATH` or `HOST:PORT`."""

    grpc: str
    http: str


def endpoints(settings: Settings) -> list[SidecarEndpoint]:
    """Return the addresses of all worker processes."""
    return [endpoint(settings, number) for number in range(settings.workers)]


def endpoint(settings: Settings, number: int) -> SidecarEndpoint:
    """Return the addresses of the worker process with this number."""
    return SidecarEndpoint(numbered(settings.sidecar.grpc, number), numbered(settings.sidecar.http, number))


def numbered(address: str, number: int) -> str:
    """Return the address of the worker with this number. For a Unix socket, `-0` in the file name becomes `-number`.
    For TCP, the number is added to the port."""
    if number == 0:
        return address
    if parse_address(address)[0] == "unix":
        return address.replace("-0.", f"-{number}.") if "-0." in address else f"{address}.{number}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}"
