"""What every answer to Envoy says beside its own words, and how a body is cut into messages."""

from __future__ import annotations

import pytest

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.answers import head_metadata, in_parts, with_request_id
from antiphon.doors.extproc.message_queues import PeerLeft
from antiphon.doors.extproc.peer import Peer
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.extproc.transport import StreamClosed

_OWN = (("x-request-id", "theirs"),)


def test_an_answer_names_its_request_once() -> None:
    assert with_request_id((("a", "b"),), "r1") == (("a", "b"), ("x-request-id", "r1"))
    assert with_request_id(_OWN, "r1") == _OWN
    assert with_request_id((("a", "b"),), "") == (("a", "b"),) and with_request_id(_OWN, "") == _OWN


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", [(b"", True)]),
        (b"123", [(b"123", True)]),
        (b"1234", [(b"1234", True)]),
        (b"12345", [(b"1234", False), (b"5", True)]),
        (b"12345678", [(b"1234", False), (b"5678", True)]),
        (b"123456789", [(b"1234", False), (b"5678", False), (b"9", True)]),
    ],
)
def test_a_body_is_cut_into_parts_of_which_the_last_is_marked(body: bytes, parts: list[tuple[bytes, bool]]) -> None:
    assert list(in_parts(body, 4)) == parts


def test_a_model_that_is_not_known_is_not_told() -> None:
    assert head_metadata("m") == {"model": "m"} and head_metadata("") == {}


class _Stream:
    """Messages that are here, and behind None those that are only there when they are waited for."""

    def __init__(self, *messages: pb.ProcessingRequest | None) -> None:
        self._messages = list(messages)

    async def receive(self) -> bytes | None:
        while self._messages and self._messages[0] is None:
            self._messages.pop(0)
        return self.receive_now()

    def receive_now(self) -> bytes | None:
        if not self._messages or self._messages[0] is None:
            return None
        message = self._messages.pop(0)
        assert message is not None
        return message.SerializeToString()

    async def begin(self) -> None: ...

    def send_now(self, message: bytes) -> None:
        return None

    async def settle(self) -> None: ...

    async def send(self, message: bytes) -> None: ...

    async def let_end(self, seconds: float) -> None: ...


def _part(body: bytes, end: bool = False) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=end))


def _asked(body: bytes, end: bool = False) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=end))


_TRAILERS = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())


def _body(body: bytes, end: bool = False) -> Received:
    return Received(MessageKind.RESPONSE_BODY, body=body, end=end)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    ("messages", "received"),
    [
        ([_part(b"a")], [_body(b"a")]),
        ([_part(b"a"), _part(b"b"), _part(b""), _part(b"c", True)], [_body(b"abc", True)]),
        (
            [_part(b"a"), None, _part(b"b"), _part(b"c"), None, _part(b"", True)],
            [_body(b"a"), _body(b"bc"), _body(b"", True)],
        ),
        ([_part(b"a", True), _part(b"b")], [_body(b"a", True), _body(b"b")]),
        ([_part(b"a"), _part(b"b", True), _part(b"c")], [_body(b"ab", True), _body(b"c")]),
        ([_part(b"a"), _part(b"b"), _TRAILERS], [_body(b"ab"), Received(MessageKind.RESPONSE_TRAILERS)]),
        (
            [_part(b"a"), _TRAILERS, None, _part(b"b")],
            [_body(b"a"), Received(MessageKind.RESPONSE_TRAILERS), _body(b"b")],
        ),
        ([_part(b"1234"), _part(b"56"), _part(b"78"), _part(b"9")], [_body(b"123456"), _body(b"789")]),
        # What the client sends is counted part by part.
        (
            [_asked(b"a"), _asked(b"b", True)],
            [Received(MessageKind.REQUEST_BODY, body=b"a"), Received(MessageKind.REQUEST_BODY, body=b"b", end=True)],
        ),
    ],
)
async def test_parts_of_an_answer_that_are_here_come_as_one(
    waits: bool,
    messages: list[pb.ProcessingRequest | None],
    received: list[Received],
) -> None:
    other_end = Peer(_Stream(*messages), 6)
    found = []
    for _ in received:
        here = None if waits or other_end.inbox.drained else other_end.receive_now()
        found.append(here or await other_end.receive())
    assert found == received
    assert other_end.receive_now() is None
    with pytest.raises(PeerLeft):
        await other_end.receive()


async def test_what_is_known_not_to_be_here_is_not_looked_for() -> None:
    other_end = Peer(_Stream(_part(b"a"), _part(b"b"), None, _part(b"c"), _TRAILERS))
    assert not other_end.inbox.drained
    await other_end.receive()
    assert other_end.inbox.drained
    await other_end.receive()
    assert not other_end.inbox.drained


class _Door(_Stream):
    """A stream that takes what `takes` says, message by message: True, False (the queue is full now) or None."""

    def __init__(self, *takes: bool | None) -> None:
        super().__init__()
        self._takes = list(takes)
        self.done: list[str] = []
        self.gone = ""

    def _look(self, what: str) -> None:
        if self.gone == what:
            raise StreamClosed("it is gone")
        self.done.append(what)

    async def begin(self) -> None:
        self._look("begin")

    def send_now(self, message: bytes) -> bool | None:  # type: ignore[override]
        took = self._takes.pop(0)
        if took is not None:
            self._look(f"now {message.decode()}")
        return took

    async def settle(self) -> None:
        self._look("settle")

    async def send(self, message: bytes) -> None:
        self._look(f"send {message.decode()}")

    async def let_end(self, seconds: float) -> None:
        self._look(f"end {seconds:g}")


@pytest.mark.parametrize(
    ("takes", "done"),
    [
        ((True, True, True), ["now a", "now b", "now c"]),
        ((True, None, True), ["now a", "send b", "now c"]),
        ((True, False, True), ["now a", "now b", "settle", "now c"]),
        ((True, True, False), ["now a", "now b", "now c", "settle"]),
        ((None, None, None), ["send a", "send b", "send c"]),
    ],
)
async def test_each_message_is_sent_once_whether_or_not_it_has_to_wait(
    takes: tuple[bool | None, ...], done: list[str]
) -> None:
    door = _Door(*takes)
    peer, messages = Peer(door), [b"a", b"b", b"c"]
    assert not peer.answered
    await peer.send_all(messages)
    assert door.done == done and messages == [] and peer.answered and not peer.outbox.full


@pytest.mark.parametrize("gone", ["begin", "now a", "settle", "send a"])
async def test_an_envoy_that_has_left_is_no_failure_of_ours(gone: str) -> None:
    door = _Door(*((None,) if gone == "send a" else (False,)))
    door.gone = gone
    peer = Peer(door)
    with pytest.raises(PeerLeft, match="it is gone"):
        await (peer.begin() if gone == "begin" else peer.send(b"a"))


async def test_envoy_has_some_seconds_to_end_an_answered_stream() -> None:
    door = _Door()
    await Peer(door).let_end()
    ((what, seconds),) = [one.split() for one in door.done]
    assert what == "end" and 0 < float(seconds) <= 60
