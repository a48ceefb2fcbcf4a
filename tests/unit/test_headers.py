"""The headers that every door reads and sends alike: request ids, cross-origin rules, and how a header is looked up."""

from __future__ import annotations

import pytest

from antiphon.types.transport import (
    cors_headers,
    header_value,
    origin_allowed,
    preflight_headers,
    sent_request_id,
    with_own_request_id,
)

PAGE = "https://page.example"


def test_the_first_value_of_a_header_counts() -> None:
    headers = (("a", "1"), ("b", "2"), ("b", "3"))
    assert (header_value(headers, "b"), header_value(headers, "c")) == ("2", None)


@pytest.mark.parametrize(
    ("value", "valid"),
    [("abc-1._:/+=Z", True), ("a" * 128, True), ("a" * 129, False), ("", False), ("a b", False), ("ä", False)],
)
def test_an_id_has_few_letters_and_a_length(value: str, valid: bool) -> None:
    assert sent_request_id((("x-other", "y"), ("x-request-id", value))) == (value if valid else None)


def test_two_ids_are_none() -> None:
    assert sent_request_id((("x-request-id", "a"), ("x-request-id", "b"))) is None
    assert sent_request_id((("x-other", "a"),)) is None


def test_an_own_id_takes_the_place_of_the_clients() -> None:
    other = ("x-other", "y")
    sent = (("x-request-id", "a b"), other, ("x-request-id", "c"))
    assert with_own_request_id(sent, "mine") == (other, ("x-request-id", "mine"))
    assert with_own_request_id((other,), "mine") == (other,)


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ((PAGE,), PAGE, True),
        (("https://other.example", PAGE), PAGE, True),
        (("*",), PAGE, True),
        ((PAGE,), "https://other.example", False),
        (("*",), None, False),
        ((), PAGE, False),
    ],
)
def test_a_page_may_ask_if_its_origin_is_listed(origins: tuple[str, ...], origin: str | None, allowed: bool) -> None:
    assert origin_allowed(origins, origin) is allowed
    # A cache keeps an answer for each origin, as soon as there are origins at all.
    others = (("vary", "origin"),) if origins else ()
    given = (("access-control-allow-origin", PAGE), ("access-control-expose-headers", "*")) if allowed else ()
    assert cors_headers(origins, origin) == given + others


def test_a_browser_that_asks_before_it_sends_learns_the_rules() -> None:
    assert dict(preflight_headers(PAGE)) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET,POST,PUT,DELETE",
        "access-control-allow-headers": "authorization,*",
        "access-control-max-age": "600",
        "vary": "origin",
    }
