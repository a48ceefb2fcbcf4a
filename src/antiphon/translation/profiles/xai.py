"""xAI (docs.x.ai)."""

from __future__ import annotations

from antiphon.translation.profiles.families import on_models
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "xai",
    title="xAI",
    hosts=("api.x.ai", "*.api.x.ai"),
    # Documented (guides/reasoning): an error with the models that reason, which is all current ones.
    penalties=False,
    # Documented for grok-4.3 and later (guides/reasoning).
    effort_values=("none", "low", "medium", "high"),
    files="text",
    passed_fields=frozenset({"user"}),
    # The documented ones; `logit_bias` is documented as unsupported.
    parameters=frozenset({"seed", "stop"}),
    by_model=(
        # "Model grok-code-fast-1 does not support parameter reasoningEffort":
        # xai/req_llm-xai-grok-code-fast-1-reasoning-basic; the others: opencode-oci-provider 0.2.3, @ai-sdk/xai 4.0.8.
        on_models("grok-code*", "grok-4", "grok-4-*", "grok-4.20*", reasoning_effort=False),
        # xai/fantasy-testopenaicompatiblethinking-xai-grok-3-mini-thinking-1; documented: low and high.
        on_models("grok-3-mini*", effort_values=("low", "high")),
    ),
)
