"""Any declaration of any kind of tool is used, left out and named, or a 400 that names it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.translation.request.field_support import GROUPS
from tests.support.effort import examples
from tests.support.exchanges import JSON, Outcome, run
from tests.support.strict_chat import check_chat_request

KINDS = sorted({name.split(".")[1] for name in GROUPS["Tools"] if name.startswith("tools.")})
ANSWER = json.dumps({"choices": [{"message": {"content": "so"}, "finish_reason": "stop"}]}).encode()
_TEXT = st.sampled_from(["", "a", "look", "direct", "programmatic", "client", "grammar", "local", "object", "x" * 70])
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT | st.sampled_from(["type"]), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = (
    *("name", "description", "parameters", "strict", "format", "execution", "environment", "defer_loading"),
    *("allowed_callers", "server_label", "server_url", "vector_store_ids", "container", "filters", "output_schema"),
)
_PLAIN = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional=dict.fromkeys(_FIELDS, _JUNK) | {"name": _JUNK | st.sampled_from(["f", "g"])},
)
_TOOL = _PLAIN | st.fixed_dictionaries(
    {"type": st.just("namespace"), "name": st.sampled_from(["n", "m"]), "tools": st.lists(_PLAIN, max_size=2) | _JUNK}
)


def ask(**request: Any) -> Outcome:
    return run({"model": "m", "input": "Hi", **request}, [ANSWER], headers=JSON)


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(_TOOL | _JUNK, max_size=3), st.booleans())
def test_declarations(tools: list[Any], brought: bool) -> None:
    if brought:
        items = [{"role": "user", "content": "Hi"}, {"type": "additional_tools", "role": "developer", "tools": tools}]
        outcome = ask(input=items)
    else:
        outcome = ask(tools=tools)
    assert outcome.head is not None
    if outcome.head.status == 400:
        assert outcome.json["error"]["param"].startswith("input[1].tools" if brought else "tools")
    else:
        assert outcome.head.status == 200
        check_chat_request(outcome.chat)


@pytest.mark.parametrize("kind", [None, False, 0, {}])
def test_what_is_no_type_is_an_object_of_nothing(kind: Any) -> None:
    outcome = ask(tools=[{"type": "function", "name": "f", "parameters": {"type": kind, "title": "t"}}])
    check_chat_request(outcome.chat)
    assert outcome.chat["tools"][0]["function"]["parameters"] == {"type": "object", "title": "t", "properties": {}}


@pytest.mark.parametrize("parameters", ["x", 5, [], True])
@pytest.mark.parametrize("kind", ["function", "custom", "local_shell", "shell", "apply_patch", "tool_search"])
def test_parameters_that_are_no_object_are_refused_of_every_kind(kind: str, parameters: Any) -> None:
    outcome = ask(tools=[{"type": kind, "name": "f", "execution": "client", "parameters": parameters}])
    assert outcome.head is not None and outcome.head.status == 400
    assert (outcome.json["error"]["param"], outcome.json["error"]["code"]) == ("tools[0].parameters", "invalid_type")


def test_tools_for_programs_alone_are_left_out_and_named() -> None:
    def tool(name: str, *callers: str) -> dict[str, Any]:
        return {"type": "function", "name": name, "parameters": {"type": "object"}, "allowed_callers": list(callers)}

    tools = [tool("a", "programmatic"), tool("b", "direct", "programmatic"), tool("c")]
    tools.append({"type": "namespace", "name": "n", "tools": [tool("d", "programmatic"), tool("e", "direct")]})
    outcome = ask(tools=tools)
    assert [one["function"]["name"] for one in outcome.chat["tools"]] == ["b", "c", "n__e"]
    assert outcome.head is not None
    named = dict(outcome.head.headers)["antiphon-ignored"]
    assert named == "tools.function.allowed_callers, tools[0].allowed_callers, tools[3].tools[0].allowed_callers"
    # Who demands it is told that it cannot be had.
    chosen = ask(tools=tools, tool_choice={"type": "function", "name": "a"})
    assert chosen.head is not None and chosen.head.status == 400


@pytest.mark.parametrize(
    ("kind", "setting"), [("code_interpreter", "code_interpreter.sandbox"), ("mcp", "mcp.enabled")]
)
def test_a_tool_that_cannot_run_here_names_the_setting(kind: str, setting: str) -> None:
    outcome = ask(tools=[{"type": kind}])
    assert outcome.json["error"]["code"] == "unsupported_tool" and f"'{setting}'" in outcome.json["error"]["message"]
