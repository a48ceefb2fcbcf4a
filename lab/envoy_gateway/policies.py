"""Tests that Envoy Gateway's security policies protect every path of Antiphon.

Lives here: the policies, and requests with and without credentials. Not here: creating the Gateway (`run.py`).

Invariant: the run deletes each policy after its requests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

import aiohttp
import yaml

from lab.kubernetes.cluster import Wrong, eventually, run

_CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
_TEXT = {"model": "demo", "input": "hello"}
_ASKED: tuple[tuple[str, str, Any, int], ...] = (
    ("POST", "/v1/responses", _TEXT, 200),
    # Paths that the sidecar answers itself, in Envoy's ext_proc filter or behind Envoy's route.
    ("POST", "/v1/responses", {"model": "demo"}, 400),
    ("POST", "/v1/responses/input_tokens", _TEXT, 200),
    ("GET", "/v1/responses/resp_none", None, 404),
    ("GET", "/v1/files", None, 200),
    ("DELETE", "/v1/files/file-none", None, 404),
    ("GET", "/v1/models", None, 200),
    # Paths that Envoy forwards to the upstream without the sidecar.
    ("POST", "/v1/chat/completions", _CHAT, 200),
    ("GET", "/v1/nothing", None, 404),
)
_FORGED = {"x-antiphon-backend": "default", "x-antiphon-owner": "someone"}
_POLICY = "antiphon-run"
_KEY = "key-of-one"


def _security(namespace: str, gateway: str, spec: dict[str, Any]) -> dict[str, Any]:
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": gateway}
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "SecurityPolicy",
        "metadata": {"name": _POLICY, "namespace": namespace},
        "spec": {"targetRefs": [target], **spec},
    }


def _segment(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _token(key: bytes, issuer: str) -> str:
    said = {"iss": issuer, "sub": "one", "exp": int(time.time()) + 600}
    signed = ".".join(_segment(json.dumps(one).encode()) for one in ({"alg": "HS256", "kid": "k"}, said))
    return f"{signed}.{_segment(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


async def _statuses(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> list[int]:
    found = []
    for method, path, body, _ in _ASKED:
        async with session.request(method, f"{url}{path}", json=body, headers=headers) as got:
            found.append(got.status)
    return found


async def _judged(session: aiohttp.ClientSession, url: str, good: dict[str, str], bad: dict[str, str]) -> None:
    """Send each request without credentials, with invalid ones and with valid ones. Raises `Wrong` if a status is
    unexpected."""

    wanted = [status for *_, status in _ASKED]
    found: tuple[list[int], ...] = ()

    async def holds() -> bool:
        nonlocal found
        found = tuple([await _statuses(session, url, headers) for headers in (good, bad, {}, _FORGED)])
        return found[0] == wanted and all(set(one) == {401} for one in found[1:])

    try:
        await eventually("the policy", holds, 60)
    except Wrong:
        raise Wrong(f"with credentials, with others, without, with headers of trust: {found}") from None


async def policies(session: aiohttp.ClientSession, url: str, namespace: str, gateway: str) -> str:
    """Apply an API key policy and then a JWT policy to the whole Gateway, and test each. Raises `Wrong`."""
    key = secrets.token_bytes(32)
    known = {"keys": [{"kty": "oct", "alg": "HS256", "kid": "k", "k": _segment(key)}]}
    jwks = {"type": "Inline", "inline": json.dumps(known)}
    callers = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": _POLICY, "namespace": namespace},
        "stringData": {"one": _KEY},
    }
    ways: list[tuple[dict[str, Any], dict[str, str], dict[str, str]]] = [
        (
            {"apiKeyAuth": {"credentialRefs": [{"name": _POLICY}], "extractFrom": [{"headers": ["x-api-key"]}]}},
            {"x-api-key": _KEY},
            {"x-api-key": "another"},
        ),
        (
            {"jwt": {"providers": [{"name": "run", "issuer": "run", "localJWKS": jwks}]}},
            {"authorization": f"Bearer {_token(key, 'run')}"},
            {"authorization": f"Bearer {_token(secrets.token_bytes(32), 'run')}"},
        ),
    ]
    try:
        for spec, good, bad in ways:
            objects = [callers, _security(namespace, gateway, spec)]
            await run("kubectl", "apply", "-f", "-", given=yaml.safe_dump_all(objects))
            await _judged(session, url, good, bad)
    finally:
        for kind in ("securitypolicy", "secret"):
            await run("kubectl", "-n", namespace, "delete", kind, _POLICY, "--ignore-not-found")

    async def open_again() -> bool:
        return await _statuses(session, url, {}) == [wanted for *_, wanted in _ASKED]

    await eventually("the Gateway without a policy", open_again, 60)
    return f"API keys, JWT: {len(_ASKED)} requests each are 401 without credentials, and answered with them"
