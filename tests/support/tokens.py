"""JSON Web Tokens of a test company, and the keys with which an Envoy verifies them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

_KEY = b"a key of the company's, for tests"


def jwks() -> str:
    """The public keys, as JSON."""
    return json.dumps({"keys": [{"kty": "oct", "alg": "HS256", "kid": "k", "k": _part(_KEY)}]})


def token(role: str) -> str:
    """A token of a user with this role."""
    head, claims = ({"alg": "HS256", "kid": "k"}, {"iss": "company", "sub": role, "role": role, "exp": 4102444800})
    signed = ".".join(_part(json.dumps(one).encode()) for one in (head, claims))
    return f"{signed}.{_part(hmac.new(_KEY, signed.encode(), hashlib.sha256).digest())}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
