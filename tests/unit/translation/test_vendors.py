"""What each vendor's server gets of a request that asks for everything, and what it is taken to understand."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.translation.profiles import PROFILES, choose_profile, named_by_list
from antiphon.translation.request.parameters import EVERY_PARAMETER
from tests.support.exchanges import JSON, Outcome, run

COMPLETION = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}'
STREAMED = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
LOOK = {"type": "function", "name": "look", "strict": True, "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
VALUES: dict[str, Any] = {
    "seed top_k repeat_last_n min_tokens thinking_budget": 5,
    "min_p top_a typical_p repetition_penalty repeat_penalty length_penalty": 0.5,
    "chat_template_kwargs thinking logit_bias guided_json structured_outputs json_schema": {},
    "guided_regex guided_grammar grammar regex ebnf": "x",
    "stop bad_words guided_choice": ["x"],
    "ignore_eos enable_thinking": True,
    "stop_token_ids": [1],
}
PARAMETERS = {name: value for names, value in VALUES.items() for name in names.split()}
WISHES: dict[str, Any] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), 0.5),
    **dict.fromkeys(("safety_identifier", "prompt_cache_key", "user"), "x"),
    "prompt_cache_retention": "24h",
    "service_tier": "flex",
    "max_output_tokens": 50,
    "parallel_tool_calls": True,
    "stream": True,
}
PARTS = {
    "image": {"type": "input_image", "image_url": "https://x.example/y.png"},
    "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    "file": {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
}
# What an unknown server gets. Of every other one: what it does not get, behind a minus, and what it gets more.
FIELDS = {
    "generic m": "frequency_penalty json_schema max_tokens parallel_tool_calls presence_penalty stream_options strict",
    "azure m": "-max_tokens max_completion_tokens user verbosity",
    "bedrock m": "",
    "cerebras m": "-frequency_penalty -max_tokens -parallel_tool_calls -presence_penalty max_completion_tokens",
    "cloudflare m": "",
    "dashscope m": "-json_schema json_object",
    "databricks m": "-parallel_tool_calls -stream_options",
    "deepseek m": "-json_schema json_object none:minimal",
    "fireworks m": "user",
    "gemini m": "-frequency_penalty -presence_penalty -strict max:high minimal:low",
    "github-copilot m": "",
    "groq m": (
        "-max_tokens max:unsaid max_completion_tokens medium:unsaid minimal:unsaid none:unsaid service_tier user"
    ),
    "huggingface m": "",
    "llamacpp m": "required",
    "lmstudio m": "required",
    "mistral m": "max:high medium:high minimal:high",
    "nvidia-nim m": "",
    "ollama m": "max:high minimal:low",
    "openai m": (
        "-max_tokens max_completion_tokens prompt_cache_key prompt_cache_retention safety_identifier "
        "service_tier user verbosity"
    ),
    "openrouter m": "user verbosity",
    "perplexity m": "",
    "sglang m": "",
    "snowflake m": "",
    "tgi m": "",
    "together m": "",
    "venice m": "",
    "vercel-gateway m": "",
    "vllm m": "",
    "watsonx m": "",
    "xai m": "-frequency_penalty -presence_penalty max:high minimal:low user",
    "zai m": "-frequency_penalty -json_schema -presence_penalty json_object",
    "azure mai-ds-r1": "-max_tokens max_completion_tokens required user verbosity",
    "groq openai/gpt-oss-20b": "-max_tokens max:high max_completion_tokens minimal:low none:low service_tier user",
    "groq qwen/qwen3-32b": (
        "-max_tokens max:default max_completion_tokens medium:default minimal:default service_tier user"
    ),
    "xai grok-code-fast-1": (
        "-frequency_penalty -presence_penalty max:unsaid medium:unsaid minimal:unsaid none:unsaid user"
    ),
    "xai grok-4": "-frequency_penalty -presence_penalty max:unsaid medium:unsaid minimal:unsaid none:unsaid user",
    "xai grok-4-1": "-frequency_penalty -presence_penalty max:unsaid medium:unsaid minimal:unsaid none:unsaid user",
    "xai grok-4.20-beta": (
        "-frequency_penalty -presence_penalty max:unsaid medium:unsaid minimal:unsaid none:unsaid user"
    ),
    "xai grok-3-mini": "-frequency_penalty -presence_penalty max:high medium:high minimal:low none:low user",
    "generic ministral-8b": "",
    "generic mixtral": "",
    "generic codestral": "",
    "generic devstral": "",
    "generic magistral": "",
    "generic mistral-7b": "",
}
UNDERSTOOD = {
    "generic m": "file id:6 image json_object logprobs reasoning_content system",
    "azure m": "-reasoning_content",
    "bedrock m": "audio",
    "cerebras m": "-file -image -reasoning_content",
    "cloudflare m": "",
    "dashscope m": "-file",
    "databricks m": "-file",
    "deepseek m": "-file -image",
    "fireworks m": "",
    "gemini m": "-logprobs -reasoning_content audio",
    "github-copilot m": "",
    "groq m": "-file -logprobs -reasoning_content",
    "huggingface m": "",
    "llamacpp m": "-file -json_object audio json_object+schema",
    "lmstudio m": "-file -json_object json_schema+json_schema",
    "mistral m": "-file -id:6 -logprobs -reasoning_content id:9",
    "nvidia-nim m": "",
    "ollama m": "-file -reasoning_content reasoning",
    "openai m": "-reasoning_content -system audio developer",
    "openrouter m": "-reasoning_content audio reasoning",
    "perplexity m": "-file -logprobs -reasoning_content",
    "sglang m": "-file",
    "snowflake m": "-file -reasoning_content",
    "tgi m": "-file",
    "together m": "",
    "venice m": "",
    "vercel-gateway m": "",
    "vllm m": "-file audio",
    "watsonx m": "",
    "xai m": "-file",
    "zai m": "-file -logprobs",
    "azure mai-ds-r1": "-reasoning_content",
    "groq openai/gpt-oss-20b": "-file -logprobs -reasoning_content reasoning",
    "groq qwen/qwen3-32b": "-file -logprobs -reasoning_content",
    "xai grok-code-fast-1": "-file",
    "xai grok-4": "-file",
    "xai grok-4-1": "-file",
    "xai grok-4.20-beta": "-file",
    "xai grok-3-mini": "-file",
    "generic ministral-8b": "-id:6 id:9",
    "generic mixtral": "-id:6 id:9",
    "generic codestral": "-id:6 id:9",
    "generic devstral": "-id:6 id:9",
    "generic magistral": "-id:6 id:9",
    "generic mistral-7b": "-id:6 id:9",
}
KNOWN = {
    "azure": "logit_bias seed stop",
    "bedrock": "logit_bias seed stop",
    "cerebras": "logit_bias seed stop",
    "dashscope": "enable_thinking repetition_penalty seed stop thinking_budget top_k",
    "databricks": "stop top_k",
    "deepseek": "stop thinking",
    "gemini": "stop",
    "github-copilot": "logit_bias seed stop",
    "groq": "seed stop",
    "llamacpp": (
        "chat_template_kwargs grammar ignore_eos json_schema logit_bias min_p repeat_last_n repeat_penalty "
        "seed stop top_k typical_p"
    ),
    "lmstudio": "logit_bias repeat_penalty seed stop top_k",
    "mistral": "random_seed stop",
    "ollama": "seed stop",
    "openai": "logit_bias seed stop",
    "openrouter": "logit_bias min_p repetition_penalty seed stop top_a top_k",
    "perplexity": "top_k",
    "sglang": (
        "chat_template_kwargs ebnf ignore_eos logit_bias min_p min_tokens regex repetition_penalty seed stop "
        "stop_token_ids top_k"
    ),
    "snowflake": "stop",
    "tgi": "seed stop",
    "vllm": (
        "bad_words chat_template_kwargs guided_choice guided_grammar guided_json guided_regex ignore_eos "
        "length_penalty logit_bias min_p min_tokens repetition_penalty seed stop stop_token_ids "
        "structured_outputs top_k"
    ),
    "xai": "seed stop",
    "zai": "stop thinking",
}
"""The parameters that a vendor takes; the others get all of them."""
HOSTS = {
    "azure": "x.openai.azure.com x.services.ai.azure.com x.cognitiveservices.azure.com",
    "bedrock": "bedrock-runtime.x.amazonaws.com bedrock-mantle.x.api.aws",
    "cerebras": "api.cerebras.ai",
    "cloudflare": "api.cloudflare.com",
    "dashscope": "dashscope.aliyuncs.com dashscope-us.aliyuncs.com",
    "databricks": "x.databricks.com x.azuredatabricks.net",
    "deepseek": "api.deepseek.com",
    "fireworks": "api.fireworks.ai",
    "gemini": "generativelanguage.googleapis.com",
    "github-copilot": "api.githubcopilot.com x.githubcopilot.com",
    "groq": "api.groq.com",
    "huggingface": "router.huggingface.co",
    "mistral": "api.mistral.ai codestral.mistral.ai",
    "nvidia-nim": "integrate.api.nvidia.com",
    "ollama": "ollama.com api.ollama.com",
    "openai": "api.openai.com x.api.openai.com",
    "openrouter": "openrouter.ai",
    "perplexity": "api.perplexity.ai",
    "snowflake": "x.snowflakecomputing.com",
    "together": "api.together.xyz api.together.ai",
    "venice": "api.venice.ai",
    "vercel-gateway": "ai-gateway.vercel.sh",
    "watsonx": "x.ml.cloud.ibm.com",
    "xai": "api.x.ai x.api.x.ai",
    "zai": "api.z.ai open.bigmodel.cn",
}


def _ask(name: str, model: str, **request: Any) -> Outcome:
    return run({"model": model, "input": "hi", **request}, [COMPLETION], headers=JSON, profile=name)


def _refused(outcome: Outcome) -> bool:
    return outcome.head is not None and outcome.head.status == 400


def _wishes_sent(name: str, model: str) -> set[str]:
    """The fields beyond those of every request. A value stands behind a colon where it is the vendor's own."""
    request = {"model": model, "input": "hi", "tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}}
    request |= {**WISHES, "reasoning": {"effort": "minimal"}, "text": {"verbosity": "low", "format": SCHEMA}}
    chat = run(request, [STREAMED], profile=name).chat
    chosen, form = chat.pop("tool_choice"), chat.pop("response_format", {"type": "none"})
    words = {"required"} if chosen == "required" else set()
    words |= {"strict"} if chat.pop("tools")[0]["function"].get("strict") else set()
    words |= {form["type"]}
    for asked in ("none", "minimal", "medium", "max"):
        effort = _ask(name, model, reasoning={"effort": asked}).chat.get("reasoning_effort", "unsaid")
        words |= {f"{asked}:{effort}"} if asked != effort else set()
    return words | set(chat) - {"model", "messages", "stream", "reasoning_effort"}


def _parameters_sent(name: str, model: str) -> list[str]:
    chat = _ask(name, model, **PARAMETERS).chat
    return sorted(set(chat) - {"model", "messages"})


def _understood(name: str, model: str) -> set[str]:
    """The kinds of content and of history, and what an answer may have."""
    asked = {kind: _ask(name, model, input=[{"role": "user", "content": [part]}]) for kind, part in PARTS.items()}
    words = {kind for kind, outcome in asked.items() if not _refused(outcome)}
    if not _refused(_ask(name, model, top_logprobs=2)):
        words.add("logprobs")
    history = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "seen"},
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "on"},
    ]
    chat = _ask(name, model, input=history, text={"format": {"type": "json_object"}}).chat
    messages, form = chat["messages"], chat["response_format"]
    words.add("+".join((form["type"], *(key for key in form if key != "type"))))
    words |= {message["role"] for message in messages} - {"user", "assistant", "tool"}
    words |= {f"id:{len(message['tool_call_id'])}" for message in messages if message["role"] == "tool"}
    words |= {key for message in messages for key in message if key.startswith("reasoning")}
    return words


def _beside(common: str, difference: str) -> set[str]:
    """The common words without those behind a minus, and with the others."""
    words = difference.split()
    return {*common.split(), *(word for word in words if word[0] != "-")} - {word[1:] for word in words}


@pytest.mark.parametrize(("name", "model"), [tuple(key.split()) for key in FIELDS], ids=list(FIELDS))
def test_a_vendor_gets_the_fields_that_it_knows(name: str, model: str) -> None:
    key = f"{name} {model}"
    assert _wishes_sent(name, model) == _beside(FIELDS["generic m"], FIELDS[key])
    assert _understood(name, model) == _beside(UNDERSTOOD["generic m"], UNDERSTOOD[key])


@pytest.mark.parametrize("name", PROFILES)
def test_a_vendor_gets_the_parameters_that_it_knows(name: str) -> None:
    own = KNOWN.get(name)
    expected = set(EVERY_PARAMETER) if own is None else {*own.split()}
    assert set(_parameters_sent(name, "m")) == expected


@pytest.mark.parametrize(("host", "name"), [(host, name) for name, hosts in HOSTS.items() for host in hosts.split()])
def test_a_vendor_is_known_by_each_of_its_hosts(host: str, name: str) -> None:
    assert choose_profile("auto", host).name == name
    assert choose_profile("auto", f"{host}x").name == "generic"


@pytest.mark.parametrize(
    ("owner", "server", "name"),
    [
        ("llamacpp", "", "llamacpp"),
        ("organization_owner", "", "lmstudio"),
        ("library", "", "ollama"),
        ("sglang", "", "sglang"),
        ("vllm", "", "vllm"),
        ("antiphon-demo", "", "generic"),
        ("", "llama.cpp", "llamacpp"),
        ("", "SGLang/0.4", "sglang"),
        ("", "vllm", "vllm"),
        ("somebody", "uvicorn", ""),
    ],
)
def test_a_server_is_known_by_its_models_owner_or_its_own_name(owner: str, server: str, name: str) -> None:
    assert named_by_list({"data": [{"id": "a"}, {"id": "m", "owned_by": owner}]}, server) == name


# How an answer is read, and what goes back besides: where a server differs from an unknown one.
READ: dict[str, dict[str, object]] = {
    "gemini": {"replay_signatures": True},
    "llamacpp": {"tokenizer": "llamacpp"},
    "openai": {"system_anywhere": True, "think": "off"},
    "openrouter": {"end_without_finish": "completed", "replay_details": True},
    "snowflake": {"end_without_finish": "completed", "replay_details": True},
    "vllm": {"tokenizer": "vllm"},
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_vendors_answer_is_read_in_its_way(name: str) -> None:
    common = {
        "system_anywhere": False,
        "end_without_finish": "failed",
        "replay_details": False,
        "replay_signatures": False,
        "think": "tagged",
        "tokenizer": "none",
    }
    profile = PROFILES[name]
    assert {flag: getattr(profile, flag) for flag in common} == {**common, **READ.get(name, {})}
