"""The port of the HTTP door, held while its workers come and go."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from antiphon.config.section import parse_address
from antiphon.supervisor.listen_address import HeldPort


@pytest.fixture
def port() -> Iterator[HeldPort]:
    made = HeldPort("127.0.0.1:0")
    yield made
    made.close()


def test_every_worker_has_a_socket_of_the_same_port(port: HeldPort) -> None:
    first, second = port.sockets(0, 2), port.sockets(1, 2)
    assert [one.getsockname() for one in (*first, *second)] == [parse_address(port.address)] * 2
    assert first != second
    # Those that a generation with fewer workers would leave are somebody's, and further ones are made.
    assert port.sockets(0, 1) == [*first, *second]
    assert [*port.sockets(0, 3), *port.sockets(1, 3)] == [*first, *second] and len(port.sockets(2, 3)) == 1


def test_who_waits_for_a_worker_is_served_by_the_next_one(port: HeldPort) -> None:
    (held,) = port.sockets(0, 1)
    worker = held.dup()
    worker.listen()
    with socket.create_connection(parse_address(port.address), timeout=30) as client:
        worker.close()
        client.sendall(b"x")
        held.setblocking(True)
        served, _ = held.accept()
        with served:
            assert served.recv(1) == b"x"


def test_who_waits_for_a_dead_worker_is_turned_away(port: HeldPort) -> None:
    (held,) = port.sockets(0, 1)
    held.listen()
    with socket.create_connection(parse_address(port.address), timeout=30) as client:
        port.renew(0, 1)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    (renewed,) = port.sockets(0, 1)
    assert renewed.getsockname() == parse_address(port.address)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(parse_address(port.address), timeout=30)


def test_sockets_that_two_generations_have_are_not_renewed(port: HeldPort) -> None:
    (held,) = port.sockets(0, 1)
    with port.for_two_generations():
        port.renew(0, 1)
        assert port.sockets(0, 1) == [held]
    port.renew(0, 1)
    assert port.sockets(0, 1) != [held]


def test_sockets_of_a_generation_that_fails_are_closed(port: HeldPort) -> None:
    (held,) = port.sockets(0, 1)
    with contextlib.suppress(RuntimeError), port.for_two_generations():
        further = port.sockets(1, 3)
        raise RuntimeError
    assert [one.fileno() for one in further] == [-1]
    assert port.sockets(0, 1) == [held] and held.fileno() >= 0
