"""Computes the addresses on which the sidecar processes listen.

Lives here: the address of each of several workers. Not here: Envoy's clusters for them (`clusters.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings


@dataclass(frozen=True)
class SidecarEndpoint:
    """The addresses of one sidecar process: `unix:PATH` or `HOST:PORT`."""

    grpc: str
    http: str


def endpoints(settings: Settings) -> list[SidecarEndpoint]:
    """The addresses of all workers."""
    return [endpoint(settings, number) for number in range(settings.workers)]


def endpoint(settings: Settings, number: int) -> SidecarEndpoint:
    """The addresses of the worker with this number."""
    return SidecarEndpoint(numbered(settings.sidecar.grpc, number), numbered(settings.sidecar.http, number))


def numbered(address: str, number: int) -> str:
    """The address of a worker: `-0` in a socket's name, or the port, counts up."""
    if number == 0:
        return address
    if parse_address(address)[0] == "unix":
        return address.replace("-0.", f"-{number}.") if "-0." in address else f"{address}.{number}"
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number}"
