"""Which refusals of an upstream are about the key of the call."""

from __future__ import annotations

import pytest

from antiphon.translation.answer.upstream_errors import is_about_the_key


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b""),
        (403, b'{"error":{"message":"no","code":"invalid_api_key"}}'),
        (403, b'{"error":{"message":"Your API key was reported as leaked. Please use another API key."}}'),
        (403, b'{"error":"The API key is currently blocked."}'),
        (403, b'{"message":"The security token included in the request is invalid."}'),
        (403, b"Invalid API key"),
        (403, b'{"error":{"message":"Incorrect API key provided: sk-***"}}'),
        (400, b'[{"error":{"code":400,"message":"API key not valid.","details":[{"reason":"API_KEY_INVALID"}]}}]'),
    ],
)
def test_of_the_key(status: int, body: bytes) -> None:
    assert is_about_the_key(status, body)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b""),
        (403, b'{"error":{"message":"Country, region, or territory not supported"}}'),
        (403, b'{"error":{"message":"This API key is not found among those with access to the model m"}}'),
        (403, b'{"error":{"message":"Your input was flagged by moderation"}}'),
        (400, b'{"error":{"message":"Invalid credentials in the text of the file"}}'),
        (404, b'{"error":{"code":"invalid_api_key"}}'),
        (429, b"Invalid API key"),
    ],
)
def test_of_something_else(status: int, body: bytes) -> None:
    assert not is_about_the_key(status, body)
