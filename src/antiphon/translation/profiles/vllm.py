"""vLLM (vllm/entrypoints/openai/chat_completion/protocol.py, entrypoints/chat_utils.py, entrypoints/serve/tokenize)."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

__all__ = ["PROFILE"]

PROFILE = UpstreamProfile(
    "vllm",
    title="vLLM",
    # Parts are text, images, audio and video; there is no `file`.
    files="text",
    audio_input=True,
    # Renders the chat template and counts, without running the model.
    tokenizer="vllm",
)
