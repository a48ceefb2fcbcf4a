"""Amazon Bedrock's OpenAI-compatible endpoints."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "bedrock",
    title="Amazon Bedrock",
    hosts=("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws"),
    # bedrock/ruby_llm-chat-audio-models-bedrock--tral-voxtral-mini-3b-2507-can-understand-audio.
    audio_input=True,
    # Documented for its OpenAI-compatible endpoints: OpenAI's own.
    parameters=STANDARD_PARAMETERS,
)
