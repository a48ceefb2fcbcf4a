"""What is let in never takes the last open files."""

from __future__ import annotations

import errno
import resource
import socket
import tempfile
from pathlib import Path

import pytest

from antiphon.doors.listening import make_room, max_at_once, max_connections, max_requests, why_not
from antiphon.errors import ConfigError


@pytest.mark.parametrize("files", [256, 1024, 4096, 1 << 20])
def test_clients_upstreams_and_the_rest_have_room(files: int) -> None:
    limit = max_at_once(files)
    assert limit > 0
    assert 2 * limit + 64 <= files


def test_there_are_always_some() -> None:
    assert max_at_once(64) == max_at_once(0) > 0


def test_fewer_requests_than_wanted_where_there_are_few_files() -> None:
    few = (1024, 1024)
    assert max_requests(10_000, limits=few) == max_connections(limits=few) == 480
    assert max_requests(100, limits=few) == 100
    assert max_requests(10_000, limits=(resource.RLIM_INFINITY, resource.RLIM_INFINITY)) == 10_000


def test_half_of_the_files_are_for_clients_except_64() -> None:
    assert (max_at_once(64 + 16), max_at_once(64 + 18), max_at_once(64 + 19)) == (8, 9, 9)
    unlimited = (1024, resource.RLIM_INFINITY)
    assert max_connections(limits=unlimited) == 480
    assert max_connections(raised=True, limits=unlimited) == ((1 << 20) - 64) // 2
    assert max_requests(10_000, raised=True, limits=unlimited) == 10_000


@pytest.mark.parametrize(
    ("number", "said", "advice"),
    [
        (errno.EADDRINUSE, "Address already in use", "stop the process that listens there"),
        (errno.EACCES, "Permission denied", "below 1024"),
        (errno.EADDRNOTAVAIL, "Cannot assign requested address", "0.0.0.0"),
        (errno.EMFILE, "Too many open files", ""),
    ],
)
def test_why_an_address_cannot_be_used_comes_with_advice_where_there_is_some(
    number: int, said: str, advice: str
) -> None:
    reason, _, way_out = why_not(OSError(number, "not this")).partition("; ")
    assert reason == said and advice in way_out and bool(way_out) == bool(advice)


def test_an_error_of_the_resolver_has_its_own_words() -> None:
    assert why_not(socket.gaierror(socket.EAI_NONAME, "Name or service not known")) == (
        f"[Errno {socket.EAI_NONAME}] Name or service not known"
    )
    assert why_not(OSError("AF_UNIX path too long")) == "AF_UNIX path too long"


def test_only_the_socket_of_a_dead_process_makes_room() -> None:
    # A short folder: a socket's path has few bytes.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sock"
        make_room(path)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            bound.listen()
            with pytest.raises(ConfigError, match="in use"):
                make_room(path)
        assert path.exists()
        make_room(path)
        assert not path.exists()
        path.write_text("kept")
        with pytest.raises(ConfigError, match="not a socket"):
            make_room(path)
        assert path.read_text() == "kept"


@pytest.mark.parametrize(("size", "fits"), [(107, True), (108, False)])
def test_a_sockets_path_has_at_most_107_bytes(size: int, fits: bool) -> None:
    path = Path("/nowhere/" + "é" * 10 + "x" * (size - 9 - 20))
    if fits:
        make_room(path)
    else:
        with pytest.raises(ConfigError, match="107 bytes"):
            make_room(path)
