"""Databricks model serving."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

__all__ = ["PROFILE"]

PROFILE = UpstreamProfile(
    "databricks",
    title="Databricks",
    hosts=("*.databricks.com", "*.azuredatabricks.net"),
    # Refused (posit-dev/chatlas, the Databricks provider); usage comes unasked, on every chunk.
    stream_usage=False,
    # Not among the documented fields; what it asks for is seen to here.
    parallel_tool_calls=False,
    files="text",
)
