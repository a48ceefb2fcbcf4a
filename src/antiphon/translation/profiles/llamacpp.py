"""llama.cpp's server (tools/server/README.md)."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "llamacpp",
    title="llama.cpp",
    # Parts are text, image_url and input_audio ("unsupported content[].type" otherwise).
    files="text",
    audio_input=True,
    # llamacpp/fantasy-testopenaicompatiblecommon-llama-cpp-gpt-oss-tool-streaming-1 sends it.
    replay_reasoning="reasoning_content",
    # A tool by name is not kept: text, or a call of another tool (build 10434).
    named_tool_choice="required",
    # Without a schema beside it, `json_object` is not kept (build 10434).
    json_object_schema=True,
    # common/arg and tools/server/README.md: the fields of /completion count in chat requests too.
    parameters=STANDARD_PARAMETERS
    | {"top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "ignore_eos"}
    | {"chat_template_kwargs", "grammar", "json_schema"},
    # Renders the chat template and counts, without running the model.
    tokenizer="llamacpp",
)
