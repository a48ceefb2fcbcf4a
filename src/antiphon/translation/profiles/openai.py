"""OpenAI's own chat endpoint (developers.openai.com/api/reference: chat, create)."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "openai",
    title="OpenAI",
    hosts=("api.openai.com", "*.api.openai.com"),
    # Its reasoning models refuse `max_tokens`.
    token_limit_field="max_completion_tokens",
    # Its reasoning models know this role; older ones take it as `system`.
    developer_role="developer",
    system_anywhere=True,
    verbosity=True,
    # Fields of its chat endpoint; elsewhere they are unknown keys, and strict servers refuse those.
    passed_fields=frozenset(
        {"service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user"}
    ),
    # openai/logfire-otel-integrations-test-openai-test-chat-completions-with-audio-input.
    audio_input=True,
    # It gives no reasoning, and refuses unknown keys in messages.
    replay_reasoning="off",
    think="off",
    # Unknown keys are a 400.
    parameters=STANDARD_PARAMETERS,
)
