"""Amazon Bedrock's OpenAI-compatible endpoints."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

__all__ = ["PROFILE"]

PROFILE = UpstreamProfile(
    "bedrock",
    title="Amazon Bedrock",
    hosts=("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws"),
    # bedrock/ruby_llm-chat-audio-models-bedrock--tral-voxtral-mini-3b-2507-can-understand-audio.
    audio_input=True,
)
