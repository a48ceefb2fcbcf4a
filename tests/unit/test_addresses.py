"""Which addresses a client may make the server connect to."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.upstream.fetch import AddressRule, is_public

PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "127.0.0.1", "127.9.9.9", "169.254.169.254"),
    *("172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "168.63.129.16"),
    *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "::7f00:1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    # IPv4 inside IPv6, public or not.
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::808:808"),
    *("64:ff9b:1::a00:1", "2002:7f00:1::", "2002:808:808::1", "2001:0:53aa:64c::1"),
    *("2001:db8::1", "100::1", "3fff::1", "5f00::1", "2001:20::1", "fe80::1%eth0", "2606:4700::1%1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ip_address(address)) and AddressRule().allows("any.example", address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address)) and not AddressRule().allows("any.example", address)


@given(st.ip_addresses())
def test_never_more_than_the_standard_library_takes_for_global(address: object) -> None:
    if is_public(address):  # type: ignore[arg-type]
        assert address.is_global and not address.is_multicast  # type: ignore[attr-defined]


def test_a_network_named_by_the_operator_is_allowed_and_no_more() -> None:
    rule = AddressRule(["10.1.0.0/16", "fd00::/8", "192.168.1.7"])
    for address in ("10.1.2.3", "fd00::5", "192.168.1.7", "8.8.8.8"):
        assert rule.allows("x", address)
    for address in ("10.2.0.1", "192.168.1.8", "::ffff:10.1.2.3", "127.0.0.1"):
        assert not rule.allows("x", address)
    assert rule.is_named("10.1.2.3") and not rule.is_named("8.8.8.8") and not rule.is_named("x")


def test_a_host_named_by_the_operator_may_have_any_address() -> None:
    rule = AddressRule(["Files.corp."])
    assert rule.is_named("files.CORP") and rule.allows("files.corp.", "10.0.0.1")
    assert not rule.is_named("evil.files.corp") and not rule.allows("evil.files.corp", "10.0.0.1")


@pytest.mark.parametrize("entry", ["", " ", "10.0.0.1/8", "http://x", "a:80", "*.corp", "user@host"])
def test_an_entry_that_is_neither_host_nor_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        AddressRule([entry])


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "0x7f.1", "::ffff:127.0.0.1%lo"])
def test_what_is_no_address_is_not_allowed(text: str) -> None:
    assert not AddressRule().allows("x", text)


def test_the_tables_name_the_loopback_as_the_system_knows_it() -> None:
    packed = struct.unpack("!I", socket.inet_aton("127.1"))[0]
    assert not is_public(ip_address(packed))
