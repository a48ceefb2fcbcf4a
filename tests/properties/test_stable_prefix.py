"""What a model was sent once, every later call of the conversation begins with, byte for byte.

Engines keep what they have computed of a prompt and use it again for one that begins the same; a message that changes
in the middle of a history makes every turn after it as slow as the first. `docs/explanation/exactness.md` has the rule
and its exceptions, which are asserted here as well, so that they are the only ones.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antiphon.engine.ports.hosted_tools import HostedCall, ToolResult
from antiphon.translation.events.citations import Source
from antiphon.translation.profiles import PROFILES
from tests.support.hosted_tools import ScriptedTools
from tests.support.model_turns import model_turn
from tests.support.recordings import Recording, all_recordings
from tests.support.strict_chat import check_chat_request
from tests.support.talks import WAYS, Talk

TOOLS: list[dict[str, Any]] = [
    {"type": "file_search", "vector_store_ids": ["vs_1"]},
    {"type": "web_search"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "mcp", "server_label": "dice", "server_url": "https://d.example", "require_approval": "never"},
    {"type": "mcp", "server_label": "vault", "server_url": "https://v.example"},
    {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}},
    {"type": "function", "name": "later", "parameters": {"type": "object", "properties": {}}, "async": True},
    {"type": "custom", "name": "draw"},
]
PICTURE = "data:image/png;base64,AAAA"
HOSTED = ["file_search", "web_search", "code_interpreter", "dice__roll", "vault__roll"]
PROFILE_NAMES = ["generic", "openai", "mistral", "deepseek", "llamacpp", "openrouter", "ollama", "gemini"]

# What is said

_ARGUMENTS = st.sampled_from(["{}", '{"query": "a"}', "", "{", "[1]", '{"a":"\\ud800"}', '{"code":"1+1"}'])
_OWN_CALL = st.tuples(st.sampled_from(["look", "later"]), _ARGUMENTS) | st.just(("draw", '{"input":"x"}'))
_HOSTED_CALL = st.tuples(st.sampled_from(HOSTED), _ARGUMENTS)
_TEXT = st.sampled_from(["", "So.", "<think>hm</think>So.", "It rains【1】. And【2】", 'é "q" \\ 😀', "  "])
_REASONING = st.sampled_from(["", "", "Let me see.\n"])
_HOSTED_ANSWER = st.tuples(_TEXT, st.lists(_HOSTED_CALL, min_size=1, max_size=3), _REASONING)
_LAST_ANSWER = st.tuples(_TEXT, st.lists(_OWN_CALL | _HOSTED_CALL, max_size=3), _REASONING)
_ANSWERS = st.tuples(st.lists(_HOSTED_ANSWER, max_size=2), _LAST_ANSWER).map(lambda made: [*made[0], made[1]])
_EXTRA = st.sampled_from(
    [
        *("developer", "agent", "configuration", "pair", "nameless_pair", "search", "nameless_search", "shell"),
        *("computer", "thought", "again", "parts", "picture"),
    ]
)
_TURN = st.fixed_dictionaries(
    {
        "answers": _ANSWERS,
        "extras": st.lists(_EXTRA, max_size=2),
        "user": st.sampled_from(["first", "last", "none"]),
        "outputs": st.lists(st.integers(0, 5), min_size=1, max_size=3),
        "stream": st.booleans(),
        # Servers that count the calls of each answer from 0.
        "counting": st.booleans(),
    }
)


class _Found(ScriptedTools):
    """Results of all kinds, by the place of the call: what a model reads and a client does not see."""

    def __init__(self) -> None:
        super().__init__(self._found)

    def _found(self, call: HostedCall) -> ToolResult:
        kind, name = len(self.calls) % 4, call.call_id
        if kind == 0:
            error = {"type": "mcp_tool_execution_error", "content": []}
            return ToolResult(name, "The call failed: no.", {"error": error}, failed=True)
        if kind == 1:
            return ToolResult(name, "", {}, images=(PICTURE,))
        if kind == 2 and call.tool.type == "mcp":
            return ToolResult(name, "6", {"output": "6"})
        source = Source({"type": "url_citation", "url": "https://b.example", "title": "B"})
        fields: dict[str, Any] = {"file_search": {"queries": ["a"], "results": [{"text": "x"}]}}
        return ToolResult(
            name, 'Snow{cite:0} and "more"\n', fields.get(call.tool.type, {}), sources=(source,), images=(PICTURE,)
        )


class _Client:
    """A client by a script: it answers what waits for it, in some form, at once or later."""

    def __init__(self, profile: str) -> None:
        self._profile = PROFILES[profile]
        self._waiting: list[dict[str, Any]] = []
        self._answered: list[str] = []

    def next_items(self, number: int, turn: dict[str, Any], output: list[dict[str, Any]]) -> list[Any]:
        forms, items = turn["outputs"], list[Any]()
        due, self._waiting = [*self._waiting, *output], []
        for place, item in enumerate(due):
            form = forms[place % len(forms)]
            alone = sum(one.get("name") == item.get("name") for one in due) == 1
            items += self._answer(item, form, alone=alone)
        for extra in turn["extras"]:
            items += self._extra(extra, f"{number}_{len(items)}", first=number == 0)
        said = {"role": "user", "content": f"say {number}"}
        if turn["user"] == "first":
            return [said, *items]
        # Behind nothing but the model's own words there would be nothing to answer.
        return items if turn["user"] == "none" and any(map(_asks, items)) else [*items, said]

    def _answer(self, item: dict[str, Any], form: int, *, alone: bool) -> list[Any]:
        kind = item["type"]
        if kind == "mcp_approval_request":
            if form >= 4:
                self._waiting.append(item)
                return []
            return [{"type": "mcp_approval_response", "approval_request_id": item["id"], "approve": form > 0}]
        if kind == "custom_tool_call":
            return [{"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "drawn"}]
        if kind != "function_call":
            return []
        if item["name"] == "later" and form >= 3:
            self._waiting.append(item)
            return []
        self._answered.append(item["call_id"])
        parts: list[Any] = [{"type": "input_text", "text": "seen"}, {"type": "input_text", "text": 'é"'}]
        if self._profile.images:
            parts.append({"type": "input_image", "image_url": PICTURE})
        outputs: list[Any] = ["seen", "", parts, {"seen": [1, "é"]}, parts[:1], "seen"]
        answer = {"type": "function_call_output", "call_id": item["call_id"], "output": outputs[form]}
        if form == 5 and alone:
            answer = {"type": "function_call_output", "name": item["name"], "output": "seen"}
        return [answer]

    def _extra(self, kind: str, name: str, *, first: bool) -> list[Any]:
        call, answer = {"type": "function_call", "name": "look", "arguments": {"a": 1}}, {"output": "pair"}
        made: dict[str, list[Any]] = {
            "agent": [{"type": "agent_message", "author": "a", "recipient": "b", "content": "done"}],
            "configuration": [{"type": "configuration_update", "reasoning": {"effort": "low"}}],
            "pair": [
                {**call, "id": f"fc_{name}", "call_id": f"c_{name}"},
                {"type": "function_call_output", "call_id": f"c_{name}", **answer},
            ],
            "nameless_pair": [call, {"type": "function_call_output", "name": "look", **answer}],
            "search": [{"type": "web_search_call", "id": f"ws_mine_{name}", "action": {"query": "q"}}],
            "nameless_search": [{"type": "web_search_call", "status": "completed", "action": {"query": "q"}}],
            "shell": [
                {"type": "local_shell_call", "id": f"sh_{name}", "action": {"command": ["ls"]}},
                {"type": "local_shell_call_output", "id": f"sh_{name}", "output": "files"},
            ],
            "thought": [
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Mine."}]},
            ],
            "parts": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 2}],
        }
        if kind == "developer" and (first or self._profile.system_anywhere):
            return [{"role": "developer", "content": f"mind {name}"}]
        if kind == "again" and self._answered:
            return [{"type": "function_call_output", "call_id": self._answered[0], "output": "more"}]
        if kind in ("computer", "picture") and self._profile.images:
            image = {"image_url": PICTURE}
            if kind == "picture":
                return [{"role": "user", "content": [{"type": "input_image", **image}]}]
            return [
                {"type": "computer_call", "id": f"cu_{name}", "call_id": f"cuc_{name}", "action": {"type": "wait"}},
                {
                    "type": "computer_call_output",
                    "call_id": f"cuc_{name}",
                    "output": {"type": "computer_screenshot", **image},
                },
            ]
        items = made.get(kind, [])
        # What ends in the model's own words is no question.
        return [*items, {"role": "user", "content": "well?"}] if kind.endswith(("search", "thought")) else items


def _read(calls: list[list[bytes]]) -> list[Any]:
    """What the messages say: a client writes the same text with escapes of its own."""
    return [[json.loads(one) for one in messages] for messages in calls]


def _asks(item: dict[str, Any]) -> bool:
    return item.get("role") == "user" or item.get("type", "").endswith(("_output", "_response", "agent_message"))


def _talk(way: Any, profile: str, turns: list[dict[str, Any]], fields: dict[str, Any]) -> Talk:
    talk, client = Talk(way, profile, _Found()), _Client(profile)
    for number, turn in enumerate(turns):
        items = client.next_items(number, turn, talk.output)
        answers = [
            model_turn(
                text,
                *calls,
                stream=turn["stream"],
                pieces=3,
                prefix="call" if turn["counting"] else f"call{number}{place}",
                reasoning=reasoning,
            )
            for place, (text, calls, reasoning) in enumerate([*turn["answers"], ("Enough.", [], "")])
        ]
        outcome = talk.respond(items, answers, stream=turn["stream"], tools=TOOLS, **fields)
        for call in outcome.calls:
            chat = json.loads(call.request.body)
            check_chat_request(chat)
            called = [each["id"] for one in chat["messages"] for each in one.get("tool_calls") or ()]
            assert len(set(called)) == len(called), called
    return talk


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(PROFILE_NAMES),
    st.lists(_TURN, min_size=2, max_size=4),
    st.sampled_from([{}, {"instructions": "Be brief."}]),
    st.sampled_from([{}, {"max_tool_calls": 2}, {"include": ["reasoning.encrypted_content"]}]),
)
def test_what_was_sent_stays(
    profile: str, turns: list[dict[str, Any]], instructions: dict[str, Any], more: dict[str, Any]
) -> None:
    """In every way of going on; and all of them show the model the same, as far as the client knows all of it."""
    talks = {way: _talk(way, profile, turns, instructions | more) for way in WAYS}
    chain, conversation, replay = (talks[way] for way in WAYS)
    assert chain.calls == conversation.calls
    # Where nothing was changed, the comparison of two stored prompts finds no difference either.
    assert chain.missed == conversation.missed <= {"reasoning_effort_changed"}
    if not chain.tools.calls:
        assert _read(replay.calls) == _read(chain.calls)


def test_what_may_answer_later_was_put_off_for_good() -> None:
    """The model has gone on without it: its output comes as news, and the tool message stays."""
    for way in WAYS:
        talk = Talk(way, "generic", _Found())
        calls = model_turn("", ("later", "{}"), ("look", "{}"), stream=False)
        talk.respond([{"role": "user", "content": "hi"}], [calls], tools=TOOLS)
        later, look = ({"type": "function_call_output", "call_id": f"call_{n}", "output": "42"} for n in range(2))
        talk.respond([look], [model_turn("Waiting.", stream=False)], tools=TOOLS)
        talk.respond([later], [model_turn("So.", stream=False)], tools=TOOLS)
        call, output = map(json.loads, talk.calls[-1][-2:])
        assert call["tool_calls"][0]["function"]["name"] == "later"
        assert (output["role"], output["content"]) == ("tool", "42")


def test_an_output_without_an_id_finds_its_call_again() -> None:
    for way in WAYS:
        talk = Talk(way, "generic", _Found())
        talk.respond(
            [{"role": "user", "content": "hi"}], [model_turn("", ("look", "{}"), ("later", "{}"), stream=False)]
        )
        named = [{"type": "function_call_output", "name": name, "output": name} for name in ("later", "look")]
        talk.respond(named, [model_turn("So.", stream=False)])
        talk.respond([{"role": "user", "content": "and?"}], [model_turn("So.", stream=False)])
        told = [json.loads(one) for one in talk.calls[-1] if b'"tool"' in one]
        assert [one["content"] for one in told] == ["look", "later"]


def test_the_results_stay_although_the_client_never_sees_them() -> None:
    """And their marks are numbered on: an old one never means a source that was found later."""
    for way in WAYS[:2]:
        talk = Talk(way, "generic", ScriptedTools(_secret))
        search = model_turn("", ("web_search", "{}"), stream=False)
        for text in ("It is so【1】.", "It is so【1】【2】."):
            outcome = talk.respond(
                [{"role": "user", "content": "hi"}], [search, model_turn(text, stream=False)], tools=TOOLS
            )
            assert b"secret" not in outcome.body
        (part,) = outcome.json["output"][-1]["content"]
        assert part["text"] == "It is so." and len(part["annotations"]) == 1
        told = [json.loads(one)["content"] for one in talk.calls[-1] if b'"role":"tool"' in one]
        assert told == ["secret 【1】", "secret 【2】"]


def _secret(call: HostedCall) -> ToolResult:
    source = Source({"type": "url_citation", "url": "https://b.example", "title": "B"})
    return ToolResult(call.call_id, "secret {cite:0}", {}, sources=(source,))


# Recorded answers

ANSWERS = [one for one in all_recordings() if one.status == 200]


@pytest.mark.parametrize("recording", ANSWERS, ids=lambda one: one.name)
def test_a_recorded_answer_is_shown_the_same_in_every_way_of_going_on(recording: Recording) -> None:
    profile = recording.provider if recording.provider in PROFILES else "generic"
    chain, conversation, replay = (_go_on_from(recording, way, profile) for way in WAYS)
    assert chain == conversation and _read(chain) == _read(replay)


def _go_on_from(recording: Recording, way: Any, profile: str) -> list[list[bytes]]:
    talk = Talk(way, profile)
    headers = (("content-type", recording.content_type or "application/json"),)
    fields: dict[str, Any] = {"model": recording.model, "stream": recording.stream}
    hello = {"role": "user", "content": "hi"}
    outcome = talk.respond([hello], [recording.body], headers=headers, may_fail=True, **fields)
    if outcome.finish is None or outcome.finish.outcome not in ("completed", "incomplete"):
        return []
    outputs = [
        {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "done"}
        for item in talk.output
        if item["type"] in ("function_call", "custom_tool_call")
    ]
    for items in ([*outputs, {"role": "user", "content": "and?"}], [{"role": "user", "content": "well?"}]):
        talk.respond(items, [model_turn("So.", stream=recording.stream)], **fields)
    return talk.calls


# The exceptions


def _two(way: Any, profile: str, first: dict[str, Any], second: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    talk, items = Talk(way, profile, checked=False), [{"role": "user", "content": "hi"}]
    talk.respond([*first.pop("before", ()), *items], [model_turn("So.", stream=False)], **first)
    talk.respond([*second.pop("before", ()), *items], [model_turn("So.", stream=False)], **second)
    return talk.calls[0], talk.calls[1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "profile, first, second",
    [
        # What ranks above the user's words stands at the beginning where templates know no other place.
        ("generic", {}, {"before": [{"role": "developer", "content": "mind"}]}),
        # Instructions are the request's, not the conversation's.
        ("generic", {"instructions": "a"}, {"instructions": "b"}),
        # A format that the server cannot be told is told the model, beside the instructions.
        ("deepseek", {}, {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}}),
    ],
)
def test_what_changes_the_system_message_changes_nothing_else(
    way: Any, profile: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, two = _two(way, profile, dict(first), dict(second))
    assert _without_system(two)[: len(_without_system(one))] == _without_system(one) and two[: len(one)] != one


@pytest.mark.parametrize(
    ("profile", "fields", "reason"),
    [
        ("generic", {"before": [{"role": "developer", "content": "mind"}]}, "input_changed"),
        ("generic", {"instructions": "b"}, "input_changed"),
        ("deepseek", {"text": {"format": {"type": "json_object"}}}, "text_format_changed"),
        ("generic", {"tools": TOOLS[5:6]}, "tools_changed"),
    ],
)
@pytest.mark.parametrize("way", WAYS[:2])
def test_the_comparison_finds_what_changed(way: Any, profile: str, fields: dict[str, Any], reason: str) -> None:
    talk, items = Talk(way, profile, checked=False), [{"role": "user", "content": "hi"}]
    talk.respond(items, [model_turn("So.", stream=False)])
    named = {name: value for name, value in fields.items() if name != "before"}
    talk.respond([*fields.get("before", ()), *items], [model_turn("So.", stream=False)], **named)
    assert talk.missed == {reason}


def _without_system(messages: list[bytes]) -> list[bytes]:
    return [one for one in messages if json.loads(one)["role"] not in ("system", "developer")]


def test_what_a_client_replays_of_a_search_is_what_it_was_given() -> None:
    """It has not the results, so the model is not shown them again; from then on that stays."""
    talk = Talk("replay", "generic", _Found(), checked=False)
    answers = [model_turn("", ("web_search", "{}"), stream=False), model_turn("So.", stream=False)]
    for number in range(3):
        talk.respond([{"role": "user", "content": "hi"}], answers if not number else answers[1:], tools=TOOLS)
    first, second, third, fourth = talk.calls
    assert second[:1] == first and third[:1] == first and third[1:3] != second[1:3]
    assert fourth[: len(third)] == third
