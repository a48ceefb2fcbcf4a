"""Chooses the profile of an upstream. A profile describes the particularities of a chat server as data.

This module has the table of all profiles. The module chooses a profile by its name, by the upstream's host name, or by
the list of models that the upstream returns. `profile.py` defines the profile type and the families of models, and
`vendors.py` the vendors. `upstream/identity.py` and `antiphon doctor` fetch a server's list of models.

To add a vendor, add a row to `vendors.py`, with a reason next to each flag.

Invariants: a profile never changes. The translators read the flags of a profile, never its name. If a server's list of
models identifies no profile, `named_by_list` returns an empty name instead of a guess.
"""

from __future__ import annotations

from collections.abc import Mapping

from antiphon.translation.profiles.profile import UpstreamProfile, read_flags, with_flags
from antiphon.translation.profiles.vendors import VENDORS

__all__ = ["DEMO_OWNER", "PROFILES", "UpstreamProfile", "choose_profile", "named_by_list", "read_flags", "with_flags"]

PROFILES: dict[str, UpstreamProfile] = {
    "generic": UpstreamProfile("generic", title="any other chat server"),
    **{profile.name: profile for profile in VENDORS},
}
"""Every profile by name, `generic` first."""

DEMO_OWNER = "antiphon-demo"
"""The `owned_by` value of the models that the demo upstream lists."""


def choose_profile(name: str, host: str, profiles: Mapping[str, UpstreamProfile] = PROFILES) -> UpstreamProfile:
    """Return the profile with this name. For `auto`, returns the profile whose host names match `host`, or else
    `generic`. Raises KeyError for an unknown name."""
    if name == "auto":
        return next((profile for profile in profiles.values() if profile.serves(host.lower())), PROFILES["generic"])
    return profiles[name]


_OWNERS = {profile.owned_by: profile.name for profile in VENDORS if profile.owned_by}
# The demo upstream needs no flag that differs from the generic profile.
_OWNERS[DEMO_OWNER] = "generic"
_SERVERS = {profile.server: profile.name for profile in VENDORS if profile.server}


def named_by_list(listed: object, server: str) -> str:
    """Return the name of the profile that a server's list of models identifies, or an empty name. `listed` is the
    decoded body of the list, and `server` is the value of the response's `server` header."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        owner = entry.get("owned_by") if isinstance(entry, dict) else None
        if isinstance(owner, str) and owner in _OWNERS:
            return _OWNERS[owner]
    return next((profile for sign, profile in _SERVERS.items() if sign in server.lower()), "")
