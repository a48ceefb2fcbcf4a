"""llama.cpp's server (tools/server/README.md)."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

__all__ = ["PROFILE"]

PROFILE = UpstreamProfile(
    "llamacpp",
    title="llama.cpp",
    # Parts are text, image_url and input_audio ("unsupported content[].type" otherwise).
    files="text",
    audio_input=True,
    # llamacpp/fantasy-testopenaicompatiblecommon-llama-cpp-gpt-oss-tool-streaming-1 sends it.
    replay_reasoning="reasoning_content",
)
