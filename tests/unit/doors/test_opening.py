"""The first message of a stream: what Envoy must be set to, and whose request it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from antiphon.api.credential_checks import AdminGuard
from antiphon.api.endpoint import Guard
from antiphon.api.router import unknown_url
from antiphon.doors.context import DoorContext
from antiphon.doors.extproc.opening import ClientRequest, ProtocolError, caller_of, is_refused_before, read_opening
from antiphon.doors.extproc.received import MessageKind, Received
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import AdminToken
from antiphon.errors import NotFound, Unauthorized

_DUPLEX = "FULL_DUPLEX_STREAMED"


class _Router:
    def is_exchange(self, method: str, path: str) -> bool:
        return (method, path) == ("POST", "/v1/responses")

    def is_open(self, path: str) -> bool:
        return path in ("/health", "/v1/open")

    def unknown(self, method: str, path: str) -> NotFound:
        return unknown_url(method, path)

    def guard_of(self, path: str) -> Guard | None:
        return AdminGuard(AdminToken("right")).check if path == "/v1/admin" else None


class _Context(SimpleNamespace):
    caller_of = DoorContext.caller_of


_CONTEXT = cast(DoorContext, _Context(router=_Router(), owners=OwnerResolver("header", header="x-owner", key=b"k")))


def _opening(*headers: tuple[str, str], **changed: Any) -> Received:
    received = Received(MessageKind.REQUEST_HEADERS, headers, b"", False, (_DUPLEX, _DUPLEX), False)
    for name, value in changed.items():
        setattr(received, name, value)
    return received


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": MessageKind.RESPONSE_HEADERS}, "request_header_mode to SEND"),
        ({"observing": True}, "observability_mode is on"),
        ({"modes": None}, "names no body modes"),
        ({"modes": ("STREAMED", _DUPLEX)}, f"request_body_mode is STREAMED: set it to {_DUPLEX}"),
        ({"modes": (_DUPLEX, "NONE")}, f"response_body_mode is NONE: set it to {_DUPLEX}"),
    ],
)
def test_an_envoy_that_is_set_otherwise_is_told_how(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read_opening(_CONTEXT, _opening(**changed), ())


@pytest.mark.parametrize(
    ("kind", "status", "refused"),
    [
        (MessageKind.RESPONSE_HEADERS, "429", True),
        (MessageKind.RESPONSE_HEADERS, "401", True),
        (MessageKind.RESPONSE_HEADERS, "200", False),
        (MessageKind.RESPONSE_HEADERS, "503", False),
        (MessageKind.RESPONSE_HEADERS, "", False),
        (MessageKind.REQUEST_HEADERS, "429", False),
    ],
)
def test_a_filter_before_ours_has_refused_the_client(kind: MessageKind, status: str, refused: bool) -> None:
    assert is_refused_before(_opening((":status", status), kind=kind)) is refused
    assert not is_refused_before(_opening(kind=kind))


def test_a_request_is_what_its_head_says() -> None:
    trace = (("traceparent", "00-a-b-01"),)
    headers = ((":method", "POST"), (":path", "/v1/responses?a=b?c"), ("x-request-id", "req-7"))
    request = read_opening(_CONTEXT, _opening(*headers), trace)
    assert request == ClientRequest(
        "POST", "/v1/responses", "a=b?c", headers, "req-7", is_exchange=True, trace=trace, body=b"", trailers=False
    )


def test_a_request_without_an_id_gets_one_that_goes_on() -> None:
    request = read_opening(_CONTEXT, _opening((":method", "GET"), (":path", "/v1/files"), ("x-request-id", "a b")), ())
    assert request.request_id.startswith("req_") and not request.is_exchange
    assert [value for name, value in request.headers if name == "x-request-id"] == [request.request_id]
    empty = read_opening(_CONTEXT, _opening(), ())
    assert (empty.method, empty.path, empty.query) == ("", "", "")


@pytest.mark.parametrize(
    ("method", "path", "headers", "owner"),
    [
        ("POST", "/v1/responses", (("x-owner", "me"),), "h:me"),
        ("GET", "/v1/files", (("x-owner", "me"),), "h:me"),
        ("GET", "/v1/open", (), ""),
        ("GET", "/health", (), ""),
        ("GET", "/ready", (("x-owner", "me"),), "h:me"),
        ("GET", "/v1/admin", (("authorization", "Bearer right"),), "admin"),
        ("GET", "/v1/admin", (("authorization", "Bearer wrong"), ("x-owner", "me")), Unauthorized),
        ("POST", "/v1/responses", (), Unauthorized),
        ("GET", "/v1/files", (), Unauthorized),
        ("GET", "/metrics", (("x-owner", "me"),), NotFound),
        ("GET", "/v1", (("x-owner", "me"),), NotFound),
        ("GET", "/gateway/leaves", (("x-owner", "me"),), NotFound),
    ],
)
def test_who_asks_is_known_unless_the_path_is_for_all(
    method: str, path: str, headers: tuple[tuple[str, str], ...], owner: str | type[Exception]
) -> None:
    request = read_opening(_CONTEXT, _opening((":method", method), (":path", path), *headers), ())
    if isinstance(owner, str):
        assert caller_of(_CONTEXT, request).owner == owner
    else:
        with pytest.raises(owner):
            caller_of(_CONTEXT, request)
