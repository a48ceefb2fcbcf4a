"""Snowflake Cortex."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "snowflake",
    title="Snowflake Cortex",
    hosts=("*.snowflakecomputing.com",),
    # Its thinking models end a stream with the sentinel alone:
    # snowflake/pydantic-test-snowflake-test-snowflake-thinking-streaming.
    end_without_finish="completed",
    # snowflake/pydantic-test-snowflake-test-snowflake-thinking-1 sends them back, and nothing else.
    replay_reasoning="off",
    replay_details=True,
    files="text",
    # The only one of them that is documented.
    parameters=frozenset({"stop"}),
)
