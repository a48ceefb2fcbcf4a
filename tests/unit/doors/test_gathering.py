"""What leaves in one write, and that nothing is lost or turned around."""

from __future__ import annotations

import asyncio

import pytest

from antiphon.doors.http.gathering import MOST, GatheringTransport


class _Real(asyncio.Transport):
    """Notes what is asked of it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.did.append(bytes(data))

    def close(self) -> None:
        self.did.append("close")

    def abort(self) -> None:
        self.did.append("abort")

    def write_eof(self) -> None:
        self.did.append("eof")

    def get_write_buffer_size(self) -> int:
        return 7


@pytest.fixture
async def real() -> _Real:
    return _Real()


def _gathering(real: _Real) -> GatheringTransport:
    return GatheringTransport(real, asyncio.get_running_loop())


async def test_the_writes_of_a_turn_are_one(real: _Real) -> None:
    transport = _gathering(real)
    for turn in range(2):
        transport.write(b"head ")
        transport.writelines([b"one ", memoryview(b"two ")])
        transport.write(b"%d" % turn)
        assert len(real.did) == turn
        await asyncio.sleep(0)
    assert real.did == [b"head one two 0", b"head one two 1"]


async def test_a_write_alone_is_passed_on(real: _Real) -> None:
    _gathering(real).write(b"a")
    await asyncio.sleep(0)
    assert real.did == [b"a"]


async def test_no_more_is_held_than_may_be(real: _Real) -> None:
    transport = _gathering(real)
    transport.write(b"a")
    transport.write(b"b" * (MOST - 1))
    assert [len(data) for data in real.did] == [MOST]
    transport.write(b"c")
    assert transport.get_write_buffer_size() == 1 + 7
    await asyncio.sleep(0)
    assert real.did[1:] == [b"c"]
    assert transport.get_write_buffer_size() == 7


@pytest.mark.parametrize("end", ["close", "abort", "write_eof"])
async def test_what_was_written_goes_out_before_the_end(end: str, real: _Real) -> None:
    transport = _gathering(real)
    transport.write(b"a")
    getattr(transport, end)()
    await asyncio.sleep(0)
    assert real.did == [b"a", end.removeprefix("write_")]
