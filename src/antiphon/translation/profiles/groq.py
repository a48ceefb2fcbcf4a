"""Groq (console.groq.com/docs): strict about keys, and about what each model can do."""

from __future__ import annotations

from antiphon.translation.profiles.families import on_models
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "groq",
    title="Groq",
    hosts=("api.groq.com",),
    token_limit_field="max_completion_tokens",
    # Documented: `logprobs` and `top_logprobs` are a 400 (docs/openai).
    logprobs=False,
    # Parts are text and images: groq/pydantic-test-multimodal-tool-returns-….
    files="text",
    # "property 'reasoning_content' is unsupported" for every model (github.com/janhq/jan/issues/8136), and `reasoning`
    # only on models that reason (github.com/vercel/ai/pull/8057).
    replay_reasoning="off",
    # Documented for gpt-oss and Qwen 3 alone (docs/reasoning); others refuse the field.
    reasoning_effort=False,
    passed_fields=frozenset({"user", "service_tier"}),
    # Documented (docs/openai): `logit_bias` is a 400; others are unknown keys.
    parameters=frozenset({"seed", "stop"}),
    by_model=(
        on_models(
            "openai/gpt-oss*",
            reasoning_effort=True,
            effort_values=("low", "medium", "high"),
            replay_reasoning="reasoning",
        ),
        # groq/pydantic-test-thinking-wire-contrac--soning-wire-contract-groq-qwen3-effort-setting.
        on_models("qwen/qwen3*", reasoning_effort=True, effort_values=("none", "default")),
    ),
)
