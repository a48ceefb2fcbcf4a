"""What a body names is checked against the client's key, in every spelling that some upstream accepts."""

from __future__ import annotations

import json
import re

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
        (b'{"model":"qwen3,gpt"}', "model_not_found"),
        (b'{"model":"qwen3, gpt"}', "model_not_found"),
        (b'{"model":"qwen3,"}', "model_not_found"),
        (b'{"model":"qwen3, qwen2"}', None),
        (b'{"model":"qwen3","models":["qwen3,gpt"]}', "model_not_found"),
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


@pytest.mark.parametrize("field", ["fallbacks", "Context_Window_Fallbacks", "content_policy_fallbacks"])
@pytest.mark.parametrize(
    ("value", "param"),
    [
        (["qwen2", "gpt"], "[1]"),
        ([{"model": "qwen2"}, {"model": "gpt", "messages": []}], "[1].model"),
        ([{"model": "qwen2", "models": ["gpt"]}], "[0].models[0]"),
        ([{"model": "qwen2", "fallbacks": ["gpt"]}], "[0].fallbacks[0]"),
        ([{"qwen3": ["qwen2", "gpt"]}], "[0]"),
        ([{"qwen3": [{"model": "gpt"}]}], "[0].model"),
        ({"qwen3": ["qwen2"], "*": ["gpt"]}, "[0]"),
    ],
)
def test_a_fallback_of_litellm_is_a_model_of_the_body(field: str, value: object, param: str) -> None:
    body = {"model": "qwen3", field: value}
    for prefix, sent in (("", body), ("extra_body.", {"model": "qwen3", "extra_body": {field: value}})):
        with pytest.raises(ApiError, match="'gpt' does not exist") as refused:
            check_body(_KEY, json.dumps(sent).encode())
        assert (refused.value.code, refused.value.param) == ("model_not_found", f"{prefix}{field}{param}")
    assert _code(json.dumps(body).replace("gpt", "qwen1").encode()) is None
    assert _code(json.dumps(body).encode(), Access(tools=("function",))) is None


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("fallbacks", "qwen2", "fallbacks"),
        ("fallbacks", [5], "fallbacks[0]"),
        ("fallbacks", [["qwen2"]], "fallbacks[0]"),
        ("fallbacks", [{"qwen3": "qwen2"}], "fallbacks[0]"),
        ("fallbacks", [{"qwen3": {"qwen2": ["qwen1"]}}], "fallbacks[0]"),
        ("fallbacks", [{"qwen3": [{"qwen2": ["qwen1"]}]}], "fallbacks[0]"),
        # With entries of two forms, LiteLLM also reads the second entry as a mapping.
        ("fallbacks", ["qwen2", {"qwen3": ["gpt"], "model": "qwen1"}], "fallbacks"),
        ("fallbacks", [{"model": "qwen1", "qwen3": ["gpt"]}, {"qwen2": ["qwen1"]}], "fallbacks"),
        # LiteLLM reads an object with a model as a mapping too, if a member has the name of the request's model.
        ("fallbacks", [{"qwen3": ["gpt"], "model": "qwen3"}], "fallbacks[0].qwen3"),
        ("fallbacks", [{"qwen3": ["gpt"], "MODEL": "qwen3"}], "fallbacks[0].qwen3"),
        ("fallbacks", [{"qwen3": ["gpt"], "Model": None}], "fallbacks[0].qwen3"),
        ("fallbacks", [{"*": ["gpt"], "model": "qwen3"}], "fallbacks[0].*"),
        ("fallbacks", [{"qwen3": {"gpt": 1}, "model": "qwen3"}], "fallbacks[0].qwen3"),
        ("fallbacks", [{"MODEL": "qwen3"}], "fallbacks[0].MODEL"),
        ("fallbacks", [{"qwen2": [{"model": "qwen3", "*": ["gpt"]}]}], "fallbacks[0].*"),
        ("context_window_fallbacks", [{"qwen3": ["gpt"], "model": "qwen3"}], "context_window_fallbacks[0].qwen3"),
        ("content_policy_fallbacks", [{"*": ["gpt"], "Model": "qwen3"}], "content_policy_fallbacks[0].*"),
        ("router_settings_override", {"fallbacks": ["gpt"]}, "router_settings_override"),
        ("user_config", {"model_list": []}, "user_config"),
        ("litellm_params", {"model": "gpt"}, "litellm_params"),
        ("Api_Base", "http://other", "Api_Base"),
        ("engine", "gpt", "engine"),
        ("extra_body", {"deployment_id": "gpt"}, "extra_body.deployment_id"),
        ("extra_body", "{}", "extra_body"),
    ],
)
def test_a_key_with_models_refuses_a_field_whose_models_cannot_be_found(field: str, value: object, param: str) -> None:
    body = json.dumps({"model": "qwen3", field: value}).encode()
    with pytest.raises(InvalidRequest, match=re.escape(f"cannot find the models in '{param}'")) as refused:
        check_body(_KEY, body)
    assert (refused.value.code, refused.value.param) == ("invalid_value", param)
    assert _code(body, Access(tools=("function",))) is None


def test_a_key_allows_a_name_with_commas_that_it_lists() -> None:
    assert _code(b'{"model":"qwen3,gpt"}', Access(models=("qwen3,gpt",))) is None
    assert _code(b'{"model":"gpt,qwen3"}', Access(models=("qwen3,gpt",))) == "model_not_found"


def test_a_fallback_request_may_have_fields_of_a_request() -> None:
    request = {"model": "qwen2", "messages": [{"role": "user", "content": "Hi"}], "stop": ["x"], "metadata": {"a": "b"}}
    assert _code(json.dumps({"model": "qwen3", "fallbacks": [request]}).encode()) is None


@pytest.mark.parametrize("value", ["null", "[]", '[{"qwen3":[]}]', "{}"])
def test_an_empty_list_of_fallbacks_names_no_model(value: str) -> None:
    assert _code(b'{"model":"qwen3","fallbacks":%s,"extra_body":null}' % value.encode()) is None


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
        ('{"tool\u017f":["mcp"]}'.encode(), "tools[0]"),
        (b'{"tools":[{"type":"function","tools":[{"Type":"mcp"}]}]}', None),
        (b'{"input":[{"type":"additional_tools","tools":[{"type":"mcp"}]}]}', None),
        (b'{"web_search_options":{}}', "web_search_options"),
        (b'{"plugins":[{"id":"web"}]}', "plugins"),
        (b'{"Plugins":{"id":"web"}}', "Plugins"),
        (b'{"extra_body":{"plugins":[{"id":"web"}]}}', "plugins"),
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
