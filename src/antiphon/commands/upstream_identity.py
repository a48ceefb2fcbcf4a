"""Which chat server is behind a URL, as far as it says so itself.

Lives here: the signs. Not here: what the server can do (`upstream_probes.py`), choosing a profile by host name
(`translation/profiles`).

Invariant: only `GET` requests without credentials; a server that says nothing is `""`, never a guess.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from antiphon.commands.upstream_probes import Answer, ChatProbes
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget

__all__ = ["identify", "usual_server"]

_OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "library": "ollama",
    "organization_owner": "lmstudio",
}
_SERVERS = {"llama.cpp": "llamacpp", "vllm": "vllm", "sglang": "sglang"}
# path beside the API, keys that its JSON object holds all of, profile
_SIGNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("/props", ("default_generation_settings",), "llamacpp"),
    ("/server_info", ("model_path", "version"), "sglang"),
    ("/get_server_info", ("model_path", "version"), "sglang"),
    ("/info", ("model_id", "max_total_tokens"), "tgi"),
    ("/api/version", ("version",), "ollama"),
    ("/api/v0/models", ("data",), "lmstudio"),
    ("/version", ("version",), "vllm"),
)
_PORTS = {11434: "Ollama", 8000: "vLLM", 8080: "llama.cpp", 1234: "LM Studio", 30000: "SGLang", 3000: "TGI"}


async def identify(target: UpstreamTarget, url: str, listed: Answer) -> str:
    """The profile the server itself suggests, by its list of models, its headers, or paths of its own."""
    entries = listed.json.get("data")
    for entry in entries if isinstance(entries, list) else ():
        owner = entry.get("owned_by") if isinstance(entry, dict) else None
        if isinstance(owner, str) and owner in _OWNERS:
            return _OWNERS[owner]
    server = listed.headers.get("server", "").lower()
    for sign, profile in _SERVERS.items():
        if sign in server:
            return profile
    # Beside the API, and without the key that the target's headers may hold.
    headers = tuple((name, value) for name, value in target.headers if name != "authorization")
    beside = UpstreamTarget(url.removesuffix("/v1"), target.unix_path, headers, target.ssl)
    client = HttpUpstream(beside, connect_seconds=3.0, head_seconds=5.0)
    try:
        probes = ChatProbes(client, ())
        for path, keys, profile in _SIGNS:
            answer = await probes.get(path)
            if answer.status == 200 and all(key in answer.json for key in keys):
                return profile
    finally:
        await client.aclose()
    return ""


def usual_server(url: str) -> str:
    """What usually listens on this port; only a hint."""
    port = urlsplit(url).port
    return _PORTS.get(port, "") if port is not None else ""
