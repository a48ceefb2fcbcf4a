"""Tools that the model is not shown: named to the client in the response, told to the operator, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.actions import RequestHead
from tests.support.exchanges import Outcome, make_exchange, run
from tests.support.hosted_tools import ScriptedTools

OK = [b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}']
JSON = (("content-type", "application/json"),)
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
USER = {"role": "user", "content": "hi"}
REFUSE = ToolSettings.model_validate({"unavailable": "refuse"})

LEFT_OUT: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("not set up", {"tools": [{"type": "web_search"}]}, "tools.web_search", "tools[0].type", "web_search.provider"),
    ("off", {"tools": [TOOL, {"type": "file_search"}]}, "tools.file_search", "tools[1].type", "vector_stores.enabled"),
    (
        "none",
        {"tools": [{"type": "image_generation"}]},
        "tools.image_generation",
        "tools[0].type",
        "does not implement the tool",
    ),
    ("misspelt", {"tools": [{"type": "weather"}]}, "tools.weather", "tools[0].type", "does not support this tool"),
    (
        "in a container",
        {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
        "tools.shell",
        "tools[0].type",
        "does not implement the tool",
    ),
    (
        "for programs",
        {"tools": [{**TOOL, "allowed_callers": ["programmatic"]}]},
        "tools[0].allowed_callers",
        "tools[0].allowed_callers",
        "Add 'direct'",
    ),
    (
        "inside of a namespace",
        {
            "tools": [
                {
                    "type": "namespace",
                    "name": "n",
                    "description": "",
                    "tools": [TOOL, {**TOOL, "name": "g", "allowed_callers": ["programmatic"]}],
                }
            ]
        },
        "tools[0].tools[1].allowed_callers",
        "tools[0].tools[1].allowed_callers",
        "Add 'direct'",
    ),
    (
        "declared by an item",
        {"input": [USER, {"type": "additional_tools", "tools": [{"type": "weather"}]}]},
        "tools.weather",
        "input[1].tools[0].type",
        "does not support this tool",
    ),
]


def _ask(fields: dict[str, Any], **options: Any) -> Outcome:
    return run({"model": "m", "input": "hi", **fields}, OK, headers=JSON, **options)


@pytest.mark.parametrize(
    ("fields", "name", "param", "says"), [one[1:] for one in LEFT_OUT], ids=[one[0] for one in LEFT_OUT]
)
def test_a_tool_that_is_left_out_is_named_in_the_response_or_refused(
    fields: dict[str, Any], name: str, param: str, says: str
) -> None:
    served = _ask(fields)
    assert served.head is not None and served.head.status == 200
    assert name in dict(served.head.headers)["antiphon-ignored"].split(", ")
    assert served.json["metadata"] == {"antiphon_ignored": name}
    refused = _ask(fields, tool_limits=REFUSE)
    assert refused.head is not None and refused.head.status == 400 and not refused.calls
    error = refused.json["error"]
    assert error["param"] == param and says in error["message"], error


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"tools": [{"type": "weather"}, {"type": "web_search"}], "tool_choice": "required"},
            "none of the given tools runs here: weather, web_search.",
        ),
        ({"tools": [{"type": "weather"}], "tool_choice": "required"}, "none of the given tools runs here: weather."),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "('web_search.provider')"),
        ({"tools": [], "tool_choice": {"type": "code_interpreter"}}, "('code_interpreter.sandbox')"),
    ],
)
def test_a_choice_of_what_does_not_run_here_says_why(fields: dict[str, Any], says: str) -> None:
    error = _ask(fields).json["error"]
    assert error["param"] == "tool_choice" and says in error["message"]


def test_a_misspelt_type_is_told_with_what_may_be_meant() -> None:
    error = _ask({"tools": [{"type": "web_serach"}]}, tool_limits=REFUSE).json["error"]
    assert error["message"] == "Unknown type of tool: 'web_serach'. Did you mean 'web_search'?"


def test_a_search_of_a_cache_that_is_not_here() -> None:
    tool = {"type": "web_search", "external_web_access": False}
    assert _ask({"tools": [tool]}, tools=ScriptedTools()).json["metadata"] == {"antiphon_ignored": "tools.web_search"}
    error = _ask({"tools": [tool]}, tools=ScriptedTools(), tool_limits=REFUSE).json["error"]
    assert (error["param"], error["code"]) == ("tools[0].external_web_access", "unsupported_tool")


def test_what_runs_here_and_what_is_no_tool_is_not_named() -> None:
    asked = {"tools": [TOOL, {"type": "web_search", "aura": 1}], "hunch": 1, "metadata": {"k": "v"}}
    served = _ask(asked, tools=ScriptedTools(), tool_limits=REFUSE)
    assert served.head is not None and served.head.status == 200
    assert served.json["metadata"] == {"k": "v"}


@pytest.mark.parametrize("pairs", [0, 15, 16])
def test_the_clients_own_pairs_come_first(pairs: int) -> None:
    own = {f"k{number}": "v" for number in range(pairs)}
    shown = _ask({"tools": [{"type": "weather"}, {"type": "web_search"}], "metadata": own}).json["metadata"]
    named = {"antiphon_ignored": "tools.weather, tools.web_search"} if pairs < 16 else {}
    assert shown == {**own, **named}


def test_many_names_are_cut_to_what_a_value_may_hold() -> None:
    value = _ask({"tools": [{"type": f"tool_{number:03}"} for number in range(60)]}).json["metadata"][
        "antiphon_ignored"
    ]
    assert len(value) <= 512 and value.startswith("tools.tool_000, tools.tool_001, ") and value.endswith(", ...")


@pytest.mark.parametrize(
    ("types", "unknown", "left_out"),
    [
        (["web_search"], (), ("tools.web_search",)),
        (["weather", "web_search"], ("tools.weather",), ("tools.weather", "tools.web_search")),
    ],
)
def test_what_an_operator_is_told(types: list[str], unknown: tuple[str, ...], left_out: tuple[str, ...]) -> None:
    exchange = make_exchange()
    tools = ",".join(f'{{"type":"{one}"}}' for one in types)
    body = f'{{"model":"m","input":"hi","tools":[{tools}]}}'.encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert (exchange.known.unknown, exchange.known.left_out) == (unknown, left_out)
