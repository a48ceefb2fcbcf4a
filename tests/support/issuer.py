"""A local OpenID issuer: it serves its configuration and its keys, and signs tokens.

Lives here: the keys, the tokens and the HTTP server of the issuer. Not here: any check of a token.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "antiphon"


class Key:
    """A private key of the issuer. `public` is its JSON Web Key."""

    def __init__(self, kid: str, algorithm: str = "ES256", *, bits: int = 2048) -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any
        if algorithm.startswith("ES"):
            self.private = ec.generate_private_key(ec.SECP256R1())
            shown: Any = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
            shown = OKPAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        else:
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
            shown = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
            shown.pop("key_ops", None)
        self.public: dict[str, Any] = {**shown, "kid": kid, "use": "sig"}

    def sign(self, claims: dict[str, Any], **head: Any) -> str:
        """A token with exactly these claims. A header with the value None is left out."""
        headers = {name: value for name, value in {"kid": self.kid, **head}.items() if value is not None}
        return jwt.encode(claims, self.private, self.algorithm, headers=headers)


def key_set(*keys: Key) -> bytes:
    """The JSON Web Key Set of these keys."""
    return json.dumps({"keys": [key.public for key in keys]}).encode()


def unsigned(head: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token whose signature is given."""
    parts = (json.dumps(head).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class Issuer:
    """The issuer, at `url` on this machine. `keys` are those it publishes, `reads` counts how often. `more` has
    further pages by their path. With `tls` the issuer serves https."""

    def __init__(self, *keys: Key, tls: ssl.SSLContext | None = None) -> None:
        self.keys = list(keys)
        self._tls = tls
        self.reads = 0
        self.status = 200
        self.url = ""
        self.more: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {}

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._configuration)
        app.router.add_get("/keys", self._keys)
        app.router.add_get("/{name}", self._another)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def token(self, owner: str, key: Key | None = None, **claims: Any) -> str:
        """A valid token of this owner, for an hour. `claims` replace or add claims."""
        made = {"iss": self.url, "aud": AUDIENCE, "sub": owner, "exp": time.time() + 3600, **claims}
        return (key or self.keys[0]).sign(made)

    async def _configuration(self, request: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    async def _keys(self, request: web.Request) -> web.Response:
        self.reads += 1
        return web.Response(status=self.status, body=key_set(*self.keys), content_type="application/json")

    async def _another(self, request: web.Request) -> web.Response:
        return await self.more[request.path](request)
