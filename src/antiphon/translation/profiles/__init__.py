"""Upstream profiles: what is special about a chat server, as data.

Lives here: the registry, and the choice by name or host. Not here: the type (`profile.py`), code that acts on the flags
(the translators).

To add a vendor: a file like the others, with one `PROFILE` whose flags each have their reason beside them, and a line
in `_VENDORS`. Vendors that need nothing but a name and a host are lines of `plain.py`.

Invariant: a profile never changes; translators ask for flags, never for names.
"""

from __future__ import annotations

from collections.abc import Mapping

from antiphon.translation.profiles import (
    azure,
    bedrock,
    cerebras,
    dashscope,
    databricks,
    deepseek,
    gemini,
    groq,
    llamacpp,
    lmstudio,
    mistral,
    ollama,
    openai,
    openrouter,
    perplexity,
    plain,
    snowflake,
    vllm,
    xai,
    zai,
)
from antiphon.translation.profiles.families import ModelNote, on_models
from antiphon.translation.profiles.profile import UpstreamProfile, read_flags, with_flags

__all__ = [
    "PROFILES",
    "ModelNote",
    "UpstreamProfile",
    "choose_profile",
    "on_models",
    "read_flags",
    "with_flags",
]

_VENDORS = (
    azure,
    bedrock,
    cerebras,
    dashscope,
    databricks,
    deepseek,
    gemini,
    groq,
    llamacpp,
    lmstudio,
    mistral,
    ollama,
    openai,
    openrouter,
    perplexity,
    snowflake,
    vllm,
    xai,
    zai,
)

PROFILES: dict[str, UpstreamProfile] = {
    "generic": UpstreamProfile("generic", title="any other chat server"),
    **{
        profile.name: profile
        for profile in sorted(
            (*(vendor.PROFILE for vendor in _VENDORS), *plain.PROFILES), key=lambda profile: profile.name
        )
    },
}
"""Every profile by name, `generic` first."""


def choose_profile(name: str, host: str, profiles: Mapping[str, UpstreamProfile] = PROFILES) -> UpstreamProfile:
    """The profile of these called `name`, or with `auto` the one for this host. Raises KeyError for an unknown name."""
    if name == "auto":
        return next((profile for profile in profiles.values() if profile.serves(host.lower())), PROFILES["generic"])
    return profiles[name]
