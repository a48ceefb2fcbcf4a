"""Decides which network addresses a client may make this server connect to.

This module has the special-purpose networks as tables, and checks the operator's exceptions. `fetch.py` resolves names
and makes connections.

Source: IANA's special-purpose address registries (IPv4 and IPv6), and the well-known metadata addresses of cloud
providers.

Invariants: an IPv4 address is public only if it is in no network of the IPv4 table. An IPv6 address is public only if
it is in 2000::/3 and in no network of the IPv6 table. An IPv6 address that contains an IPv4 address (mapped, NAT64,
6to4, Teredo) is never public.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "This network" in IANA's registry.
        "10.0.0.0/8",
        "100.64.0.0/10",  # Carrier-grade NAT; cloud providers also use it for internal services.
        "127.0.0.0/8",
        "168.63.129.16/32",  # The address at which Azure's virtual machines reach their host.
        "169.254.0.0/16",  # Link-local; 169.254.169.254 is the metadata service of most clouds.
        "172.16.0.0/12",
        "192.0.0.0/24",  # Protocol assignments; 192.0.0.192 is Oracle's metadata service.
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays.
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # Multicast, reserved and broadcast addresses.
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # Protocol assignments, which include Teredo.
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address belongs to the public internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None or address not in _PUBLIC_6:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)


class AddressRule:
    """The addresses to which Antiphon may connect: public addresses, and the exceptions that the operator configures.

    `exceptions` are host names, addresses and networks in CIDR form. A host whose name is an exception may have any
    address. Raises `ValueError` for an entry of another form.
    """

    def __init__(self, exceptions: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._hosts: set[str] = set()
        for entry in exceptions:
            text = entry.strip().lower()
            try:
                self._networks.append(ip_network(text))
            except ValueError:
                if not text or any(ch in text for ch in "/:@?# *"):
                    raise ValueError(f"{entry!r} is no host name, address or network (such as 10.1.0.0/16)") from None
                self._hosts.add(text.rstrip("."))

    def is_named(self, host: str) -> bool:
        """Return whether the operator configured this host as an exception: by name, or as an address in one of the
        networks."""
        name = host.lower().rstrip(".")
        if name in self._hosts:
            return True
        try:
            return self._is_listed(ip_address(name))
        except ValueError:
            return False

    def allows(self, host: str, address: str) -> bool:
        """Return whether Antiphon may connect to this host at this address."""
        if host.lower().rstrip(".") in self._hosts:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return is_public(found) or self._is_listed(found)

    def _is_listed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)
