"""Upstream profiles: what is special about a chat server, as data.

Lives here: the profile type, the registry, and the choice by host name. A vendor whose quirks need more than a
line gets a file of its own here. Not here: code that acts on the flags (the translators).

Invariant: a profile is chosen once per process and never changes; translators ask for flags, never for names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PROFILES", "UpstreamProfile", "choose_profile"]


@dataclass(frozen=True, slots=True)
class UpstreamProfile:
    """What an upstream accepts and how its answers are to be judged.

    `token_limit_field` is the request field for `max_output_tokens`; `developer_role` is the role name that
    developer messages get; `end_without_finish` is what a stream means that ended without a `finish_reason` after
    useful output; `reasoning_effort`, `verbosity` and `parallel_tool_calls` say whether the field is sent at all.
    """

    name: str
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    developer_role: Literal["system", "developer"] = "system"
    end_without_finish: Literal["failed", "completed"] = "failed"
    stream_usage: bool = True
    parallel_tool_calls: bool = True
    reasoning_effort: bool = True
    verbosity: bool = False


PROFILES = {
    profile.name: profile
    for profile in (
        UpstreamProfile("generic"),
        UpstreamProfile(
            "openai", token_limit_field="max_completion_tokens", developer_role="developer", verbosity=True
        ),
        # Its thinking models end a stream with the sentinel alone (recording snowflake, thinking-streaming).
        UpstreamProfile("snowflake", end_without_finish="completed"),
    )
}

_BY_HOST = (("api.openai.com", "openai"), (".openai.azure.com", "openai"), (".snowflakecomputing.com", "snowflake"))


def choose_profile(name: str, host: str) -> UpstreamProfile:
    """The profile called `name`, or with `auto` the one for this host. Raises KeyError for an unknown name."""
    if name == "auto":
        name = next((profile for suffix, profile in _BY_HOST if host.endswith(suffix)), "generic")
    return PROFILES[name]
