"""Which chat server is behind a URL, as far as it says so itself.

Lives here: paths of their own that servers have. Not here: the signs in a list of models, choosing a profile by host
name (`translation/profiles`), what the server can do (`upstream_probes.py`).

Invariant: only `GET` requests without credentials; a server that says nothing is `""`, never a guess.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from antiphon.commands.upstream_probes import Answer, ChatProbes
from antiphon.translation.profiles.signs import named_by_list
from antiphon.upstream.client import HttpUpstream
from antiphon.upstream.http import UpstreamTarget

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

# As OpenSSL says what RFC 5280 demands and older Pythons did not look for.
_ASKED_FOR_NOW = ("Key Identifier", "Basic Constraints", "key usage")

PREFIX_QUESTION = "is the prefix of upstream.url right (…/v1)?"
"""What is asked where a path of the API is not found: some servers just have no list of models."""

PLAIN_HTTP_QUESTION = "does it speak http, and not https?"
"""The question to the operator when the TLS handshake fails."""


async def url_with_prefix(probes: ChatProbes, url: str) -> str:
    """The URL with the prefix `/v1`, if the server lists models there; else empty."""
    if url.endswith("/v1"):
        return ""
    below = await probes.get("/v1/models")
    return f"{url}/v1" if below.status == 200 else ""


async def identify(target: UpstreamTarget, url: str, listed: Answer) -> str:
    """The profile the server itself suggests, by its list of models, its headers, or paths of its own."""
    if profile := named_by_list(listed.json, listed.headers.get("server", "")):
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


def certificate_advice(failure: str, section: str) -> str:
    """What to do about a certificate that was refused; empty when it was something else."""
    if "certificate" not in failure:
        return ""
    if "expired" in failure:
        return "the certificate has expired: renew it at the server"
    if any(word in failure for word in _ASKED_FOR_NOW):
        return "Python 3.13 and newer ask for what this certificate, or its authority's, lacks: make it anew with that"
    return f"name its authorities with {section}.ca_file, or its real host name with {section}.host"


def usual_server(url: str) -> str:
    """What usually listens on this port; only a hint."""
    port = urlsplit(url).port
    return _PORTS.get(port, "") if port is not None else ""
