"""A request's target: one spelling of each path, and what is refused."""

from __future__ import annotations

import pytest

from antiphon.doors.http.path import split_target
from antiphon.errors import InvalidRequest


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/v1/responses", "/v1/responses"),
        ("", "/"),
        ("?a=1", "/"),
        ("*", "*"),
        ("/", "/"),
        ("//v1///responses", "/v1/responses"),
        ("/v1/./responses/.", "/v1/responses/"),
        ("/v1/x/../responses", "/v1/responses"),
        ("/v1/x/..", "/v1/"),
        ("/../..", "/"),
        ("/v1/responses/", "/v1/responses/"),
        ("/v1\\responses", "/v1/responses"),
        ("/v1/%72esponses", "/v1/responses"),
        ("/v1/%7e-%2E%5f", "/v1/~-._"),
        ("/v1/a%20b%c3%a9", "/v1/a%20b%C3%A9"),
        ("/v1/%zz%2", "/v1/%zz%2"),
        ("http://host:80/v1/x", "/v1/x"),
        ("HTTPS://host/v1/x", "/v1/x"),
        ("http://host", "/"),
        ("http://host?a=1", "/"),
        ("/v1/x#y?z=1", "/v1/x"),
        ("/http://host/x", "/http:/host/x"),
    ],
)
def test_a_path_has_one_spelling(target: str, path: str) -> None:
    assert split_target(target)[0] == path


@pytest.mark.parametrize("target", ["v1/responses", "httpx", "ftp://host/v1", "/v1%2fx", "/v1%5Cx", "/v1%00"])
def test_what_may_mean_two_things_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        split_target(target)
    assert (refused.value.status, refused.value.code) == (400, "invalid_url")


def test_a_query_is_decoded_and_has_at_most_two_hundred_fields() -> None:
    assert split_target("/a?x=1&x=&y=%20+&z#w=1")[1] == (("x", "1"), ("x", ""), ("y", "  "), ("z", ""))
    assert len(split_target("/a?" + "&".join(["x=1"] * 200))[1]) == 200
    with pytest.raises(InvalidRequest) as refused:
        split_target("/a?" + "&".join(["x=1"] * 201))
    assert refused.value.code == "invalid_url"
