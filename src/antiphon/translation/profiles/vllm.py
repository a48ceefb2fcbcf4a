"""vLLM (vllm/entrypoints/openai/chat_completion/protocol.py, entrypoints/chat_utils.py, entrypoints/serve/tokenize)."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "vllm",
    title="vLLM",
    # Parts are text, images, audio and video; there is no `file`.
    files="text",
    audio_input=True,
    # Renders the chat template and counts, without running the model.
    tokenizer="vllm",
    # protocol.py, ChatCompletionRequest; `guided_*` up to 0.11, `structured_outputs` since.
    parameters=STANDARD_PARAMETERS
    | {"top_k", "min_p", "repetition_penalty", "length_penalty", "min_tokens", "stop_token_ids", "bad_words"}
    | {"ignore_eos", "chat_template_kwargs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
    | {"structured_outputs"},
)
