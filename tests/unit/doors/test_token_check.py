"""Tokens of an issuer: which one names whom, which ones are refused, and what a process remembers."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest

from antiphon.doors.issuer_tokens import (
    Identities,
    TokenKeys,
    TokenRefused,
    TokenRules,
    UnknownKey,
    check_token,
    read_keys,
)
from antiphon.doors.owners import ClaimNames, OwnerResolver
from antiphon.engine.ports.callers import Caller
from antiphon.errors import Unauthorized, Unavailable
from tests.support.issuer import AUDIENCE, Key, key_set, unsigned

ISSUER = "https://issuer.test"
NOW = 1_000_000.0
ALGORITHMS = ("RS256", "ES256", "EdDSA")
RULES = TokenRules(ISSUER, (AUDIENCE, "other-name"), ALGORITHMS, ClaimNames("sub", "name", "team"))
EC, RSA, ED = Key("ec"), Key("rsa", "RS256"), Key("ed", "EdDSA")
KEYS = read_keys(key_set(EC, RSA, ED), ALGORITHMS)
CLAIMS: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "anna", "exp": NOW + 600}


def check(token: str, keys: TokenKeys = KEYS, now: float = NOW) -> Caller:
    return check_token(token.encode(), keys, RULES, now)[0]


def forged() -> str:
    """A token that is signed with the public key as if it were a shared secret."""
    body = unsigned({"alg": "HS256", "kid": "rsa"}, CLAIMS).rpartition(".")[0]
    secret = json.dumps(RSA.public).encode()
    return body + "." + unsigned({}, {}, hmac.new(secret, body.encode(), hashlib.sha256).digest()).rpartition(".")[2]


@pytest.mark.parametrize("key", [EC, RSA, ED], ids=lambda key: key.algorithm)
def test_a_signed_token_names_its_owner(key: Key) -> None:
    assert check(key.sign(CLAIMS)) == Caller("j:anna", "anna")
    # The only key of its algorithm need not be named.
    assert check(key.sign(CLAIMS, kid=None)) == Caller("j:anna", "anna")


def test_claims_name_the_owner_the_name_and_the_team() -> None:
    token = EC.sign({**CLAIMS, "name": "Anna A.", "team": "lab", "aud": ["x", "other-name"]})
    assert check(token) == Caller("j:anna", "Anna A.", "lab")
    assert check(EC.sign({**CLAIMS, "name": 7})) == Caller("j:anna", "anna")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("secret-words", "not a signed"),
        ("a.b.c", "not a signed"),
        (EC.sign({**CLAIMS, "iss": "https://secret.test"}), "Another issuer"),
        (EC.sign({**CLAIMS, "aud": "secret-service"}), "another service"),
        (EC.sign({name: value for name, value in CLAIMS.items() if name != "exp"}), "exp, iss and aud"),
        (EC.sign({name: value for name, value in CLAIMS.items() if name != "aud"}), "exp, iss and aud"),
        (EC.sign({name: value for name, value in CLAIMS.items() if name != "iss"}), "exp, iss and aud"),
        (EC.sign({name: value for name, value in CLAIMS.items() if name != "sub"}), "owner's name"),
        (EC.sign({**CLAIMS, "sub": 7}), "owner's name"),
        (EC.sign({**CLAIMS, "team": ["lab"]}), "claim with the team"),
        (EC.sign({**CLAIMS, "sub": "secret\n"}), "owner's name"),
        (EC.sign({**CLAIMS, "sub": "s" * 201}), "owner's name"),
        (EC.sign({**CLAIMS, "exp": NOW - 60}), "expired"),
        (EC.sign({**CLAIMS, "nbf": NOW + 61}), "not valid yet"),
        (unsigned({"alg": "ES256", "kid": "ec"}, {**CLAIMS, "exp": "soon"}, b"secret"), "signature"),
        (Key("ec").sign(CLAIMS), "signature"),
        (unsigned({"alg": "none"}, CLAIMS), "algorithm"),
        (unsigned({"alg": "none", "kid": "ec"}, CLAIMS), "algorithm"),
        (forged(), "algorithm"),
        (EC.sign({**CLAIMS, "more": "secret" * 4000}), "too long"),
        # A key checks only its own algorithm.
        (unsigned({"alg": "RS256", "kid": "ec"}, CLAIMS, b"secret"), "no key with"),
        (EC.sign(CLAIMS, kid="secret"), "no key with"),
    ],
)
def test_other_tokens_are_refused_without_a_word_of_theirs(token: str, reason: str) -> None:
    with pytest.raises(TokenRefused, match=reason) as refused:
        check(token)
    assert "secret" not in refused.value.reason and refused.value.__cause__ is None


def test_a_time_that_is_none_is_refused() -> None:
    for wrong in (True, 1e13, None):
        with pytest.raises(TokenRefused):
            check(EC.sign({**CLAIMS, "nbf": wrong}))


def test_the_clocks_may_differ_by_the_leeway() -> None:
    assert check(EC.sign({**CLAIMS, "exp": NOW - 59, "nbf": NOW + 60, "iat": NOW + 50})).owner == "j:anna"


def test_only_public_keys_that_fit_are_read() -> None:
    small, twin = Key("small", "RS256", bits=1024), Key("twin")
    for_encryption = Key("enc")
    for_encryption.public["use"] = "enc"
    shared = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"}
    data = json.dumps({"keys": [key.public for key in (small, for_encryption, EC, twin)] + [shared, 7]}).encode()
    # Two keys of an algorithm: a token must say which.
    assert set(read_keys(data, ALGORITHMS)) == {("ec", "ES256"), ("twin", "ES256")}
    for wrong in (b"", b"[]", b'{"keys": 7}'):
        with pytest.raises(ValueError, match="Key Set"):
            read_keys(wrong, ALGORITHMS)
    for empty in (b'{"keys": []}', key_set(small), json.dumps({"keys": [shared]}).encode()):
        assert read_keys(empty, ALGORITHMS) == {}


class Held:
    """Key sets that a test sets. `seconds` is the answer when a key is unknown."""

    def __init__(self, keys: TokenKeys | None = KEYS) -> None:
        self.keys = keys
        self.seconds = 0.0
        self.asked = 0

    def read_soon(self) -> float:
        self.asked += 1
        return self.seconds


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def resolver(held: Held, clock: Clock, most: int = 10) -> OwnerResolver:
    return OwnerResolver("jwt", tokens=Identities(held, RULES, most=most, clock=clock))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def refusal(owners: OwnerResolver, headers: tuple[tuple[str, str], ...]) -> tuple[int, str | None, dict[str, str]]:
    with pytest.raises((Unauthorized, Unavailable)) as refused:
        owners.resolve(headers)
    return refused.value.status, refused.value.code, dict(refused.value.headers)


def test_a_key_is_found_by_its_hash_until_the_issuer_withdraws_it() -> None:
    held = Held()
    known = Identities(held, RULES, clock=Clock())
    signer = known.signer_of(EC.sign(CLAIMS).encode())
    assert len(signer) == 64 and known.has_signer(signer) and known.is_ready()
    with pytest.raises(Unauthorized):
        known.signer_of(b"a.b.c")
    # The same id names another key. Another process may have read this key before.
    held.keys = read_keys(key_set(Key("ec", "ES256")), ALGORITHMS)
    held.seconds = 3.2
    with pytest.raises(Unavailable) as unknown:
        known.has_signer(signer)
    assert dict(unknown.value.headers)["retry-after"] == "4"
    held.seconds = 0.0
    assert not known.has_signer(signer)
    held.keys = None
    assert not known.is_ready()


def test_without_keys_the_answer_names_the_time_of_the_next_download() -> None:
    held = Held(None)
    held.seconds = 8.5
    assert refusal(resolver(held, Clock()), bearer(EC.sign(CLAIMS)))[::2] == (503, {"retry-after": "9"})


def test_a_remembered_token_ends_when_it_expires() -> None:
    clock = Clock()
    owners, token = resolver(Held(), clock), EC.sign(CLAIMS)
    assert owners.resolve(bearer(token)) is owners.resolve(bearer(token))
    assert owners.tokens is not None and owners.tokens.expiry_of(token.encode()) == NOW + 660
    clock.now = NOW + 659
    assert owners.resolve(bearer(token)).owner == "j:anna"
    clock.now = NOW + 660
    challenge = {"www-authenticate": 'Bearer error="invalid_token"'}
    assert refusal(owners, bearer(token)) == (401, "invalid_token", challenge)


def test_a_remembered_token_ends_with_its_key() -> None:
    held = Held()
    owners, token = resolver(held, Clock()), EC.sign(CLAIMS)
    assert owners.resolve(bearer(token)).owner == "j:anna"
    for asked, left in enumerate((key_set(RSA), key_set()), 1):
        held.keys = read_keys(left, ALGORITHMS)
        assert refusal(owners, bearer(token))[:2] == (401, "invalid_token")
        assert held.asked == asked


def test_the_memory_is_bounded() -> None:
    owners = resolver(Held(), Clock(), most=2)
    tokens = [EC.sign({**CLAIMS, "sub": name}) for name in "abc"]
    first = [owners.resolve(bearer(token)) for token in tokens]
    assert owners.resolve(bearer(tokens[2])) is first[2]
    # The oldest one is checked again.
    again = owners.resolve(bearer(tokens[0]))
    assert again == first[0] and again is not first[0]


def test_without_keys_or_with_an_unknown_one_the_client_tries_again() -> None:
    held = Held(None)
    owners = resolver(held, Clock())
    assert refusal(owners, bearer(EC.sign(CLAIMS))) == (503, "keys_unavailable", {"retry-after": "1"})
    held.keys, held.seconds = KEYS, 4.2
    new = Key("new")
    assert refusal(owners, bearer(new.sign(CLAIMS))) == (503, "keys_unavailable", {"retry-after": "5"})
    with pytest.raises(Unavailable, match="the issuer's keys that it has read do not include the token's key"):
        owners.resolve(bearer(new.sign(CLAIMS)))
    held.keys = read_keys(key_set(EC, new), ALGORITHMS)
    assert owners.resolve(bearer(new.sign(CLAIMS))).owner == "j:anna"
    with pytest.raises(UnknownKey):
        check(new.sign(CLAIMS))


def test_a_request_without_a_token_is_asked_for_one() -> None:
    owners = resolver(Held(), Clock())
    for headers in ((), (("authorization", "Basic x"),)):
        assert refusal(owners, headers) == (401, "missing_api_key", {"www-authenticate": "Bearer"})


@pytest.mark.parametrize("subject", ["n:anna", "h:anna", "j:anna", "b:0123", "single", "anonymous", "*"])
def test_no_subject_is_the_owner_of_another_source(subject: str) -> None:
    assert check(EC.sign({**CLAIMS, "sub": subject})) == Caller(f"j:{subject}", subject)


@pytest.mark.parametrize("subject", ["", "a\nb", "a\x00b", "a\u202eb", "a\u2028b", "\ud800"])
def test_a_subject_that_a_line_or_a_database_would_read_otherwise_is_refused(subject: str) -> None:
    with pytest.raises(TokenRefused, match="owner's name"):
        check(EC.sign({**CLAIMS, "sub": subject}))


@pytest.mark.parametrize(
    "head",
    [
        {"kid": ["ec"]},
        {"kid": {"ec": 1}},
        {"kid": "../ec"},
        {"kid": "e" * 9000},
        {"crit": ["own"], "own": True},
        {"b64": False, "crit": ["b64"]},
    ],
)
def test_heads_that_mean_something_else_are_refused(head: dict[str, Any]) -> None:
    plain = {"alg": "ES256", "kid": "ec", **head}
    for token in (unsigned(plain, CLAIMS, b"s" * 64), unsigned({**plain, "alg": ["ES256"]}, CLAIMS, b"s" * 64)):
        with pytest.raises(TokenRefused):
            check(token)
    if "crit" in head:
        with pytest.raises(TokenRefused):
            check(EC.sign(CLAIMS, **head))


def test_a_key_inside_the_token_checks_nothing() -> None:
    mine = Key("ec")
    for head in ({"jwk": mine.public}, {"jku": "https://mine.test/keys"}, {"x5u": "https://mine.test/cert"}):
        with pytest.raises(TokenRefused, match="signature"):
            check(mine.sign(CLAIMS, **head))
