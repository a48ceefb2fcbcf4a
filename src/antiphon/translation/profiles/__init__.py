"""Upstream profiles: the particularities of each chat server, as data.

Lives here: the registry, the choice by name or host, and by the signs in a server's list of models. Not here:

- the type and families of models (`profile.py`);
- the vendors (`vendors.py`);
- fetching a server's list (`upstream/identity.py`, and with more paths `antiphon doctor`);
- code that acts on the flags (the translators).

To add a vendor: a row in `vendors.py`, with a reason next to each flag.

Invariants: a profile never changes; translators ask for flags, never for names; a server whose list says nothing is
`""`, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antiphon.translation.profiles.profile import UpstreamProfile, read_flags, with_flags
from antiphon.translation.profiles.vendors import VENDORS

__all__ = ["DEMO_OWNER", "PROFILES", "UpstreamProfile", "choose_profile", "named_by_list", "read_flags", "with_flags"]

PROFILES: dict[str, UpstreamProfile] = {
    "generic": UpstreamProfile("generic", title="any other chat server"),
    **{profile.name: profile for profile in VENDORS},
}
"""Every profile by name, `generic` first."""

DEMO_OWNER = "antiphon-demo"
"""The owner of the demo upstream's models."""


def choose_profile(name: str, host: str, profiles: Mapping[str, UpstreamProfile] = PROFILES) -> UpstreamProfile:
    """The profile of these called `name`, or with `auto` the one for this host. Raises KeyError for an unknown name."""
    if name == "auto":
        return next((profile for profile in profiles.values() if profile.serves(host.lower())), PROFILES["generic"])
    return profiles[name]


_OWNERS = {profile.owned_by: profile.name for profile in VENDORS if profile.owned_by}
# The demo upstream needs nothing special.
_OWNERS[DEMO_OWNER] = "generic"
_SERVERS = {profile.server: profile.name for profile in VENDORS if profile.server}


def named_by_list(listed: Any, server: str) -> str:
    """The profile's name; `listed` is the decoded body of a list of models, `server` the header of that name."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        owner = entry.get("owned_by") if isinstance(entry, dict) else None
        if isinstance(owner, str) and owner in _OWNERS:
            return _OWNERS[owner]
    return next((profile for sign, profile in _SERVERS.items() if sign in server.lower()), "")
