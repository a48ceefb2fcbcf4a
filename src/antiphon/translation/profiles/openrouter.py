"""OpenRouter (openrouter.ai/docs): many backends behind one endpoint, which leaves out what a backend cannot do."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "openrouter",
    title="OpenRouter",
    hosts=("openrouter.ai",),
    # Some backends give none, only the sentinel: openrouter/llm-test-tools-streaming-test-tools-streaming-variant-a.
    end_without_finish="completed",
    verbosity=True,
    audio_input=True,
    passed_fields=frozenset({"user"}),
    # Its own spelling, both ways: openrouter/pydantic-test-openrouter-….
    replay_reasoning="reasoning",
    # Encrypted and signed reasoning must come back as it was:
    # openrouter/rig-openrouter-streaming-tools--ncrypted-reasoning-survives-into-the-next-turn-1.
    replay_details=True,
    # The documented ones (docs/api-reference/parameters).
    parameters=STANDARD_PARAMETERS | {"top_k", "min_p", "top_a", "repetition_penalty"},
)
