"""LM Studio (lmstudio.ai/docs/developer/openai-compat)."""

from __future__ import annotations

from antiphon.translation.parameters import STANDARD_PARAMETERS
from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "lmstudio",
    title="LM Studio",
    # "Invalid tool_choice type: 'object'. Supported string values: none, auto, required":
    # github.com/lmstudio-ai/lmstudio-bug-tracker/issues/670.
    named_tool_choice="required",
    # "'response_format.type' must be 'json_schema' or 'text'": the same tracker, issue 189.
    json_object=False,
    files="text",
    # The documented ones.
    parameters=STANDARD_PARAMETERS | {"top_k", "repeat_penalty"},
)
