"""Z.ai (docs.z.ai), also as Zhipu's open.bigmodel.cn."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "zai",
    title="Z.ai",
    hosts=("api.z.ai", "open.bigmodel.cn"),
    # Documented: text and json_object.
    structured_output="json_object",
    # Not among the documented fields.
    penalties=False,
    logprobs=False,
    # zai/fantasy-testopenaicompatiblethinking-zai-glm-4-7-flash-thinking-streaming-1 sends it.
    replay_reasoning="reasoning_content",
    files="text",
    # The documented ones; `thinking` switches thinking.
    parameters=frozenset({"stop", "thinking"}),
)
