"""Alibaba Cloud Model Studio, compatible mode (help.aliyun.com/en/model-studio)."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "dashscope",
    title="Alibaba Model Studio",
    hosts=("dashscope.aliyuncs.com", "dashscope-*.aliyuncs.com"),
    # json_schema is documented for its newest models alone.
    structured_output="json_object",
    files="text",
    # The documented ones.
    parameters=frozenset({"seed", "stop", "top_k", "repetition_penalty", "enable_thinking", "thinking_budget"}),
)
