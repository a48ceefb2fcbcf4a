"""A call's bookkeeping: every byte that came is given back to the connection's window, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.doors.extproc.grpc_framing import with_prefix
from antiphon.doors.extproc.http2_call import Call, Http2Limits
from antiphon.doors.extproc.transport import GrpcStatus


class _Connection:
    """`CallOwner` that counts."""

    def __init__(self) -> None:
        self.limits = Http2Limits(message=1_000, queued=100)
        self.told = 0

    def begin(self, call: Call) -> None: ...

    def send(self, call: Call, message: bytes) -> None: ...

    def is_full(self, call: Call) -> bool:
        return False

    def block(self, call: Call) -> None: ...

    def consumed(self, call: Call, size: int) -> None:
        self.told += size

    def finish(self, call: Call, status: GrpcStatus, message: str) -> None: ...


_ENDS: dict[str, Callable[[Call], None]] = {
    "finish": lambda call: call.finish(GrpcStatus.OK),
    "lose": lambda call: call.lose(),
}


@pytest.mark.parametrize("end", _ENDS)
@given(sizes=st.lists(st.integers(0, 1_200), max_size=12), cut=st.integers(1, 400), read=st.integers(0, 12))
def test_no_window_is_lost_however_a_call_ends(end: str, sizes: list[int], cut: int, read: int) -> None:
    """Of messages of any size, some of them too large, in any pieces, of which any number was read."""

    async def run() -> None:
        connection = _Connection()
        call = Call(connection, 1)
        data = b"".join(with_prefix(bytes(size)) for size in sizes)
        sent = 0
        for at in range(0, len(data), cut):
            if call.gone:
                break
            call.take(data[at : at + cut], False)
            sent += len(data[at : at + cut])
        for _ in range(min(read, len(call._messages))):
            await call.receive()
        if not call.gone:
            assert (connection.told < sent) == (call._queued > connection.limits.queued)
        _ENDS[end](call)
        assert connection.told == sent

    asyncio.run(run())
