"""What a body names is checked against the client's key, in every spelling that some upstream accepts."""

from __future__ import annotations

import pytest

from antiphon.engine.exchange.allowed_by_key import check_body
from antiphon.engine.ports.callers import EVERYTHING, Access
from antiphon.errors import ApiError, InvalidRequest

_KEY = Access(models=("qwen*",), tools=("function",))


def _code(body: bytes, access: Access = _KEY, *, named: bool = False) -> str | None:
    try:
        check_body(access, body, named=named)
    except ApiError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model":"qwen3"}', None),
        (b'{"model":"gpt"}', "model_not_found"),
        (b'{"model":null}', None),
        (b'{"model":"qwen3","Model":"gpt"}', "model_not_found"),
        (b'{"model":5}', "model_not_found"),
        (b'{"messages":[{"model":"gpt"}]}', None),
        (b'[{"model":"gpt"}]', None),
        (b'{"model":"qwen3","models":["qwen3","qwen2"]}', None),
        (b'{"model":"qwen3","models":null}', None),
        (b'{"model":"qwen3","models":["qwen3","gpt"]}', "model_not_found"),
        (b'{"model":"qwen3","Models":"gpt"}', "model_not_found"),
        (b'{"model":"qwen3","models":[{"model":"qwen3"}]}', "model_not_found"),
        (b"{", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
    ],
)
def test_every_model_of_a_body_counts(body: bytes, code: str | None) -> None:
    assert _code(body) == code


def test_a_fallback_model_is_named_by_its_place_in_the_list() -> None:
    body = b'{"model":"qwen3","models":["qwen3","gpt"]}'
    with pytest.raises(ApiError, match="'gpt' does not exist") as refused:
        check_body(_KEY, body)
    assert refused.value.param == "models[1]"
    assert _code(body, Access(tools=("function",))) is None


def test_an_upstream_chooses_no_model_for_a_key_with_models() -> None:
    assert _code(b"{}", Access(tools=("function",)), named=True) is None
    assert _code(b'{"model":"qwen3","tools":["mcp"]}', Access(models=("qwen*",)), named=True) is None
    with pytest.raises(InvalidRequest, match="Name one of them in 'model'") as refused:
        check_body(_KEY, b'{"prompt":"x"}', named=True)
    assert refused.value.param == "model"
    assert _code(b'{"model":"qwen3"}', named=True) is None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"tools":[{"type":"function"},{"type":"mcp"}]}', "tools[1]"),
        (b'{"tools":{"a":{"type":"function"},"b":{"type":"mcp"}}}', "tools[1]"),
        (b'{"Tools":["mcp"]}', "tools[0]"),
        (b'{"tools":[{"type":"function","tools":[{"Type":"mcp"}]}]}', None),
        (b'{"input":[{"type":"additional_tools","tools":[{"type":"mcp"}]}]}', None),
        (b'{"web_search_options":{}}', "web_search_options"),
        (b'{"plugins":[{"id":"web"}]}', "plugins"),
        (b'{"Plugins":{"id":"web"}}', "Plugins"),
    ],
)
def test_every_tool_of_a_body_counts(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest, match="does not allow tools of type") as refused:
        check_body(_KEY, body)
    assert (refused.value.code, refused.value.param) == ("tool_not_allowed", param)


@pytest.mark.parametrize(
    "body",
    [
        b'{"tools":null,"web_search_options":null}',
        b'{"plugins":null}',
        b'{"plugins":[]}',
        b'{"metadata":{"plugins":"x"}}',
        b'{"tools":[5,{"type":"function","parameters":{"properties":{"tools":[{"type":"mcp"}]}}}]}',
        b'{"text":{"format":{"schema":{"tools":["mcp"]}}}}',
    ],
)
def test_what_is_no_tool_does_not_count(body: bytes) -> None:
    assert _code(body) is None


def test_a_key_without_limits_reads_no_body() -> None:
    assert _code(b"{", EVERYTHING, named=True) is None
