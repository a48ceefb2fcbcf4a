"""Mistral's platform (docs.mistral.ai/api). Its nine-character call ids are in `families.py`."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "mistral",
    title="Mistral",
    hosts=("api.mistral.ai", "codestral.mistral.ai"),
    call_ids="nine",
    # The API has none, and refuses unknown keys.
    logprobs=False,
    # Two values: mistral/ruby_llm-chat-with-extended-thinkin--hinking-signatures-between-turns-when-provided.
    effort_values=("none", "high"),
    # Unknown keys in messages are refused; its own form for reasoning is content parts.
    replay_reasoning="off",
    # Documents are named by URL there (`document_url`), there is no `file` part.
    files="text",
    # Unknown keys are a 422, "Extra inputs are not permitted"; the seed is called `random_seed` there.
    parameters=frozenset({"seed", "stop"}),
    seed_field="random_seed",
)
