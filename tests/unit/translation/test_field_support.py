"""The table of what is supported, held against the code: a request for each row, a row for all the schemas know."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.engine.ports.actions import Chain, Context, StoredItem, StoredPrompt
from antiphon.sealing import Sealer
from antiphon.translation.profiles import PROFILES, with_flags
from antiphon.translation.profiles.profile import SupportKind
from antiphon.translation.request.field_support import GROUPS, all_names, support_of
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import JSON, SSE, Outcome, run

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
SCHEMAS = Path(__file__).parents[2] / "schemas"
CHECKED = ("generic", "openai", "groq", "deepseek", "mistral")
COMPLETION = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
).encode()
STREAM = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'
SEALER = Sealer([b"a key of sixteen letters"], max_bytes=1 << 20)
FUNCTION = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"magic": {"type": "string"}}}
TEXT_FILE = {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,c2VlbmZpbGU="}


PARAMETER_VALUES: dict[str, Any] = {
    "seed": 55,
    "stop": ["seenstop"],
    "logit_bias": {"55": -1.5},
    "top_k": 55,
    "min_p": 0.55,
    "top_a": 0.55,
    "typical_p": 0.55,
    "repetition_penalty": 1.55,
    "repeat_penalty": 1.55,
    "repeat_last_n": 55,
    "length_penalty": 1.55,
    "min_tokens": 55,
    "stop_token_ids": [55],
    "bad_words": ["seenword"],
    "ignore_eos": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "enable_thinking": False,
    "thinking_budget": 55,
    "thinking": {"type": "disabled"},
    "guided_json": {"type": "object"},
    "guided_regex": "[0-9]+",
    "guided_choice": ["yes", "no"],
    "guided_grammar": "root ::= 55",
    "structured_outputs": {"regex": "[0-9]+"},
    "grammar": "root ::= 55",
    "json_schema": {"type": "object"},
    "regex": "[0-9]+",
    "ebnf": "root ::= 55",
}


@dataclass
class Sample:
    """`request` is laid over the plain request. `seen` must be in the chat body as JSON when it is sent or
    handled, `gone` must not; `named` is how the header calls it, `params` and `code` how a 400 does."""

    request: dict[str, Any]
    seen: str = ""
    handled: str | None = None
    """What is seen where it is handled, when that is something else."""
    gone: str = ""
    named: str = ""
    param: str = ""
    code: str = "unsupported_parameter"
    answered: bool = False
    """The proof is in the response instead of the chat body."""
    stored: list[dict[str, Any]] = field(default_factory=list)


def item(*items: dict[str, Any], **more: Any) -> Sample:
    return Sample({"input": [{"role": "user", "content": "Hi"}, *items]}, **more)


def part(content: dict[str, Any], seen: str, role: str = "user") -> Sample:
    return Sample(
        {"input": [{"role": role, "content": [content]}, {"role": "user", "content": "Hi"}]},
        seen=seen,
        param="input[0].content[0]",
    )


def tool(kind: str, **more: Any) -> Sample:
    return Sample(
        {"tools": [{"type": kind, **more}]},
        seen='"type":"function"',
        named=f"tools.{kind}",
        param="tools[0].type",
        code="unsupported_tool",
    )


def choice(kind: str, tools: list[dict[str, Any]] | None = None, **more: Any) -> Sample:
    name = tools[0].get("name", kind) if tools else kind
    return Sample(
        {"tools": tools or [FUNCTION], "tool_choice": {"type": kind, **more}},
        seen=f'"tool_choice":{{"type":"function","function":{{"name":"{name}"}}}}',
        handled=None if kind == "allowed_tools" else '"tool_choice":"required"',
        param="tool_choice",
    )


def call(kind: str, **more: Any) -> Sample:
    output = f"{kind}_output" if kind != "tool_search_call" else "tool_search_output"
    return item(
        {"type": kind, "call_id": "c1", **more},
        {"type": output, "call_id": "c1", "output": "seenresult", "tools": []},
        seen='"tool_calls"',
    )


def result(kind: str, **more: Any) -> Sample:
    sample = call(kind, **more)
    sample.seen = '"role":"tool"'
    return sample


def hosted(kind: str, **more: Any) -> Sample:
    return item({"type": kind, "id": "h1", "status": "completed", **more}, seen='"role":"tool"')


SEARCH = {"type": "tool_search", "execution": "client"}
FOUND = {"type": "function", "name": "found", "parameters": SCHEMA}
CALLS: dict[str, dict[str, Any]] = {
    "function_call": {"name": "look", "arguments": "{}"},
    "custom_tool_call": {"name": "look", "input": "x"},
    "local_shell_call": {"action": {"type": "exec", "command": ["ls"]}},
    "shell_call": {"action": {"commands": ["ls"]}},
    "apply_patch_call": {"operation": {"type": "delete_file", "path": "a"}, "status": "completed"},
    "tool_search_call": {"arguments": {"query": "x"}, "execution": "client"},
}

SAMPLES: dict[str, Sample] = {
    "model": Sample({"model": "named"}, seen='"model":"named"'),
    "input": Sample({"input": "seeninput"}, seen="seeninput"),
    "instructions": Sample({"instructions": "seenwords"}, seen='"role":"system","content":"seenwords"'),
    "previous_response_id": Sample(
        {"previous_response_id": "resp_0"}, seen="seenbefore", stored=[{"role": "user", "content": "seenbefore"}]
    ),
    "store": Sample({"store": False}, seen='"store":false', answered=True),
    "stream": Sample({"stream": True}, seen='"stream":true'),
    "stream_options.include_obfuscation": Sample(
        {"stream": True, "stream_options": {"include_obfuscation": True}}, seen='"obfuscation"', answered=True
    ),
    "max_output_tokens": Sample({"max_output_tokens": 77}, seen=":77"),
    "max_tool_calls": Sample({"max_tool_calls": 3}, seen='"max_tool_calls":3', answered=True),
    "metadata": Sample({"metadata": {"a": "seenpair"}}, seen="seenpair", answered=True),
    "temperature": Sample({"temperature": 0.25}, seen='"temperature":0.25'),
    "top_p": Sample({"top_p": 0.25}, seen='"top_p":0.25'),
    "presence_penalty": Sample({"presence_penalty": 0.25}, seen='"presence_penalty":0.25'),
    "frequency_penalty": Sample({"frequency_penalty": 0.25}, seen='"frequency_penalty":0.25'),
    "top_logprobs": Sample({"top_logprobs": 2}, seen='"logprobs":true,"top_logprobs":2', param="top_logprobs"),
    "parallel_tool_calls": Sample(
        {"tools": [FUNCTION], "parallel_tool_calls": False}, seen='"parallel_tool_calls":false', handled='"tools":['
    ),
    "text.format.text": Sample({"text": {"format": {"type": "text"}}}, gone="response_format"),
    "text.format.json_schema": Sample(
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}}, seen="magic"
    ),
    "text.format.json_object": Sample(
        {"text": {"format": {"type": "json_object"}}}, seen='"type":"json_object"', handled="one JSON object"
    ),
    "text.verbosity": Sample({"text": {"verbosity": "low"}}, seen='"verbosity":"low"'),
    "reasoning.effort": Sample({"reasoning": {"effort": "high"}}, seen='"reasoning_effort":"high"'),
    "reasoning.summary": Sample({"reasoning": {"summary": "auto"}}, seen='"summary":"auto"', answered=True),
    "reasoning.generate_summary": Sample(
        {"reasoning": {"generate_summary": "auto"}}, seen='"summary":"auto"', answered=True
    ),
    "reasoning.mode": Sample({"reasoning": {"mode": "pro"}}),
    "reasoning.context": Sample({"reasoning": {"context": "auto"}}),
    "truncation.auto": Sample({"truncation": "auto"}, named="truncation"),
    "truncation.disabled": Sample({"truncation": "disabled"}, gone="truncation"),
    "service_tier": Sample({"service_tier": "flex"}, seen='"service_tier":"flex"'),
    "safety_identifier": Sample({"safety_identifier": "s"}, seen='"safety_identifier":"s"'),
    "prompt_cache_key": Sample({"prompt_cache_key": "s"}, seen='"prompt_cache_key":"s"'),
    "prompt_cache_retention": Sample({"prompt_cache_retention": "24h"}, seen='"prompt_cache_retention":"24h"'),
    "prompt_cache_options.prewarm": Sample(
        {"prompt_cache_options": {"prewarm": True}}, seen='"output":[]', gone="messages", answered=True
    ),
    "prompt_cache_options.mode": Sample({"prompt_cache_options": {"mode": "explicit"}}),
    "prompt_cache_options.ttl": Sample({"prompt_cache_options": {"ttl": "30m"}}),
    "user": Sample({"user": "u"}, seen='"user":"u"'),
    "context_management": Sample(
        {
            "context_management": [{"type": "compaction", "compact_threshold": 1000}],
            "input": [{"role": "user", "content": "word " * 1000}, {"role": "user", "content": "Hi"}],
            "stream": True,
        },
        seen="Write a summary",
    ),
    "prompt_cache_options.comparison_response_id": Sample(
        {"prompt_cache_options": {"comparison_response_id": "resp_0"}},
        seen='"comparison_response_not_found"',
        answered=True,
    ),
    "moderation": Sample({"moderation": {"model": "m"}}),
    "access_programs": Sample({"access_programs": {"cyber": "standard"}}),
    "image": Sample({"image": {"context_compression": "auto"}}),
    "multi_agent": Sample({"multi_agent": {"enabled": True}}),
    "background_options": Sample({"background_options": {"completion_window": "8h"}}),
    "client_metadata": Sample({"client_metadata": {"session_id": "s"}}),
    "conversation": Sample(
        {"conversation": "conv_1"}, seen="said before", stored=[{"role": "user", "content": "said before"}]
    ),
    "prompt": Sample({"prompt": {"id": "pmpt_1", "variables": {"who": "a poet"}}}, seen="You are a poet."),
    "extra_body": Sample({"extra_body": {"temperature": 0.25}}, seen='"temperature":0.25'),
    "any other field": Sample({"omen": {}}, named="omen"),
    **{name: Sample({name: value}, seen=f":{json.dumps(value)}") for name, value in PARAMETER_VALUES.items()},
    "messages": Sample({"messages": []}),
    "response_format": Sample({"response_format": {}}),
    "max_tokens": Sample({"max_tokens": 5}),
    "max_completion_tokens": Sample({"max_completion_tokens": 5}),
    "functions": Sample({"functions": [{"name": "f"}]}),
    "function_call": Sample({"function_call": "auto"}),
    "reasoning_effort": Sample({"reasoning_effort": "low"}),
    "verbosity": Sample({"verbosity": "low"}),
    "logprobs": Sample({"logprobs": True}),
    "include:reasoning.encrypted_content": Sample(
        {"include": ["reasoning.encrypted_content"], "store": False}, seen='"encrypted_content":"', answered=True
    ),
    "include:message.output_text.logprobs": Sample(
        {"include": ["message.output_text.logprobs"]}, seen='"logprobs":true', param="include"
    ),
    **{
        name: Sample({"include": [name.removeprefix("include:")]})
        for name in GROUPS["Values of `include`"]
        if not name.endswith(("encrypted_content", "logprobs"))
    },
    "tools.function": Sample({"tools": [FUNCTION]}, seen='"function":{"name":"look"'),
    "any other value of `include`": Sample({"include": ["future.thing"]}, named="include:future.thing"),
    "any other item": item({"type": "omen"}, named="input.omen"),
    "any other member of an item": Sample(
        {"input": [{"role": "user", "content": "Hi", "aura": 1}]}, named="input.message.aura"
    ),
    "any other member of a part": Sample(
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi", "aura": 1}]}]},
        named="content.input_text.aura",
    ),
    "any other part": Sample(
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}, {"type": "smell"}]}]},
        named="content.smell",
    ),
    "tools.function.async": Sample(
        {
            "input": [
                {"role": "user", "content": "Hi"},
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
                {"role": "user", "content": "and?"},
            ],
            "tools": [{**FUNCTION, "async": True}],
        },
        seen="will follow",
    ),
    "tools.custom.async": Sample(
        {
            "input": [
                {"role": "user", "content": "Hi"},
                {"type": "custom_tool_call", "call_id": "c1", "name": "look", "input": "x"},
                {"role": "user", "content": "and?"},
            ],
            "tools": [{"type": "custom", "name": "look", "async": True}],
        },
        seen="will follow",
    ),
    "tools.function.strict": Sample({"tools": [{**FUNCTION, "strict": True}]}, seen='"strict":true'),
    "tools.custom": tool("custom", name="look"),
    "tools.namespace": tool("namespace", name="space", tools=[FUNCTION]),
    "tools.local_shell": tool("local_shell"),
    "tools.shell": tool("shell"),
    "tools.apply_patch": tool("apply_patch"),
    "tools.tool_search": tool("tool_search", execution="client"),
    **{
        name: tool(name.removeprefix("tools."))
        for name in GROUPS["Tools"]
        if support_of(PROFILES["generic"], name).kind in ("ignored", "rejected")
    },
    **{
        f"tool_choice.{mode}": Sample({"tools": [FUNCTION], "tool_choice": mode}, seen=f'"tool_choice":"{mode}"')
        for mode in ("auto", "none", "required")
    },
    "tool_choice.function": choice("function", [FUNCTION], name="look"),
    "tool_choice.custom": choice("custom", [{"type": "custom", "name": "look"}], name="look"),
    "tool_choice.local_shell": choice("local_shell", [{"type": "local_shell"}]),
    "tool_choice.shell": choice("shell", [{"type": "shell"}]),
    "tool_choice.apply_patch": choice("apply_patch", [{"type": "apply_patch"}]),
    "tool_choice.tool_search": choice("tool_search", [SEARCH]),
    "tool_choice.allowed_tools": Sample(
        {
            "tools": [FUNCTION, FOUND],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]},
        },
        seen='"name":"look"',
        gone='"name":"found"',
    ),
    **{
        name: choice(name.removeprefix("tool_choice."))
        for name in GROUPS["Forms of `tool_choice`"]
        if support_of(PROFILES["generic"], name).kind == "rejected"
    },
    "input.message": item({"type": "message", "role": "developer", "content": "seenwords"}, seen="seenwords"),
    "input.item_reference": item(
        {"type": "item_reference", "id": "msg_0"}, seen="seenbefore", stored=[{"role": "user", "content": "seenbefore"}]
    ),
    "input.reasoning": item(
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "seenthought"}],
        },
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
        seen='":"seenthought"',
    ),
    **{f"input.{kind}": call(kind, **more) for kind, more in CALLS.items()},
    **{f"input.{kind}_output": result(kind, **more) for kind, more in CALLS.items() if kind != "tool_search_call"},
    "input.tool_search_output": item(
        {"type": "tool_search_call", "call_id": "c1", "arguments": {}, "execution": "client"},
        {"type": "tool_search_output", "call_id": "c1", "tools": [FOUND], "execution": "client"},
        seen="magic",
    ),
    "input.additional_tools": item({"type": "additional_tools", "role": "developer", "tools": [FOUND]}, seen="magic"),
    "input.compaction": item(
        {"type": "compaction", "encrypted_content": SEALER.seal("owner", "reasoning", b'{"text":"seensummary"}')},
        seen="seensummary",
    ),
    **{
        f"input.{kind}": hosted(kind)
        for kind in (
            "web_search_call",
            "file_search_call",
            "image_generation_call",
            "code_interpreter_call",
            "computer_call",
            "mcp_call",
            "mcp_list_tools",
            "mcp_approval_request",
            "program",
        )
    },
    "input.computer_call_output": item(
        {"type": "computer_call", "id": "h1", "call_id": "h1", "action": {"type": "screenshot"}},
        {"type": "computer_call_output", "call_id": "h1", "output": "seenresult"},
        seen="seenresult",
    ),
    "input.mcp_approval_response": item(
        {"type": "mcp_approval_request", "id": "h1", "name": "a", "server_label": "b", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "h1", "approve": False},
        seen="The user refused it.",
    ),
    "input.program_output": item(
        {"type": "program", "id": "h1", "call_id": "h1", "code": "1"},
        {"type": "program_output", "call_id": "h1", "result": "seenresult"},
        seen="seenresult",
    ),
    "tools.function.output_schema": Sample({"tools": [{**FUNCTION, "output_schema": {"type": "object"}}]}),
    "tools.function.allowed_callers": Sample({"tools": [{**FUNCTION, "allowed_callers": ["direct", "programmatic"]}]}),
    "any other tool": Sample({"tools": [{"type": "teleport"}]}, named="tools.teleport"),
    "any other member of a tool": Sample({"tools": [{**FUNCTION, "aura": 1}]}, named="tools.function.aura"),
    "input.agent_message": item(
        {
            "type": "agent_message",
            "author": "/root",
            "recipient": "/root/child",
            "content": [{"type": "input_text", "text": "seentext"}],
        },
        seen="seentext",
    ),
    "input.agent_reasoning": item(
        {"type": "agent_reasoning", "text": "seenthought"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "Hi"},
        seen="seenthought",
        named="input.reasoning",
    ),
    "input.configuration_update": item(
        {
            "type": "configuration_update",
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        },
        seen="magic",
    ),
    "input.compaction_trigger": item({"type": "compaction_trigger"}, seen="Write a summary"),
    "content.input_text": part({"type": "input_text", "text": "seentext"}, "seentext"),
    "content.output_text": part({"type": "output_text", "text": "seentext"}, "seentext", "assistant"),
    "content.refusal": part({"type": "refusal", "refusal": "seentext"}, "seentext", "assistant"),
    "content.input_image.image_url": part({"type": "input_image", "image_url": PIXEL}, PIXEL),
    "content.input_image.file_id": part({"type": "input_image", "file_id": "file-1"}, "data:image/png;base64,"),
    "content.input_file.file_data": part(TEXT_FILE, "seenfile"),
    "content.input_file.file_id": part({"type": "input_file", "file_id": "file-2"}, "seenfile"),
    "content.input_audio": part(
        {"type": "input_audio", "input_audio": {"data": "c2Vlbg==", "format": "wav"}}, "c2Vlbg"
    ),
}
# Files by URL need a fetch before the translation: tests/unit/engine/test_files_by_url.py.
ELSEWHERE = {"content.input_file.file_url", "background"}
ALL_NAMES = {name for names in GROUPS.values() for name in names}


def perform(sample: Sample, profile: str) -> Outcome:
    request = {"model": "m", "input": "Hi", **sample.request}
    stored = tuple(
        StoredItem(f"msg_{number}", "message", json.dumps({"type": "message", **one}).encode())
        for number, one in enumerate(sample.stored)
    )
    context = Context(
        chain=Chain(stored),
        conversation=stored,
        prompt=StoredPrompt("pmpt_1", None, 1, 1, 1, 0.0, 0.0, b"{}", b'{"instructions":"You are {{who}}."}'),
        items={one.id: one for one in stored},
        files={
            "file-1": FetchedFile("a.png", "image/png", b"\x89PNG\r\n\x1a\n"),
            "file-2": FetchedFile("a.txt", "text/plain", b"seenfile"),
        },
    )
    pieces, headers = [COMPLETION], JSON
    if request.get("stream"):
        pieces, headers = [STREAM], SSE
    wanted = request.get("tool_choice", "auto")
    if wanted == "required" or (isinstance(wanted, dict) and wanted["type"] != "allowed_tools"):
        # What requires a call gets one.
        [declared] = request["tools"]
        function = {"name": declared.get("name", declared["type"]), "arguments": '{"input":"x"}'}
        called = {"tool_calls": [{"id": "c1", "type": "function", "function": function}]}
        pieces = [json.dumps({"choices": [{"index": 0, "message": called, "finish_reason": "tool_calls"}]}).encode()]
    if "include" in request and "store" in request:
        thinking = json.loads(COMPLETION)
        thinking["choices"][0]["message"]["reasoning_content"] = "Hm."
        pieces = [json.dumps(thinking).encode()]
    return run(request, pieces, headers=headers, context=context, profile=profile, sealer=SEALER)


def test_every_name_has_a_sample() -> None:
    assert set(SAMPLES) | ELSEWHERE == ALL_NAMES


@pytest.mark.parametrize("profile", PROFILES)
def test_every_row_says_one_of_four_things_and_how_in_a_sentence(profile: str) -> None:
    kinds = set(get_args(SupportKind))
    for name in ALL_NAMES:
        support = support_of(PROFILES[profile], name)
        assert support.kind in kinds and support.note not in kinds, name


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - set(CHECKED)))
def test_the_table_holds_for_every_other_profile(profile: str) -> None:
    for name in SAMPLES:
        check(name, profile)


@pytest.mark.parametrize("profile", CHECKED)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_table_says_what_happens(name: str, profile: str) -> None:
    check(name, profile)


def check(name: str, profile: str) -> None:
    sample, decided = SAMPLES[name], support_of(PROFILES[profile], name)
    outcome = perform(sample, profile)
    assert outcome.head is not None
    ignored = dict(outcome.head.headers).get("antiphon-ignored", "").split(", ")
    if decided.kind == "rejected":
        error = outcome.json["error"]
        assert outcome.head.status == 400 and not outcome.calls
        assert (error["param"], error["code"]) == (sample.param or name, sample.code)
        return
    assert outcome.head.status == 200, outcome.body
    body = outcome.calls[0].request.body.decode() if outcome.calls else ""
    if decided.kind == "ignored":
        assert (sample.named or name) in ignored
        if sample.seen and not name.startswith("tools."):
            assert sample.seen not in body
        return
    assert ignored == [""]
    seen = sample.handled if decided.kind == "handled" and sample.handled is not None else sample.seen
    assert seen in (outcome.body.decode() if sample.answered else body)
    if sample.gone:
        assert sample.gone not in body


@pytest.mark.parametrize("profile", ["generic", "groq"])
def test_a_file_by_url_is_fetched_and_then_what_any_file_is(profile: str) -> None:
    """Whether it can be sent depends on what it is, so it has no single request to be judged by."""
    decided = support_of(PROFILES[profile], "content.input_file.file_url")
    assert decided.kind == "handled" and decided.note.endswith("like `content.input_file.file_data`")
    url = "https://files.example/a.pdf"
    part = {"type": "input_file", "file_url": url}
    file = FetchedFile("a.pdf", "application/pdf", b"%PDF")
    outcome = run(
        {"model": "m", "input": [{"role": "user", "content": [part]}]},
        [COMPLETION],
        headers=JSON,
        profile=profile,
        context=Context(files={url: file}),
    )
    assert outcome.head is not None
    data = support_of(PROFILES[profile], "content.input_file.file_data")
    assert outcome.head.status == (200 if "`file` part" in data.note else 400)


def test_where_the_length_of_a_context_is_known_truncation_is_done_here() -> None:
    profile = PROFILES["generic"]
    assert support_of(profile, "truncation.auto").kind == "ignored"
    known = support_of(profile, "truncation.auto", context_tokens=8192)
    assert known.kind == "handled" and "8192" in known.note
    # Nothing else depends on it.
    assert support_of(profile, "temperature", context_tokens=8192) == support_of(profile, "temperature")


@pytest.mark.parametrize(
    ("form", "name", "note"),
    [
        (
            {"type": "json_schema", "name": "it", "schema": SCHEMA},
            "text.format.json_schema",
            "Antiphon sends the schema as an instruction to the model",
        ),
        (
            {"type": "json_object"},
            "text.format.json_object",
            "Antiphon sends an instruction to the model to write JSON",
        ),
    ],
)
def test_a_server_that_knows_no_formats_gets_them_as_instructions(form: dict[str, Any], name: str, note: str) -> None:
    """What no profile says of a server its operator may."""
    plain = with_flags(PROFILES["generic"], {"structured_output": "off"})
    decided = support_of(plain, name)
    assert (decided.kind, decided.note) == ("handled", note)
    request = {"model": "m", "input": "Hi", "text": {"format": form}}
    sent = run(request, [COMPLETION], headers=JSON, routes=ModelRoutes(ModelRoute(plain))).chat
    assert "response_format" not in sent and sent["messages"][0]["role"] == "system"


def test_every_name_of_the_table_is_told_once() -> None:
    names = list(all_names())
    assert set(names) == ALL_NAMES and len(names) == len(set(names))
    with pytest.raises(KeyError):
        support_of(PROFILES["generic"], "no such field")


def test_the_named_limit_field_is_the_one_sent() -> None:
    for profile in CHECKED:
        sent = perform(SAMPLES["max_output_tokens"], profile).chat
        assert f"as `{next(key for key, value in sent.items() if value == 77)}`" == (
            support_of(PROFILES[profile], "max_output_tokens").note
        )


def _schema(file: str) -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads((SCHEMAS / file).read_text())["components"]["schemas"]
    return schemas


def _all_of(schemas: dict[str, Any], value: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas this one consists of or chooses among."""
    found, waiting, seen = [], [value], set()
    while waiting:
        one = waiting.pop()
        if (name := one.get("$ref", "").rpartition("/")[2]) and name not in seen:
            seen.add(name)
            waiting.append(schemas[name])
        found.append(one)
        for key in ("allOf", "oneOf", "anyOf"):
            waiting += one.get(key, [])
    return found


def _properties(schemas: dict[str, Any], name: str) -> set[str]:
    return {key for one in _all_of(schemas, schemas[name]) for key in one.get("properties", {})}


def _types(schemas: dict[str, Any], name: str) -> set[str]:
    found: set[str] = set()
    for one in _all_of(schemas, schemas[name]):
        kind = one.get("properties", {}).get("type", {})
        found.update(kind.get("enum", ()))
    return found


@pytest.mark.parametrize(
    ("file", "name"), [("openresponses-openapi.json", "CreateResponseBody"), ("openai-subset.json", "CreateResponse")]
)
def test_every_field_of_the_schemas_has_a_fate(file: str, name: str) -> None:
    known = {one.partition(":")[0].partition(".")[0] for one in ALL_NAMES}
    assert _properties(_schema(file), name) - known == set()


def test_everything_openai_knows_inside_fields_has_a_fate() -> None:
    schemas, known = _schema("openai-subset.json"), ALL_NAMES
    for kind, prefix in {
        "Tool": "tools.",
        "ToolChoiceParam": "tool_choice.",
        "InputItem": "input.",
        "TextResponseFormatConfiguration": "text.format.",
    }.items():
        assert {f"{prefix}{one}" for one in _types(schemas, kind)} - known == set()
    assert {f"include:{one}" for one in schemas["IncludeEnum"]["enum"]} - known == set()
    assert {f"reasoning.{one}" for one in _properties(schemas, "Reasoning")} - known == set()
    parts = {one.split(".")[1] for one in known if one.startswith("content.")}
    assert _types(schemas, "InputContent") - parts == set()


def test_a_strict_that_is_left_out_is_named_wherever_the_function_was_declared() -> None:
    profile = next(name for name, profile in PROFILES.items() if not profile.strict_tools)
    strict = {**FUNCTION, "strict": True}
    user = {"role": "user", "content": "Hi"}
    for request in (
        {"input": "Hi", "tools": [{"type": "namespace", "name": "space", "tools": [strict]}]},
        {"input": [user, {"type": "additional_tools", "role": "developer", "tools": [strict]}]},
    ):
        outcome = run({"model": "m", **request}, [COMPLETION], headers=JSON, profile=profile)
        assert outcome.head is not None
        assert dict(outcome.head.headers)["antiphon-ignored"] == "tools.function.strict"
        assert "strict" not in outcome.calls[0].request.body.decode()


def test_a_screenshot_is_an_image() -> None:
    outcome = run(
        {
            "model": "m",
            "input": [
                {"type": "computer_call", "id": "h1", "call_id": "h1", "action": {"type": "screenshot"}},
                {
                    "type": "computer_call_output",
                    "call_id": "h1",
                    "output": {"type": "computer_screenshot", "image_url": PIXEL},
                },
            ],
        },
        [COMPLETION],
        headers=JSON,
    )
    (seen,) = (message for message in outcome.chat["messages"] if message["role"] == "user")
    assert seen["content"][1:] == [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}}]


def test_the_pages_of_the_reference_say_what_the_tables_say() -> None:
    """A row that changes by accident is seen: the pages are written anew, on purpose."""
    pages = importlib.import_module("scripts.lib.generate_docs")
    assert pages.compatibility() == (REFERENCE / "compatibility.md").read_text()
    assert pages.chat_servers() == (REFERENCE / "chat-servers.md").read_text()
