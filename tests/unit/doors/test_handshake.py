"""Who may open a WebSocket: asked the right way, from an allowed page, while there is room."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.test_utils import make_mocked_request

from antiphon.config.limits import WebSocketSettings
from antiphon.doors.http.websocket import check_handshake, is_upgrade
from antiphon.errors import ApiError


def _request(**headers: str) -> web.Request:
    return make_mocked_request("GET", "/v1/responses", headers={"host": "api.example:8080", **headers})


@pytest.mark.parametrize(
    ("method", "version", "upgrade", "asked"),
    [
        ("GET", HttpVersion11, "websocket", True),
        ("GET", HttpVersion11, " WebSocket ", True),
        ("GET", HttpVersion11, "h2c", False),
        ("GET", HttpVersion11, "", False),
        ("GET", HttpVersion10, "websocket", False),
        ("POST", HttpVersion11, "websocket", False),
    ],
)
def test_a_websocket_is_asked_for_by_get_in_http_1_1(method: str, version: object, upgrade: str, asked: bool) -> None:
    request = make_mocked_request(method, "/v1/responses", headers={"upgrade": upgrade}, version=version)  # type: ignore[arg-type]
    assert is_upgrade(request) is asked
    assert not is_upgrade(make_mocked_request("GET", "/v1/responses"))


@pytest.mark.parametrize(
    ("origin", "allowed", "served"),
    [
        ("https://api.example:8080", (), True),
        ("https://API.example:8080", (), True),
        ("https://api.example", (), False),
        ("https://other.example", (), False),
        ("null", (), False),
        ("https://[", (), False),
        ("https://other.example", ("https://other.example",), True),
        ("https://other.example", ("https://another.example",), False),
        ("https://other.example", ("*",), True),
    ],
)
def test_a_page_is_of_this_host_or_is_listed(origin: str, allowed: tuple[str, ...], served: bool) -> None:
    limits = WebSocketSettings(origins=allowed)
    if served:
        check_handshake(_request(origin=origin), limits, 0)
        return
    with pytest.raises(ApiError) as refused:
        check_handshake(_request(origin=origin), limits, 0)
    assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")
    assert refused.value.type == "invalid_request_error"


def test_a_page_without_a_host_is_of_no_host() -> None:
    request = make_mocked_request("GET", "/v1/responses", headers={"host": "", "origin": "data:"})
    with pytest.raises(ApiError):
        check_handshake(request, WebSocketSettings(), 0)


def test_the_last_place_is_given_and_no_further_one() -> None:
    limits = WebSocketSettings(connections=3)
    check_handshake(_request(), limits, 2)
    with pytest.raises(ApiError) as refused:
        check_handshake(_request(), limits, 3)
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.headers == (("retry-after", "1"),)


def test_where_they_are_off_a_client_is_told_to_use_http() -> None:
    with pytest.raises(ApiError) as refused:
        check_handshake(_request(), WebSocketSettings(enabled=False), 0)
    error = refused.value
    assert (error.status, error.type, error.code) == (426, "invalid_request_error", "upgrade_not_supported")
    assert error.headers == (("upgrade", "HTTP/1.1"), ("connection", "close"))
