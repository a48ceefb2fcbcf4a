"""Upstream profiles: what is special about a chat server, as data.

Lives here: the profile type, the registry, and the choice by host name and by model. What vendors differ in is in
`vendors.py`. Not here: code that acts on the flags (the translators).

Invariant: a profile never changes; translators ask for flags, never for names.
"""

from __future__ import annotations

from antiphon.translation.profiles.profile import UpstreamProfile
from antiphon.translation.profiles.vendors import HOSTS, PROFILES

__all__ = ["PROFILES", "UpstreamProfile", "choose_profile"]


def choose_profile(name: str, host: str) -> UpstreamProfile:
    """The profile called `name`, or with `auto` the one for this host. Raises KeyError for an unknown name."""
    if name == "auto":
        name = next((profile for suffix, profile in HOSTS if host.endswith(suffix)), "generic")
    return PROFILES[name]
