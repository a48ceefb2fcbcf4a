"""Checks the JSON Web Tokens of an issuer, finds the caller of a token, and remembers checked tokens.

This module parses a JSON Web Key Set, and checks a token's signature, issuer, audience, times and owner. This module
also makes the errors that clients get. `engine/running/issuer_keys.py` downloads the key set from the issuer.

Invariants: this module does no I/O. A key verifies only signatures of algorithms that fit the key's type and that the
settings allow. The module accepts a remembered token only until the token expires, and only while the keys that
verified it are in use. The memory holds digests of at most `MOST_TOKENS` tokens, and never the tokens. No exception
contains a token or a claim, and the module logs nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from antiphon.doors.owners import ClaimNames
from antiphon.engine.ports.callers import Caller
from antiphon.errors import Unauthorized, Unavailable

_LONGEST_TOKEN: Final = 16_384
_MOST_KEYS: Final = 200
_SMALLEST_RSA = 2048
_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
_TYPES: Final = {"R": "RSA", "P": "RSA", "E": "EC"}

MOST_TOKENS: Final = 4096
_CHALLENGE: Final = (("www-authenticate", 'Bearer error="invalid_token"'),)
TokenKeys = Mapping[tuple[str | None, str], jwt.PyJWK]
"""The keys by `kid` and algorithm. If an algorithm has only one key, that key is also listed under None, for tokens
without a `kid`."""


class TokenRefused(Exception):
    """Raised when a token is not valid. `reason` is a sentence for the client, which repeats nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownKey(TokenRefused):
    """Raised when the key set lacks the key that the token names. The issuer may have added the key after the last
    download."""


@dataclass(frozen=True)
class TokenRules:
    """The settings with which a token is checked."""

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    names: ClaimNames
    leeway: float = 60.0


def read_keys(data: bytes, algorithms: Collection[str]) -> TokenKeys:
    """The keys of a JSON Web Key Set that can verify a signature of one of `algorithms`. The result is empty if the
    issuer has withdrawn all such keys. Raises `ValueError` when `data` is not a key set."""
    try:
        listed = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("the downloaded file is not a JSON Web Key Set") from None
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ValueError(f"the downloaded file is not a JSON Web Key Set of at most {_MOST_KEYS} keys")
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
    return found


def check_token(token: bytes, keys: TokenKeys, rules: TokenRules, now: float) -> tuple[Caller, float]:
    """The caller whom the token names, and the time at which the token expires. Raises `TokenRefused`."""
    if len(token) > _LONGEST_TOKEN:
        raise TokenRefused("The token is too long.")
    try:
        head = jwt.get_unverified_header(token)
        kid, algorithm = head.get("kid"), head.get("alg")
        if algorithm not in rules.algorithms:
            raise TokenRefused("The token's algorithm is not allowed here.")
        key = keys.get((kid, algorithm))
        if key is None:
            raise UnknownKey("The issuer has no key with the token's key id.")
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            # This function checks the times itself, because PyJWT would use the system's clock instead of `now`.
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
        raise TokenRefused("Another issuer created the token.") from None
    except jwt.InvalidAudienceError:
        raise TokenRefused("The token is for another service.") from None
    except jwt.MissingRequiredClaimError:
        raise TokenRefused("The token lacks one of the claims exp, iss and aud.") from None
    except jwt.InvalidSignatureError:
        raise TokenRefused("The token's signature is wrong.") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("The token is not a signed JSON Web Token.") from None
    until = _time(claims, "exp") + rules.leeway
    if not now < until:
        raise TokenRefused("The token has expired.")
    if "nbf" in claims and now < _time(claims, "nbf") - rules.leeway:
        raise TokenRefused("The token is not valid yet.")
    caller = rules.names.caller(claims)
    if caller is None:
        raise TokenRefused(
            "The token's claim with the owner's name is missing or is not a valid text, or its claim with the team is "
            "not a valid text."
        )
    return caller, until


class HeldKeySet(Protocol):
    """The issuer's keys from this process's last successful download."""

    @property
    def keys(self) -> TokenKeys | None:
        """The issuer's keys, or None if the process has no recent keys. The property returns the same object until the
        keys change."""

    def read_soon(self) -> float:
        """Request another download of the keys, because the keys, or the key that a token names, are missing. Returns
        the seconds until newer keys may be available. If the current keys are so new that another download would not
        help, the method requests none and returns 0."""


class Identities:
    """Finds the caller of a token from the issuer, and remembers checked tokens. Implements `KnownTokens`."""

    def __init__(
        self, held: HeldKeySet, rules: TokenRules, *, most: int = MOST_TOKENS, clock: Callable[[], float] = time.time
    ) -> None:
        self._held = held
        self._rules = rules
        self._most = most
        self._clock = clock
        self._checked_with: TokenKeys | None = None
        self._checked: dict[bytes, tuple[Caller, float]] = {}
        self._signers: frozenset[str] = frozenset()
        self._signers_of: TokenKeys | None = None

    def caller_of(self, token: bytes, /) -> Caller:
        """See `KnownTokens.caller_of`."""
        return self._known(token)[0]

    def expiry_of(self, token: bytes, /) -> float:
        """See `KnownTokens.expiry_of`."""
        return self._known(token)[1]

    def signer_of(self, token: bytes, /) -> str:
        """See `KnownTokens.signer_of`."""
        self._known(token)
        head = jwt.get_unverified_header(token)
        return _fingerprint(self._keys()[head.get("kid"), head["alg"]])

    def has_signer(self, signer: str, /) -> bool:
        """See `KnownTokens.has_signer`."""
        keys = self._keys()
        if keys is not self._signers_of:
            self._signers, self._signers_of = frozenset(map(_fingerprint, keys.values())), keys
        if signer in self._signers:
            return True
        # Another process may already have read a new key that this process lacks.
        seconds = self._held.read_soon()
        if seconds > 0:
            raise _cannot_tell(_OTHER_KEYS, seconds)
        return False

    def is_ready(self) -> bool:
        """See `KnownTokens.is_ready`."""
        return self._held.keys is not None

    def _keys(self) -> TokenKeys:
        keys = self._held.keys
        if keys is None:
            raise _cannot_tell(_NO_KEYS, self._held.read_soon())
        return keys

    def _known(self, token: bytes) -> tuple[Caller, float]:
        """The caller whom the token names, and the time at which the token expires."""
        keys = self._keys()
        if keys is not self._checked_with:
            # The issuer may have removed a key because it was stolen. So tokens that this key signed are checked again.
            self._checked.clear()
            self._checked_with = keys
        now, digest = self._clock(), hashlib.sha256(token).digest()
        known = self._checked.get(digest)
        if known is not None and now < known[1]:
            return known
        try:
            found = check_token(token, keys, self._rules, now)
        except UnknownKey as unknown:
            seconds = self._held.read_soon()
            if seconds > 0:
                raise _cannot_tell(_OTHER_KEYS, seconds) from None
            raise _refusal(unknown) from None
        except TokenRefused as refused:
            self._checked.pop(digest, None)
            raise _refusal(refused) from None
        if len(self._checked) >= self._most:
            del self._checked[next(iter(self._checked))]
        self._checked[digest] = found
        return found


def _key_for(one: dict[str, object], algorithm: str) -> jwt.PyJWK | None:
    """The key in this entry of a key set, for this algorithm. The result is None if the entry has another key type or
    another use."""
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
        # An issuer may publish a private key by mistake, so this code takes only the public part.
        public = {name: value for name, value in one.items() if name in ("kty", "kid", "crv", "x", "y", "n", "e")}
        key = jwt.PyJWK(public, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return key if getattr(key.key, "key_size", _SMALLEST_RSA) >= _SMALLEST_RSA or one["kty"] != "RSA" else None


def _fingerprint(key: jwt.PyJWK) -> str:
    """A hash of the public key, which does not depend on the key's id."""
    public: bytes = key.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def _time(claims: Mapping[str, object], name: str) -> float:
    value = claims[name]
    # In Python, JSON's true is an integer. A token with an infinite time would never expire.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise TokenRefused(f"The token's claim {name} is not a valid time (seconds since 1970).")
    return float(value)


def _refusal(refused: TokenRefused) -> Unauthorized:
    return Unauthorized(f"The token was not accepted. {refused.reason}", code="invalid_token", headers=_CHALLENGE)


_NO_KEYS = "it has no current keys of the issuer"
_OTHER_KEYS = "the issuer's keys that it has read do not include the token's key"


def _cannot_tell(reason: str, seconds: float) -> Unavailable:
    return Unavailable(
        f"The server cannot check your token, because {reason}. Try again later.",
        code="keys_unavailable",
        headers=(("retry-after", str(max(1, math.ceil(seconds)))),),
    )
