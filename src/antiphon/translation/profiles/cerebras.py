"""Cerebras (inference-docs.cerebras.ai)."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "cerebras",
    title="Cerebras",
    hosts=("api.cerebras.ai",),
    token_limit_field="max_completion_tokens",
    # A 400 each: frequency_penalty, presence_penalty, parallel_tool_calls, service_tier (hexdocs.pm/req_llm, cerebras).
    penalties=False,
    parallel_tool_calls=False,
    # "property 'messages.2.assistant.reasoning_content' is unsupported" (github.com/Kilo-Org/kilocode/issues/10375).
    replay_reasoning="off",
    # Text models.
    images=False,
    files="text",
    # The documented ones.
    parameters=STANDARD_PARAMETERS,
)
