"""The vendors: one entry for each server that needs more than the defaults, with the reason for every flag.

Lives here: data. Not here: what a flag leads to.

Invariant: every flag has a reason beside it: a recording (under `tests/recordings/chat`) or the vendor's documentation.
"""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

__all__ = ["HOSTS", "PROFILES"]

# Fields that only OpenAI's own chat endpoint has; elsewhere they are unknown keys, and strict servers refuse those.
_OPENAI_FIELDS = frozenset({"service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user"})
# Their templates open the reasoning: only its end is in the answer (recording req_llm-azure-mai-ds-r1-multi-tool).
_TEMPLATE_OPENED = ("*mai-ds-r1*",)

PROFILES = {
    profile.name: profile
    for profile in (
        UpstreamProfile("generic", opened_models=_TEMPLATE_OPENED),
        # Its reasoning models refuse `max_tokens`; unknown keys in messages are refused; nothing is hidden in tags.
        UpstreamProfile(
            "openai",
            token_limit_field="max_completion_tokens",
            developer_role="developer",
            verbosity=True,
            passed_fields=_OPENAI_FIELDS,
            audio_input=True,
            replay_reasoning="off",
            think="off",
        ),
        # OpenAI's models and others behind one endpoint: the newer limit field is understood by all of them.
        UpstreamProfile(
            "azure",
            token_limit_field="max_completion_tokens",
            verbosity=True,
            passed_fields=frozenset({"user"}),
            replay_reasoning="off",
            opened_models=_TEMPLATE_OPENED,
        ),
        # Many backends: it takes reasoning back under its own name.
        UpstreamProfile(
            "openrouter",
            verbosity=True,
            audio_input=True,
            passed_fields=frozenset({"user"}),
            replay_reasoning="reasoning",
            # Encrypted and signed reasoning must come back as it was: openrouter/rig-openrouter-streaming-tools-….
            replay_details=True,
        ),
        # Refuses unknown keys in messages, `logprobs` and forced reasoning efforts beyond these.
        UpstreamProfile(
            "groq",
            token_limit_field="max_completion_tokens",
            logprobs=False,
            files="text",
            replay_reasoning="reasoning",
            passed_fields=frozenset({"user", "service_tier"}),
            effort_values=("none", "low", "medium", "high"),
        ),
        # Refuses `logprobs` (mistral has none), `stream_options` is needless but taken, `tool_choice` by name is taken.
        UpstreamProfile("mistral", logprobs=False, reasoning_effort=False, replay_reasoning="off", files="text"),
        # Requires the reasoning of a tool-calling turn to come back; knows json_object alone.
        UpstreamProfile(
            "deepseek",
            structured_output="json_object",
            replay_reasoning="reasoning_content",
            files="text",
            images=False,
            strict_tools=False,
        ),
        UpstreamProfile("xai", penalties=False, files="text", passed_fields=frozenset({"user"})),
        UpstreamProfile("together", files="text"),
        UpstreamProfile("fireworks", files="text", passed_fields=frozenset({"user"})),
        # Refuses penalties; its reasoning is `reasoning` both ways.
        UpstreamProfile(
            "cerebras",
            token_limit_field="max_completion_tokens",
            penalties=False,
            images=False,
            files="text",
            replay_reasoning="off",
        ),
        # Searches by itself; no tools, no effort but low, medium, high.
        UpstreamProfile("perplexity", files="text", replay_reasoning="off", logprobs=False),
        # Google's compatible endpoint: penalties, logprobs and `strict` are refused or ignored.
        UpstreamProfile(
            "gemini",
            penalties=False,
            logprobs=False,
            strict_tools=False,
            effort_values=("none", "minimal", "low", "medium", "high"),
            replay_reasoning="off",
        ),
        UpstreamProfile("ollama", logprobs=False, files="text", replay_reasoning="reasoning"),
        UpstreamProfile("llamacpp", files="text"),
        UpstreamProfile("vllm", files="text"),
        UpstreamProfile("sglang", files="text"),
        UpstreamProfile("lmstudio", files="text"),
        UpstreamProfile("huggingface", files="text", strict_tools=False),
        UpstreamProfile("zai", files="text", structured_output="json_object", penalties=False, logprobs=False),
        UpstreamProfile("dashscope", files="text", structured_output="json_object"),
        UpstreamProfile("databricks", files="text", strict_tools=False, stream_usage=False),
        # Its thinking models end a stream with the sentinel alone (recording snowflake, thinking-streaming).
        UpstreamProfile("snowflake", end_without_finish="completed", files="text"),
    )
}

HOSTS = (
    ("api.openai.com", "openai"),
    (".openai.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    ("openrouter.ai", "openrouter"),
    ("api.groq.com", "groq"),
    ("api.mistral.ai", "mistral"),
    ("api.deepseek.com", "deepseek"),
    ("api.x.ai", "xai"),
    ("api.together.xyz", "together"),
    ("api.together.ai", "together"),
    ("api.fireworks.ai", "fireworks"),
    ("api.cerebras.ai", "cerebras"),
    ("api.perplexity.ai", "perplexity"),
    ("generativelanguage.googleapis.com", "gemini"),
    ("router.huggingface.co", "huggingface"),
    ("api.z.ai", "zai"),
    ("dashscope.aliyuncs.com", "dashscope"),
    ("dashscope-intl.aliyuncs.com", "dashscope"),
    (".databricks.com", "databricks"),
    (".snowflakecomputing.com", "snowflake"),
)
"""Host name suffixes and their profiles."""
