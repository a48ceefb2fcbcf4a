"""Which kind of chat server sent a list of models, as far as the list says so.

Lives here: the signs in a `GET /models`. Not here: asking (`upstream/identity.py`, and with more paths `antiphon
doctor`), choosing a profile by host name (`__init__.py`).

Invariant: a server that says nothing is `""`, never a guess.
"""

from __future__ import annotations

from typing import Any

_OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "library": "ollama",
    "organization_owner": "lmstudio",
}
_SERVERS = {"llama.cpp": "llamacpp", "vllm": "vllm", "sglang": "sglang"}


def named_by_list(listed: Any, server: str) -> str:
    """The profile's name; `listed` is the decoded body of a list of models, `server` the header of that name."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        owner = entry.get("owned_by") if isinstance(entry, dict) else None
        if isinstance(owner, str) and owner in _OWNERS:
            return _OWNERS[owner]
    return next((profile for sign, profile in _SERVERS.items() if sign in server.lower()), "")
