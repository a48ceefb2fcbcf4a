"""The path table's rows: what a pattern takes and what not."""

from __future__ import annotations

import pytest

from antiphon.api.endpoint import Endpoint


@pytest.mark.parametrize(
    ("pattern", "path", "variables"),
    [
        ("/v1/models", "/v1/models", ()),
        ("/v1/models", "/v1/models/", None),
        ("/v1/models/{*}", "/v1/models/a/b%20c", ("a/b c",)),
        ("/v1/models/{*}", "/v1/models/", None),
        ("/v1/responses/{}", "/v1/responses/resp_1", ("resp_1",)),
        ("/v1/responses/{}", "/v1/responses/a%2Fb", ("a/b",)),
        ("/v1/responses/{}", "/v1/responses/", None),
        ("/v1/responses/{}", "/v1/responses/a/b", None),
        ("/v1/conversations/{}/items/{}", "/v1/conversations/conv_1/items/msg_2", ("conv_1", "msg_2")),
        ("/v1/conversations/{}/items/{}", "/v1/conversations//items/msg_2", None),
        ("/v1/conversations/{}/items/{}", "/v1/conversations/conv_1/things/msg_2", None),
    ],
)
def test_a_pattern_takes(pattern: str, path: str, variables: tuple[str, ...] | None) -> None:
    assert Endpoint(pattern, {}).match(path) == variables
