"""Tools and calls of earlier turns: replay, the store, tools that only the history knows; exchanges of Codex whole."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.actions import Chain, Context, ResponseRecord, StoredItem
from antiphon.translation.profiles import PROFILES
from antiphon.translation.tool_map import flat_name
from tests.support.exchanges import JSON, Outcome, run
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.strict_chat import check_chat_request

CLIENTS = Path(__file__).parent.parent.parent / "client_requests"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}
USER = {"role": "user", "content": "hi"}
PATCH = '*** Begin Patch\n*** Add File: a"b\\c.txt\n+é\U0001f600\\ud83d\t\n*** End Patch'


def _completion(*calls: tuple[str, str], content: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(calls)
        ]
    finish = "tool_calls" if calls else "stop"
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def _stream(completion: dict[str, Any], size: int) -> bytes:
    """The same answer as chunks, with `size` characters of arguments in each."""
    message = completion["choices"][0]["message"]
    deltas: list[dict[str, Any]] = [{"content": message["content"]}] if message["content"] else []
    for index, call in enumerate(message.get("tool_calls", ())):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        head = {"index": index, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        deltas.append({"tool_calls": [head]})
        for at in range(0, len(arguments), size):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments[at : at + size]}}]})
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": completion["choices"][0]["finish_reason"]}]})
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _answer(request: dict[str, Any], completion: dict[str, Any], *, context: Context | None = None) -> Outcome:
    """A JSON answer; the chat request must be one that the strictest server takes."""
    body = json.dumps(completion).encode()
    outcome = run({"model": "m", **request}, [body], headers=JSON, context=context)
    if outcome.calls:
        check_chat_request(outcome.chat)
    return outcome


def _chat(items: list[dict[str, Any]], **request: Any) -> Any:
    outcome = _answer({"input": items, **request}, _completion(content="ok"))
    assert outcome.calls, outcome.json
    return outcome.chat


def _declared(outcome: Outcome) -> set[str]:
    return {tool["function"]["name"] for tool in outcome.chat.get("tools", ())}


def _items_of(record: ResponseRecord) -> list[StoredItem]:
    return [*record.input_items, *record.output_items]


def _followed(*outcomes: Outcome) -> Context:
    """The history after these turns, as the store gives it back."""
    stored = [item for outcome in outcomes for record in outcome.records for item in _items_of(record)]
    return Context(chain=Chain(tuple(stored)))


# Declarations


@pytest.mark.parametrize(
    "parameters", [None, {}, {"type": "object"}, {"type": "object", "additionalProperties": False}]
)
def test_pitfall_9_an_object_of_nothing_gets_properties(parameters: Any) -> None:
    chat = _chat([USER], tools=[{"type": "function", "name": "g", "parameters": parameters}])
    sent = chat["tools"][0]["function"]["parameters"]
    assert sent == {"type": "object", **(parameters or {}), "properties": {}}


@pytest.mark.parametrize("schema", [{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}, {"anyOf": []}])
def test_pitfall_8_schemas_without_properties_of_their_own_pass_as_they_are(schema: Any) -> None:
    chat = _chat([USER], tools=[{"type": "function", "name": "g", "parameters": schema}])
    assert chat["tools"][0]["function"]["parameters"] == schema


def test_pitfall_25_names_of_mcp_tools_may_hold_anything() -> None:
    space = {"type": "namespace", "name": "mcp__a.b", "tools": [{"type": "function", "name": "files/read.all"}]}
    name = flat_name("files/read.all", "mcp__a.b")
    outcome = _answer({"input": "hi", "tools": [space]}, _completion((name, "{}")))
    (item,) = outcome.json["output"]
    assert (item["name"], item["namespace"]) == ("files/read.all", "mcp__a.b")


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        (None, True),
        ({"type": "local", "skills": [{"name": "container", "description": "", "path": "x"}]}, True),
        ({"type": "container_auto"}, False),
        ({"type": "container_reference", "container_id": "c"}, False),
    ],
)
def test_a_shell_in_a_container_is_a_hosted_tool(environment: Any, shown: bool) -> None:
    outcome = _answer(
        {"input": "hi", "tools": [{"type": "shell", "environment": environment}]}, _completion(content="x")
    )
    assert ("shell" in _declared(outcome)) is shown
    assert outcome.head is not None
    assert (dict(outcome.head.headers).get("antiphon-ignored") == "tools.shell") is not shown


def test_skills_of_a_shell_are_told_to_the_model() -> None:
    skills = [
        {"name": "pdf-forms", "description": "Fill forms.", "path": "/skills/pdf-forms"},
        {"name": "bare", "description": ""},
    ]
    chat = _chat([USER], tools=[{"type": "shell", "environment": {"type": "local", "skills": skills}}])
    described = chat["tools"][0]["function"]["description"]
    assert described.startswith("Run shell commands on the user's machine")
    assert described.splitlines()[-2:] == ["- pdf-forms (/skills/pdf-forms): Fill forms.", "- bare"]
    for none in (None, {"type": "local"}, {"type": "local", "skills": []}):
        chat = _chat([USER], tools=[{"type": "shell", "environment": none}])
        assert "Skills" not in chat["tools"][0]["function"]["description"]
    brought = {"type": "additional_tools", "tools": [{"type": "shell", "environment": {"skills": skills}}]}
    assert "pdf-forms" in _chat([brought, USER])["tools"][0]["function"]["description"]


@pytest.mark.parametrize("skills", ["x", [5], [{"description": "no name"}], [{"name": 5}]])
def test_what_are_no_skills_is_refused(skills: Any) -> None:
    tool = {"type": "shell", "environment": {"type": "local", "skills": skills}}
    outcome = _answer({"input": "hi", "tools": [tool]}, _completion(content="x"))
    assert outcome.json["error"]["param"].startswith("tools[0].environment.skills")


# The choice


def test_a_choice_shows_a_deferred_tool() -> None:
    tools = [{"type": "tool_search", "execution": "client"}, {**FUNCTION, "defer_loading": True}]
    choice = {"type": "function", "name": "f"}
    outcome = _answer({"input": "hi", "tools": tools, "tool_choice": choice}, _completion(("f", "{}")))
    assert outcome.chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert "f" in _declared(outcome)


def test_a_choice_may_name_a_tool_of_the_history() -> None:
    first = _answer(
        {"input": [{"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}, USER]},
        _completion(content="a"),
    )
    request = {"input": "on", "previous_response_id": "resp_1", "tool_choice": {"type": "function", "name": "f"}}
    outcome = _answer(request, _completion(("f", "{}")), context=_followed(first))
    assert _declared(outcome) == {"f"}
    assert outcome.json["output"][0]["type"] == "function_call"
    request["tool_choice"] = {"type": "function", "name": "g"}
    refused = _answer(request, _completion(("f", "{}")), context=_followed(first))
    assert refused.head is not None and refused.head.status == 400
    assert refused.json["error"]["param"] == "tool_choice"


def test_a_choice_without_a_name_says_so() -> None:
    choice = {"type": "function", "function": {"name": "f"}}
    outcome = _answer({"input": "hi", "tools": [FUNCTION], "tool_choice": choice}, _completion(content="x"))
    assert outcome.json["error"]["param"] == "tool_choice.name"


def test_an_emulated_choice_shows_only_that_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    emulating = replace(PROFILES["generic"], named_tool_choice="required")
    monkeypatch.setitem(PROFILES, "emulating", emulating)
    body = json.dumps(_completion(("f", "{}"))).encode()
    request = {
        "model": "m",
        "input": "hi",
        "tools": [FUNCTION, {"type": "function", "name": "g"}],
        "tool_choice": {"type": "function", "name": "f"},
    }
    outcome = run(request, [body], headers=JSON, profile="emulating")
    assert outcome.chat["tool_choice"] == "required" and _declared(outcome) == {"f"}


# Calls


def test_pitfall_58_a_call_without_arguments_has_an_empty_object() -> None:
    completion = _completion(("f", ""))
    whole = _answer({"input": "hi", "tools": [FUNCTION]}, completion).json["output"]
    outcome = run({"model": "m", "input": "hi", "stream": True, "tools": [FUNCTION]}, [_stream(completion, 9)])
    assert check_stream(parse_sse(outcome.body))["output"][0]["arguments"] == whole[0]["arguments"] == "{}"


def test_a_call_of_a_deferred_tool_still_finds_its_way_back() -> None:
    hidden = {"type": "namespace", "name": "mail", "tools": [{**FUNCTION, "defer_loading": True}]}
    tools = [{"type": "tool_search", "execution": "client"}, hidden]
    outcome = _answer({"input": "hi", "tools": tools}, _completion(("mail__f", "{}")))
    assert _declared(outcome) == {"tool_search"}
    assert outcome.json["output"][0]["namespace"] == "mail"


def test_a_call_of_a_tool_that_only_the_history_knows_has_its_old_form() -> None:
    items = [
        USER,
        {"type": "custom_tool_call", "call_id": "c", "name": "exec", "namespace": "functions", "input": "1"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "one"},
    ]
    outcome = _answer({"input": items}, _completion(("functions__exec", '{"input":"2"}')))
    (item,) = outcome.json["output"]
    assert (item["type"], item["name"], item["namespace"], item["input"]) == (
        "custom_tool_call",
        "exec",
        "functions",
        "2",
    )


@pytest.mark.parametrize("call_id", ["x" * 65, 'a"b'])
def test_pitfall_54_an_id_that_cannot_stay_is_replaced_the_same_way_every_time(call_id: str) -> None:
    completion = _completion(("f", "{}"))
    completion["choices"][0]["message"]["tool_calls"][0]["id"] = call_id
    first, second = (_answer({"input": "hi", "tools": [FUNCTION]}, completion).json["output"][0] for _ in range(2))
    assert first["call_id"] == second["call_id"] != call_id


def test_two_calls_with_one_id_get_two() -> None:
    completion = _completion(("f", "{}"), ("f", '{"x":1}'))
    for call in completion["choices"][0]["message"]["tool_calls"]:
        call["id"] = "call_same"
    first, second = _answer({"input": "hi", "tools": [FUNCTION]}, completion).json["output"]
    assert first["call_id"] == "call_same" != second["call_id"]


# Replay


def test_pitfall_47_long_ids_are_shortened_for_the_call_and_its_output_alike() -> None:
    long = "call_" + "0123456789abcdef" * 3
    chat = _chat(
        [
            USER,
            {"type": "function_call", "call_id": long, "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": long, "output": "1"},
        ]
    )
    sent = chat["messages"][1]["tool_calls"][0]["id"]
    assert len(sent) <= 40 and chat["messages"][2]["tool_call_id"] == sent


def test_pitfall_55_an_id_may_come_again_in_a_later_turn() -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    chat = _chat(
        [
            USER,
            call,
            {"type": "function_call_output", "call_id": "call_1", "output": "one"},
            call,
            {"type": "function_call_output", "call_id": "call_1", "output": "two"},
        ]
    )
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool", "assistant", "tool"]
    assert [message["content"] for message in chat["messages"][2::2]] == ["one", "two"]


def test_pitfall_34_calls_of_one_turn_are_one_message_whatever_their_kind() -> None:
    chat = _chat(
        [
            USER,
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "b", "name": "sum", "input": "1+1"},
            {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls"]}},
            {"type": "apply_patch_call", "call_id": "d", "operation": {"type": "delete_file", "path": "a"}},
            {"type": "apply_patch_call_output", "call_id": "d", "status": "failed", "output": "not there"},
            {
                "type": "shell_call_output",
                "call_id": "c",
                "output": [{"stdout": "a\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
            },
            {"type": "custom_tool_call_output", "call_id": "b", "output": {"type": "input_text", "text": "2"}},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "one"}]},
        ]
    )
    _, turn, *answers = chat["messages"]
    assert [call["function"]["name"] for call in turn["tool_calls"]] == ["f", "sum", "shell", "apply_patch"]
    assert [answer["tool_call_id"] for answer in answers] == ["a", "b", "c", "d"]
    assert answers[0]["content"] == "one" and answers[1]["content"] == "2"
    assert "exit code 0" in answers[2]["content"] and "not there" in answers[3]["content"]


def test_pitfall_29_a_local_shell_output_may_name_its_call_by_either_id() -> None:
    call = {"type": "local_shell_call", "id": "lsh_1", "call_id": "c", "action": {"type": "exec", "command": ["ls"]}}
    for name in ({"id": "lsh_1"}, {"id": "c"}, {"id": "other", "call_id": "c"}):
        chat = _chat([USER, call, {"type": "local_shell_call_output", "output": "done", **name}])
        assert (chat["messages"][-1]["tool_call_id"], chat["messages"][-1]["content"]) == ("c", "done")


def test_a_search_that_openai_ran_has_no_call_id() -> None:
    found = [{"type": "namespace", "name": "rates", "tools": [FUNCTION]}]
    items: list[dict[str, Any]] = [
        USER,
        {
            "type": "tool_search_call",
            "id": "tsc_1",
            "call_id": None,
            "execution": "server",
            "arguments": {"paths": ["f"]},
        },
        {"type": "tool_search_output", "id": "tso_1", "call_id": None, "execution": "server", "tools": found},
        {"type": "function_call", "call_id": "c", "name": "f", "namespace": "rates", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
    ]
    chat = _chat(items, tools=[{"type": "tool_search"}])
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool", "assistant", "tool"]
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["rates__f"]


# The store

NATIVE = [
    ({"type": "local_shell"}, "local_shell", '{"command":["ls"]}', {"output": "done"}),
    ({"type": "shell"}, "shell", '{"commands":["ls"]}', {"output": [{"stdout": "a", "outcome": {"type": "timeout"}}]}),
    (
        {"type": "apply_patch"},
        "apply_patch",
        '{"type":"create_file","path":"a","diff":"+x"}',
        {"status": "completed", "output": "done"},
    ),
    ({"type": "custom", "name": "sum"}, "sum", '{"input":"1+1"}', {"output": "2"}),
    (FUNCTION, "f", '{"x":1}', {"output": "2"}),
]


@pytest.mark.parametrize(("tool", "name", "arguments", "output"), NATIVE)
def test_a_chain_replays_stored_calls_under_the_same_names(
    tool: dict[str, Any], name: str, arguments: str, output: dict[str, Any]
) -> None:
    first = _answer({"input": "hi", "tools": [tool]}, _completion((name, arguments)))
    (item,) = first.json["output"]
    answer = {"type": f"{item['type']}_output", "call_id": item["call_id"], **output}
    request = {"input": [answer], "previous_response_id": "resp_1", "tools": [tool]}
    second = _answer(request, _completion(content="so"), context=_followed(first))
    call = second.chat["messages"][1]["tool_calls"][0]
    sent = json.loads(call["function"]["arguments"])
    assert (call["id"], call["function"]["name"]) == ("call_0", name)
    assert {key: sent[key] for key in json.loads(arguments)} == json.loads(arguments)
    assert second.chat["messages"][2]["role"] == "tool"
    # The output is stored as it came, and a third turn sees both again.
    (stored,) = second.records[0].input_items
    assert json.loads(stored.body).items() >= answer.items()
    history = _followed(first, second)
    third = _answer({"input": "on", "previous_response_id": "resp_2"}, _completion(content="x"), context=history)
    assert [message["role"] for message in third.chat["messages"]] == ["user", "assistant", "tool", "assistant", "user"]


def test_tools_that_an_item_brought_stay_for_the_chain() -> None:
    bring = {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom", "name": "exec"}]}
    first = _answer({"input": [bring, USER]}, _completion(content="a"))
    request = {"input": "on", "previous_response_id": "resp_1"}
    second = _answer(request, _completion(("exec", '{"input":"1"}')), context=_followed(first))
    assert second.json["output"][0]["type"] == "custom_tool_call"


# Whole exchanges of Codex

CALLS: dict[str, list[tuple[str, str, str]]] = {
    "codex_cli-apply_patch": [("custom_tool_call", "", "apply_patch"), ("function_call", "", "exec_command")],
    "codex_cli-code_mode": [("custom_tool_call", "functions", "exec"), ("function_call", "functions", "wait")],
    "codex_cli-mcp_namespace": [],
    "codex_cli-extra-mcp-namespace": [],
    "codex_cli-extra-model-gpt-5.5-tools": [("tool_search_call", "", "tool_search")],
    "codex_cli-extra-model-gpt-5.6-additional-tools": [("custom_tool_call", "functions", "exec")],
}


def _request(case: str) -> dict[str, Any]:
    requests = json.loads((CLIENTS / f"{case}.json").read_text())["requests"]
    found: dict[str, Any] = next(
        sent["json"] for sent in requests if sent["method"] == "POST" and sent["path"].endswith("/responses")
    )
    return found


def _brought(request: dict[str, Any]) -> list[dict[str, Any]]:
    items = [item for item in request["input"] if item.get("type") == "additional_tools"]
    return [*request.get("tools", ()), *(tool for item in items for tool in item["tools"])]


def _every_call(request: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Item type, namespace and name of what the client can be called with."""
    calls = []
    for tool in _brought(request):
        if tool["type"] == "namespace":
            calls += [
                ("custom_tool_call" if one["type"] == "custom" else "function_call", tool["name"], one["name"])
                for one in tool["tools"]
            ]
        elif tool["type"] in ("function", "custom"):
            calls.append(("custom_tool_call" if tool["type"] == "custom" else "function_call", "", tool["name"]))
        elif tool["type"] == "tool_search":
            calls.append(("tool_search_call", "", "tool_search"))
    return calls


@pytest.mark.parametrize("case", CALLS)
def test_codex_gets_every_call_back_as_it_declared_it(case: str) -> None:
    request = {**_request(case), "parallel_tool_calls": True}
    wanted = _every_call(request)
    assert wanted and set(CALLS[case]) <= set(wanted)
    arguments = {
        "custom_tool_call": json.dumps({"input": PATCH}),
        "function_call": json.dumps({"a": PATCH}),
        "tool_search_call": '{"query":"mail"}',
    }
    calls = [(flat_name(name, space or None), arguments[kind]) for kind, space, name in wanted]
    completion = _completion(*calls)
    whole = run({**request, "stream": False}, [json.dumps(completion).encode()], headers=JSON)
    check_chat_request(whole.chat)
    assert {name for name, _ in calls} == _declared(whole)
    check_response(whole.json)
    output = whole.json["output"]
    assert [(item["type"], item.get("namespace", ""), item.get("name", "tool_search")) for item in output] == wanted
    assert all(item["input"] == PATCH for item in output if item["type"] == "custom_tool_call")
    dice = random.Random(case)
    for size in (1, 7, 1000):
        data = _stream(completion, size)
        cuts = sorted(dice.sample(range(len(data)), 20))
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        streamed = run({**request, "stream": True}, pieces)
        assert streamed.body == run({**request, "stream": True}, [data]).body
        final = check_stream(parse_sse(streamed.body))
        assert final["output"] == output


# The echo


def test_tools_are_echoed_as_openai_does() -> None:
    custom = {"type": "custom", "name": "sum", "format": {"type": "text"}}
    space = {"type": "namespace", "name": "s", "description": "d", "tools": [FUNCTION, custom]}
    search = {"type": "tool_search", "execution": "client"}
    tools = [FUNCTION, {"type": "function", "name": "g", "defer_loading": True}, custom, space, search]
    echo = _answer({"input": "hi", "tools": tools}, _completion(content="x")).json["tools"]
    assert echo == [
        {**FUNCTION, "description": None, "strict": None},
        {
            "type": "function",
            "name": "g",
            "description": None,
            "parameters": None,
            "strict": None,
            "defer_loading": True,
        },
        custom,
        space,
        {**search, "description": None, "parameters": None},
    ]


ASKED = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "t", "arguments": "{}"}
REFUSED = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": False}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({**REFUSED, "reason": 'Remote "access" declined.'}, 'The user refused it. Reason: Remote "access" declined.'),
        (REFUSED, "The user refused it."),
        ({**REFUSED, "reason": None}, "The user refused it."),
        ({**REFUSED, "reason": ""}, "The user refused it."),
    ],
)
def test_the_reason_of_an_approval_reaches_the_model_in_every_later_turn(answer: dict[str, Any], told: str) -> None:
    plain = [json.dumps(_completion(content="so")).encode()]
    first = run({"model": "m", "input": [USER, ASKED, answer]}, plain, headers=JSON)
    (record,) = first.records
    context = Context(chain=Chain((*record.input_items, *record.output_items)))
    then = {"model": "m", "input": "and?", "previous_response_id": record.id}
    for outcome in (first, run(then, plain, headers=JSON, context=context)):
        (output,) = (one["content"] for one in outcome.chat["messages"] if one["role"] == "tool")
        assert output == told


def test_an_approval_that_names_no_request_is_told_so() -> None:
    answer = {"type": "mcp_approval_response", "approve": True}
    outcome = run({"model": "m", "input": [USER, answer]})
    assert outcome.head is not None and outcome.head.status == 400
    assert outcome.json["error"]["param"] == "input[1].approval_request_id"
    assert outcome.json["error"]["code"] == "missing_required_parameter"
