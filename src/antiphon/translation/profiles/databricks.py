"""Databricks model serving."""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile

PROFILE = UpstreamProfile(
    "databricks",
    title="Databricks",
    hosts=("*.databricks.com", "*.azuredatabricks.net"),
    # Refused (posit-dev/chatlas, the Databricks provider); usage comes unasked, on every chunk.
    stream_usage=False,
    # Not among the documented fields; what it asks for is seen to here.
    parallel_tool_calls=False,
    files="text",
    # The documented ones.
    parameters=frozenset({"stop", "top_k"}),
)
