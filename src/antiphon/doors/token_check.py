"""Checks a JSON Web Token: its signature, its issuer and audience, its times, and the claim that names the owner.

Lives here: reading a JSON Web Key Set, and the check of one token against it. Not here: reading the key set from the
issuer (`engine/running/issuer_keys.py`), remembering tokens and the errors for clients (`doors/identities.py`).

Invariants: this module does no I/O, and `now` is given. A key checks only the algorithms that fit its type and that the
settings allow. No exception holds a token or a claim.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from antiphon.doors.owners import ClaimNames
from antiphon.engine.ports.callers import Caller

_LONGEST_TOKEN: Final = 16_384
_MOST_KEYS: Final = 200
_SMALLEST_RSA = 2048
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
_TYPES: Final = {"R": "RSA", "P": "RSA", "E": "EC"}

TokenKeys = Mapping[tuple[str | None, str], jwt.PyJWK]
"""The keys by `kid` and algorithm. `kid` is None for the only key of an algorithm, which also fits tokens that name no
key."""


class TokenRefused(Exception):
    """The token is not valid. `reason` is a sentence for the client, which repeats nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownKey(TokenRefused):
    """The key set lacks the key that the token names. The issuer may have added the key since."""


@dataclass(frozen=True)
class TokenRules:
    """What a token must have, from the settings."""

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    names: ClaimNames
    leeway: float = 60.0


def read_keys(data: bytes, algorithms: Collection[str]) -> TokenKeys:
    """The keys of a JSON Web Key Set that can check one of `algorithms`. Raises `ValueError` when there is none."""
    try:
        listed = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("it is no JSON Web Key Set") from None
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ValueError("it is no JSON Web Key Set, or too long")
    found: dict[tuple[str | None, str], jwt.PyJWK] = {}
    of_algorithm: dict[str, list[jwt.PyJWK]] = {}
    for one in listed:
        for algorithm in algorithms:
            key = _key_for(one, algorithm) if isinstance(one, dict) else None
            if key is not None:
                of_algorithm.setdefault(algorithm, []).append(key)
                if key.key_id:
                    found[key.key_id, algorithm] = key
    found.update(((None, name), keys[0]) for name, keys in of_algorithm.items() if len(keys) == 1)
    if not found:
        raise ValueError("it has no key for the algorithms of owner.jwt.algorithms")
    return found


def check_token(token: bytes, keys: TokenKeys, rules: TokenRules, now: float) -> tuple[Caller, float]:
    """The caller whom the token names, and the time at which the token ends. Raises `TokenRefused`."""
    if len(token) > _LONGEST_TOKEN:
        raise TokenRefused("It is too long.")
    try:
        head = jwt.get_unverified_header(token)
        kid, algorithm = head.get("kid"), head.get("alg")
        if algorithm not in rules.algorithms:
            raise TokenRefused("Its algorithm is not allowed here.")
        key = keys.get((kid, algorithm))
        if key is None:
            raise UnknownKey("The issuer has no such key.")
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            # The times are checked below, against the time that is given.
            options={
                "require": ["exp", "iss", "aud"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.InvalidIssuerError:
        raise TokenRefused("Another issuer made it.") from None
    except jwt.InvalidAudienceError:
        raise TokenRefused("It is for another service.") from None
    except jwt.MissingRequiredClaimError:
        raise TokenRefused("It lacks one of the claims exp, iss and aud.") from None
    except jwt.InvalidSignatureError:
        raise TokenRefused("Its signature is wrong.") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("It is no signed JSON Web Token.") from None
    until = _time(claims, "exp") + rules.leeway
    if not now < until:
        raise TokenRefused("It has expired.")
    if "nbf" in claims and now < _time(claims, "nbf") - rules.leeway:
        raise TokenRefused("It is not valid yet.")
    caller = rules.names.caller(claims)
    if caller is None:
        raise TokenRefused("Its claim that names the owner is absent or no usable text.")
    return caller, until


def _key_for(one: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    """The key for this algorithm; None when the entry is of another type or for another use."""
    operations = one.get("key_ops")
    if (
        one.get("kty") != ("OKP" if algorithm == "EdDSA" else _TYPES[algorithm[0]])
        or one.get("use", "sig") != "sig"
        or (isinstance(operations, list) and "verify" not in operations)
        or one.get("alg", algorithm) != algorithm
        or one.get("crv") != _CURVES.get(algorithm)
        or not isinstance(one.get("kid", ""), str)
    ):
        return None
    try:
        # Only the public part is taken, if an issuer publishes a private key by mistake.
        public = {name: value for name, value in one.items() if name in ("kty", "kid", "crv", "x", "y", "n", "e")}
        key = jwt.PyJWK(public, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return key if getattr(key.key, "key_size", _SMALLEST_RSA) >= _SMALLEST_RSA or one["kty"] != "RSA" else None


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    # JSON's true is an integer for Python, and infinity would never end.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise TokenRefused(f"Its claim {name} is no time.")
    return float(value)
