"""Ollama (docs.ollama.com/api/openai-compatibility; source: openai/openai.go)."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "ollama",
    title="Ollama",
    hosts=("ollama.com", "api.ollama.com"),
    # "invalid reasoning value: … (must be "high", "medium", "low", or "none")".
    effort_values=("none", "low", "medium", "high"),
    # Its field: ollama/ruby_llm-chat-function-calling-olla--andle-multiple-tool-calls-in-a-single-response-1.
    replay_reasoning="reasoning",
    # Parts are text and image_url; anything else is "invalid message format".
    files="text",
    # The others are passed over there without a word (openai/openai.go, ChatCompletionRequest).
    parameters=frozenset({"seed", "stop"}),
)
