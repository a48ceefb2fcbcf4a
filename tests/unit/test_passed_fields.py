"""The fields of forwarded bodies that decide the upstream and the quotas."""

from __future__ import annotations

import pytest

from antiphon.api.passed_fields import PassedFields, read_any_fields, read_fields
from antiphon.errors import InvalidRequest

FORM = "multipart/form-data; boundary=b"


def _part(name: str, value: str) -> bytes:
    return f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"{}", PassedFields()),
        (b'{"model":null,"max_tokens":null,"n":null}', PassedFields()),
        (b'{"mod\\u0065l":"a","messages":[{"model":"b","n":5}]}', PassedFields("a")),
        (b'{"max_tokens":6000,"max_completion_tokens":1,"n":2}', PassedFields(None, 6000, 2)),
        (b'{"max_tokens":1,"max_completion_tokens":6000.0}', PassedFields(None, 6000)),
        (b'{"max_tokens":"6e3","n":"2"}', PassedFields(None, 6000, 2)),
        (b'{"max_tokens":-1,"n":0}', PassedFields()),
        (b'{"max_tokens":1' + b"0" * 30 + b"}", PassedFields(None, 1 << 40)),
    ],
)
def test_the_fields_of_a_body(body: bytes, fields: PassedFields) -> None:
    assert read_fields(body) == fields


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b'{"model":"a","user":"\\ud800"}', "invalid_json", None),
        (b'{"model":"a","top_p":NaN}', "invalid_json", None),
        (b'{"model":"a","user":"\xff"}', "invalid_json", None),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid_json", None),
        ('{"model":"a"}'.encode("utf-16"), "invalid_json", None),
        (b'[{"model":"a"}]', "invalid_type", None),
        (b"", "invalid_json", None),
        (b'{"model":5}', "invalid_type", "model"),
        (b'{"model":5,"model":"a"}', "invalid_value", "model"),
        (b'{"model":"b","mod\\u0065l":"a"}', "invalid_value", "model"),
        (b'{"model":"b","Model":"a"}', "invalid_value", "Model"),
        (b'{"max_to\xe2\x84\xaaens":5}', "invalid_value", "max_to\u212aens"),
        (b'{"max_tokens":1,"max_tokens":6000}', "invalid_value", "max_tokens"),
        (b'{"n":1,"n":6}', "invalid_value", "n"),
        (b'{"max_tokens":[6000]}', "invalid_type", "max_tokens"),
        (b'{"max_completion_tokens":"many"}', "invalid_type", "max_completion_tokens"),
        (b'{"max_completion_tokens":"inf"}', "invalid_type", "max_completion_tokens"),
        (b'{"n":{}}', "invalid_type", "n"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "", FORM])
def test_a_body_with_two_readings_is_refused(body: bytes, code: str, param: str | None, content_type: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_fields(body)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)
    with pytest.raises(InvalidRequest):
        read_any_fields(body, content_type)


@pytest.mark.parametrize(
    ("content_type", "body", "model"),
    [
        (FORM, _part("file", "x" * 3_000_000) + _part("model", "whisper") + b"--b--\r\n", "whisper"),
        (FORM, _part("prompt", "x") + b"--b--\r\n", None),
        ("application/x-www-form-urlencoded", b"language=de&mod%65l=whisper", "whisper"),
        ("application/x-www-form-urlencoded", b"language=de", None),
        ("audio/wav", b"RIFF\x00\xff", None),
        ("text/plain", b' {"model":"whisper"}', "whisper"),
        (FORM, b'{"model":"whisper"}', "whisper"),
    ],
)
def test_a_form_names_its_model(content_type: str, body: bytes, model: str | None) -> None:
    assert read_any_fields(body, content_type) == PassedFields(model)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, _part("model", "a") + _part("model", "b") + b"--b--\r\n"),
        (FORM, _part("Model", "a") + b"--b--\r\n"),
        (FORM, _part("model", "a" * 5000) + b"--b--\r\n"),
        (FORM, _part("model", "a")),
        ("multipart/form-data", _part("model", "a") + b"--b--\r\n"),
        ("application/x-www-form-urlencoded", b"model=a&model=b"),
        ("application/x-www-form-urlencoded", b"MODEL=a"),
        ("audio/wav", '{"model":"a"}'.encode("utf-16-be")),
    ],
)
def test_a_form_that_hides_its_model_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_any_fields(body, content_type)
