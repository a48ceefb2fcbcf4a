"""What is let in never takes the last open files."""

from __future__ import annotations

import resource

import pytest

from antiphon.doors.listening import max_at_once, max_connections, max_requests


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
