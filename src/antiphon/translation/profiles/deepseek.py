"""DeepSeek's platform (api-docs.deepseek.com)."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "deepseek",
    title="DeepSeek",
    hosts=("api.deepseek.com",),
    # "This response_format type is unavailable now" (github.com/llm-exe/llm-exe/issues/662).
    structured_output="json_object",
    # Documented (guides/thinking_mode): other names are mapped there, and the chat API has no `none`.
    effort_values=("minimal", "low", "medium", "high", "xhigh", "max"),
    # Documented (guides/thinking_mode): a tool-calling turn without its reasoning is a 400 later on;
    # deepseek/pydantic-test-deepseek-test-deepseek-deferred-capability-with-thinking-1 sends it.
    replay_reasoning="reasoning_content",
    # A 400, "unknown variant `image_url`, expected `text`":
    # deepseek/rig-deepseek-wire-shape-matrix-blocking-image-base64-part-reaches-the-wire.
    images=False,
    files="text",
    # The documented ones (api/create-chat-completion); `thinking` switches thinking (guides/thinking_mode).
    parameters=frozenset({"stop", "thinking"}),
)
