"""Profiles: who is chosen, and for every flag what goes wrong without it, with the recording that shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from antiphon.translation.profiles import PROFILES, UpstreamProfile, choose_profile
from tests.support.exchanges import JSON, Outcome, run
from tests.support.recordings import Recording, all_recordings
from tests.support.strict_chat import check_chat_request

RECORDINGS = {recording.name: recording for recording in all_recordings()}
COMPLETION = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
).encode()
LOOK = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "hi"},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "call_of_another_server", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_of_another_server", "output": "seen"},
]


def _ask(profile: str, **request: Any) -> Outcome:
    return run({"model": "m", "input": "hi", **request}, [COMPLETION], headers=JSON, profile=profile)


def _ignored(outcome: Outcome) -> list[str]:
    assert outcome.head is not None
    return dict(outcome.head.headers).get("antiphon-ignored", "").split(", ")


def _replay(name: str, profile: str) -> Outcome:
    recording: Recording = RECORDINGS[name]
    headers = (("content-type", recording.content_type),)
    request = {"model": recording.model, "input": "hi", "stream": recording.stream}
    return run(request, [recording.body], status=recording.status, headers=headers, profile=profile)


# The choice


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("api.openai.com", "openai"),
        ("API.OpenAI.com", "openai"),
        ("eu.api.openai.com", "openai"),
        ("mine.openai.azure.com", "azure"),
        ("mine.services.ai.azure.com", "azure"),
        ("bedrock-runtime.eu-west-1.amazonaws.com", "bedrock"),
        ("dashscope-intl.aliyuncs.com", "dashscope"),
        ("adb-12.3.azuredatabricks.net", "databricks"),
        ("acme.snowflakecomputing.com", "snowflake"),
        ("us-south.ml.cloud.ibm.com", "watsonx"),
        ("generativelanguage.googleapis.com", "gemini"),
        ("api.cerebras.ai", "cerebras"),
        ("api.cloudflare.com", "cloudflare"),
        ("api.deepseek.com", "deepseek"),
        ("api.fireworks.ai", "fireworks"),
        ("api.githubcopilot.com", "github-copilot"),
        ("api.groq.com", "groq"),
        ("router.huggingface.co", "huggingface"),
        ("api.mistral.ai", "mistral"),
        ("integrate.api.nvidia.com", "nvidia-nim"),
        ("ollama.com", "ollama"),
        ("openrouter.ai", "openrouter"),
        ("api.perplexity.ai", "perplexity"),
        ("api.together.ai", "together"),
        ("api.venice.ai", "venice"),
        ("ai-gateway.vercel.sh", "vercel-gateway"),
        ("api.x.ai", "xai"),
        ("api.z.ai", "zai"),
        ("127.0.0.1", "generic"),
        ("notapi.openai.com.example.org", "generic"),
        ("vllm.models.svc.cluster.local", "generic"),
    ],
)
def test_auto_chooses_by_host(host: str, name: str) -> None:
    assert choose_profile("auto", host) is PROFILES[name]


def test_a_name_chooses_whatever_the_host() -> None:
    assert choose_profile("vllm", "api.openai.com") is PROFILES["vllm"]
    with pytest.raises(KeyError):
        choose_profile("vlm", "")


def test_every_profile_is_named_and_titled_and_no_host_is_two_vendors() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "chat-servers.md").read_text()
    hosts = [host for profile in PROFILES.values() for host in profile.hosts]
    assert len(hosts) == len(set(hosts))
    for name, profile in PROFILES.items():
        assert profile.name == name and f"| `{name}` | {profile.title} |" in page
        assert len([one for one in PROFILES.values() for host in profile.hosts[:1] if one.serves(host)]) <= 1


def test_no_sign_of_a_server_is_two_vendors() -> None:
    for sign in ("owned_by", "server"):
        signs = [said for profile in PROFILES.values() if (said := getattr(profile, sign))]
        assert len(signs) == len(set(signs)) > 1 and all(said == said.lower() for said in signs)


def test_notes_on_models_name_flags_that_exist() -> None:
    for profile in PROFILES.values():
        for note in profile.by_model:
            assert note.patterns == tuple(pattern.lower() for pattern in note.patterns)
            for flag, _ in note.changes:
                assert hasattr(profile, flag)
                assert flag not in ("name", "title", "hosts", "owned_by", "server", "by_model")


def test_a_model_without_notes_keeps_the_same_object() -> None:
    for profile in PROFILES.values():
        assert profile.for_model("any-model") is profile


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_every_profile_sends_what_a_strict_chat_server_takes(profile: UpstreamProfile) -> None:
    sent = _ask(
        profile.name,
        input=[{"role": "developer", "content": "be brief"}, *TURNS],
        tools=[{**LOOK, "strict": True}],
        tool_choice={"type": "function", "name": "look"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}}},
        reasoning={"effort": "minimal"},
        max_output_tokens=99,
        temperature=0.5,
        presence_penalty=1,
        user="u",
    )
    check_chat_request(sent.chat)


# What each flag is for


def test_openai_has_a_limit_and_a_role_of_its_own() -> None:
    items = [{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}, {"role": "user", "content": "c"}]
    sent = _ask("openai", max_output_tokens=99, input=items).chat
    assert (sent["max_completion_tokens"], sent["messages"][1]["role"]) == (99, "developer")
    sent = _ask("generic", max_output_tokens=99, input=items).chat
    # Elsewhere a system message that is not the first may be an error, and this role unknown.
    assert sent["max_tokens"] == 99
    assert [(one["role"], one["content"]) for one in sent["messages"]] == [
        ("system", "b"),
        ("user", "a"),
        ("user", "c"),
    ]


def test_a_tool_by_name_is_a_string_where_the_server_takes_only_strings() -> None:
    refused = RECORDINGS["azure/req_llm-azure-mai-ds-r1-tool-round-trip-1"]
    assert refused.status == 422 and b"Input should be a valid string" in refused.body
    other = {**LOOK, "name": "other"}
    choice = {"type": "function", "name": "look"}
    for profile, model in (("azure", "MAI-DS-R1"), ("lmstudio", "qwen3-30b-a3b")):
        sent = _ask(profile, model=model, tools=[LOOK, other], tool_choice=choice).chat
        assert sent["tool_choice"] == "required"
        assert [tool["function"]["name"] for tool in sent["tools"]] == ["look"]
    sent = _ask("azure", model="gpt-5-mini", tools=[LOOK, other], tool_choice=choice).chat
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "look"}} and len(sent["tools"]) == 2


@pytest.mark.parametrize("profile", ["generic", "azure", "vllm"])
def test_a_template_that_opens_the_reasoning_is_known_by_its_model(profile: str) -> None:
    name = "azure/req_llm-azure-mai-ds-r1-multi-tool"
    kinds = [item["type"] for item in _replay(name, profile).json["output"]]
    assert kinds[0] == "reasoning"
    recording = RECORDINGS[name]
    other = run({"model": "m", "input": "hi"}, [recording.body], headers=JSON)
    assert "</think>" in other.body.decode()


def test_deepseek_takes_text_alone_and_wants_its_reasoning_back() -> None:
    refused = RECORDINGS["deepseek/rig-deepseek-wire-shape-matrix-blocking-image-base64-part-reaches-the-wire"]
    assert refused.status == 400 and b"unknown variant `image_url`, expected `text`" in refused.body
    image = {"type": "input_image", "image_url": "https://example.org/a.png"}
    outcome = _ask("deepseek", input=[{"role": "user", "content": [image]}])
    assert outcome.json["error"]["param"] == "input[0].content[0]" and not outcome.calls
    recorded = RECORDINGS["deepseek/pydantic-test-deepseek-test-deepseek-deferred-capability-with-thinking-1"].request
    assert any("reasoning_content" in message for message in recorded["messages"])
    assert _ask("deepseek", input=TURNS, tools=[LOOK]).chat["messages"][1]["reasoning_content"] == "hm"


def test_lm_studio_gets_any_object_as_a_schema() -> None:
    sent = _ask("lmstudio", text={"format": {"type": "json_object"}}).chat
    assert sent["response_format"]["type"] == "json_schema"
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "JSON object" in sent["messages"][0]["content"]


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("snowflake", "snowflake/pydantic-test-snowflake-test-snowflake-thinking-streaming"),
        ("openrouter", "openrouter/llm-test-tools-streaming-test-tools-streaming-variant-a"),
    ],
)
def test_some_end_their_streams_with_the_sentinel_alone(profile: str, name: str) -> None:
    assert _replay(name, profile).body.count(b'"response.completed"') >= 1
    assert _replay(name, "generic").body.count(b'"response.completed"') == 0


@pytest.mark.parametrize(
    ("profile", "model", "asked", "sent"),
    [
        ("generic", "m", "minimal", "minimal"),
        ("generic", "m", "max", "max"),
        ("groq", "qwen/qwen3-32b", "low", "default"),
        ("groq", "qwen/qwen3-32b", "none", "none"),
        ("groq", "openai/gpt-oss-120b", "minimal", "low"),
        ("groq", "openai/gpt-oss-120b", "xhigh", "high"),
        ("groq", "llama-3.1-8b-instant", "high", None),
        ("mistral", "mistral-small-latest", "low", "high"),
        ("mistral", "mistral-small-latest", "none", "none"),
        ("ollama", "qwen3", "minimal", "low"),
        ("ollama", "qwen3", "none", "none"),
        ("deepseek", "deepseek-v4-pro", "none", "minimal"),
        ("deepseek", "deepseek-v4-pro", "max", "max"),
        ("xai", "grok-code-fast-1", "high", None),
        ("xai", "grok-4-fast-reasoning", "high", None),
        ("xai", "grok-4.3", "xhigh", "high"),
        ("xai", "grok-3-mini", "medium", "high"),
        ("xai", "grok-3-mini", "none", "low"),
        ("gemini", "gemini-3-flash", "minimal", "low"),
    ],
)
def test_an_effort_becomes_the_nearest_the_model_knows(profile: str, model: str, asked: str, sent: str | None) -> None:
    outcome = _ask(profile, model=model, reasoning={"effort": asked})
    assert outcome.chat.get("reasoning_effort") == sent
    assert ("reasoning.effort" in _ignored(outcome)) == (sent is None)


def test_the_recordings_show_which_efforts_were_taken() -> None:
    def taken(name: str) -> Any:
        assert RECORDINGS[name].status == 200
        return RECORDINGS[name].request["reasoning_effort"]

    qwen = "groq/pydantic-test-thinking-wire-contrac--soning-wire-contract-groq-qwen3-effort-setting"
    small = "mistral/ruby_llm-chat-with-extended-thinkin--hinking-signatures-between-turns-when-provided"
    mini = "xai/fantasy-testopenaicompatiblethinking-xai-grok-3-mini-thinking-1"
    assert (taken(qwen), taken(small), taken(mini)) == ("default", "high", "high")
    refused = RECORDINGS["xai/req_llm-xai-grok-code-fast-1-reasoning-basic"]
    assert refused.status == 400 and b"does not support parameter reasoningEffort" in refused.body


@pytest.mark.parametrize(
    ("profile", "model", "key"),
    [
        ("generic", "m", "reasoning_content"),
        ("llamacpp", "m", "reasoning_content"),
        ("openrouter", "m", "reasoning"),
        ("ollama", "m", "reasoning"),
        ("groq", "openai/gpt-oss-20b", "reasoning"),
        ("groq", "moonshotai/kimi-k2-instruct", None),
        ("cerebras", "m", None),
        ("openai", "m", None),
        ("azure", "m", None),
        ("mistral", "m", None),
    ],
)
def test_reasoning_goes_back_under_the_key_the_server_takes(profile: str, model: str, key: str | None) -> None:
    turn = _ask(profile, model=model, input=TURNS, tools=[LOOK]).chat["messages"][1]
    assert {name for name in turn if name.startswith("reasoning")} == ({key} if key else set())


def test_what_recordings_sent_back_is_what_the_profile_sends() -> None:
    for folder, key in (("ollama", "reasoning"), ("llamacpp", "reasoning_content"), ("zai", "reasoning_content")):
        sent = [
            message
            for name, recording in RECORDINGS.items()
            if name.startswith(f"{folder}/") and recording.status == 200
            for message in recording.request.get("messages", ())
        ]
        assert any(key in message for message in sent)
        assert PROFILES[folder].replay_reasoning == key


def test_mistral_models_get_call_ids_of_nine_letters_wherever_they_run() -> None:
    for profile, model in (("mistral", "m"), ("vllm", "mistralai/Ministral-8B-Instruct"), ("openrouter", "x/Devstral")):
        call, output = _ask(profile, model=model, input=TURNS, tools=[LOOK]).chat["messages"][1:3]
        assert re.fullmatch("[a-zA-Z0-9]{9}", call["tool_calls"][0]["id"])
        assert output["tool_call_id"] == call["tool_calls"][0]["id"]
    own = [{**item, "call_id": "D681PevKs"} if "call_id" in item else item for item in TURNS]
    assert _ask("mistral", input=own, tools=[LOOK]).chat["messages"][2]["tool_call_id"] == "D681PevKs"
    assert _ask("vllm", input=TURNS, tools=[LOOK]).chat["messages"][2]["tool_call_id"] == "call_of_another_server"


def test_every_call_id_in_the_recordings_of_mistral_has_nine_letters() -> None:
    ids = [
        message["tool_call_id"]
        for name, recording in RECORDINGS.items()
        if name.startswith("mistral/") and recording.status == 200
        for message in recording.request.get("messages", ())
        # Some recordings had their ids taken out.
        if "tool_call_id" in message and "REDACTED" not in message["tool_call_id"]
    ]
    assert ids and all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)


@pytest.mark.parametrize("profile", ["groq", "mistral", "gemini", "perplexity", "zai"])
def test_log_probabilities_are_refused_where_there_are_none(profile: str) -> None:
    outcome = _ask(profile, top_logprobs=2)
    assert outcome.json["error"]["param"] == "top_logprobs" and not outcome.calls


@pytest.mark.parametrize("profile", ["xai", "cerebras", "gemini", "zai"])
def test_penalties_are_named_where_they_are_refused(profile: str) -> None:
    outcome = _ask(profile, presence_penalty=1, frequency_penalty=1)
    assert _ignored(outcome) == ["presence_penalty", "frequency_penalty"]
    assert not {"presence_penalty", "frequency_penalty"} & set(outcome.chat)


@pytest.mark.parametrize("profile", ["databricks", "cerebras"])
def test_parallel_tool_calls_stays_here_where_it_is_refused(profile: str) -> None:
    assert "parallel_tool_calls" not in _ask(profile, tools=[LOOK], parallel_tool_calls=False).chat
    assert _ask("generic", tools=[LOOK], parallel_tool_calls=False).chat["parallel_tool_calls"] is False


@pytest.mark.parametrize("profile", ["openai", "azure", "groq", "cerebras"])
def test_the_newer_limit_goes_to_servers_whose_documentation_has_it(profile: str) -> None:
    assert _ask(profile, max_output_tokens=99).chat["max_completion_tokens"] == 99


def test_verbosity_goes_to_openai_and_who_serves_its_models() -> None:
    taking = {name for name in PROFILES if "verbosity" in _ask(name, text={"verbosity": "low"}).chat}
    assert taking == {"openai", "azure", "openrouter"}


def test_fields_of_openai_alone_go_only_where_they_are_known() -> None:
    fields = {"service_tier": "flex", "safety_identifier": "s", "prompt_cache_key": "k", "user": "u"}
    fields["prompt_cache_retention"] = "24h"
    sent = {name: set(fields) & set(_ask(name, **fields).chat) for name in PROFILES}
    assert {name: some for name, some in sent.items() if some} == {
        "openai": set(fields),
        "groq": {"user", "service_tier"},
        **{name: {"user"} for name in ("azure", "fireworks", "openrouter", "xai")},
    }


@pytest.mark.parametrize(
    "profile",
    [
        *("cerebras", "dashscope", "databricks", "deepseek", "groq", "llamacpp", "lmstudio", "mistral", "ollama"),
        *("perplexity", "sglang", "snowflake", "tgi", "vllm", "xai", "zai"),
    ],
)
def test_a_pdf_is_refused_and_a_text_shown_where_there_is_no_file_part(profile: str) -> None:
    def file(name: str, data: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "input_file", "filename": name, "file_data": data}]}

    refused = _ask(profile, input=[file("a.pdf", "data:application/pdf;base64,JVBERg==")])
    assert refused.json["error"]["code"] == "unsupported_parameter" and not refused.calls
    assert "seenfile" in json.dumps(_ask(profile, input=[file("a.txt", "data:text/plain;base64,c2VlbmZpbGU=")]).chat)
    assert _ask("openai", input=[file("a.pdf", "data:application/pdf;base64,JVBERg==")]).calls


@pytest.mark.parametrize("profile", ["deepseek", "cerebras"])
def test_images_are_refused_by_servers_of_text_models(profile: str) -> None:
    image = {"type": "input_image", "image_url": "https://example.org/a.png"}
    assert not _ask(profile, input=[{"role": "user", "content": [image]}]).calls


@pytest.mark.parametrize("profile", ["deepseek", "dashscope", "zai"])
def test_a_schema_is_an_instruction_where_only_json_object_is_documented(profile: str) -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {"magic": {}}}}
    sent = _ask(profile, text={"format": form}).chat
    assert sent["response_format"] == {"type": "json_object"} and "magic" in sent["messages"][0]["content"]


def test_gemini_reads_strictly() -> None:
    sent = _ask("gemini", tools=[{**LOOK, "strict": True}], input=TURNS).chat
    assert "strict" not in sent["tools"][0]["function"] and "reasoning_content" not in sent["messages"][1]


def test_databricks_is_not_asked_for_usage() -> None:
    assert "stream_options" not in _ask("databricks", stream=True).chat
    assert _ask("generic", stream=True).chat["stream_options"] == {"include_usage": True}


def test_audio_goes_to_servers_that_were_seen_to_take_it() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    for name in ("gemini", "openrouter", "vllm", "llamacpp"):
        assert _ask(name, input=[{"role": "user", "content": [audio]}]).calls, name
    for folder in ("openai", "bedrock"):
        assert any(
            '"input_audio"' in json.dumps(recording.request)
            for name, recording in RECORDINGS.items()
            if name.startswith(f"{folder}/") and recording.status == 200
        )
        sent = _ask(folder, input=[{"role": "user", "content": [audio]}]).chat
        assert sent["messages"][0]["content"][0]["type"] == "input_audio"
    assert (
        _ask("generic", input=[{"role": "user", "content": [audio]}]).json["error"]["code"] == "unsupported_parameter"
    )
