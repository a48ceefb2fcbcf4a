"""Google's OpenAI-compatible endpoint (ai.google.dev/gemini-api/docs/openai).

It reads strictly: what it does not know is a 400, "Unknown name …: Cannot find field".
"""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "gemini",
    title="Gemini (compatible endpoint)",
    hosts=("generativelanguage.googleapis.com",),
    # `Unknown name "frequency_penalty"`: github.com/versun/RSSBox/issues/132.
    penalties=False,
    # Not among the documented fields.
    logprobs=False,
    strict_tools=False,
    replay_reasoning="off",
    # Documented: `none` to `high`; `minimal` is refused by some models (the issue above).
    effort_values=("none", "low", "medium", "high"),
    # Gemini 3 refuses a call of its own that comes back without its thought signature (…/docs/thought-signatures).
    replay_signatures=True,
    # Documented: audio understanding.
    audio_input=True,
    # The only one of them that is documented.
    parameters=frozenset({"stop"}),
)
