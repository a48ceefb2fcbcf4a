"""Owners: from a token, a trusted header, or one; and the keys that may be wanted."""

from __future__ import annotations

import hashlib

import pytest

from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import Access, Caller
from antiphon.errors import Unauthorized

_DIGESTS = [hashlib.sha256(key.encode()).digest() for key in ("first-key-of-sixteen", "second-key-of-sixteen")]
KEYS = {digest: Caller("") for digest in _DIGESTS}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def test_a_token_becomes_an_owner_that_does_not_hold_it() -> None:
    owners = OwnerResolver("bearer", key=b"k")
    owner = owners.resolve(bearer("secret-token")).owner
    assert owner == owners.resolve((("authorization", "bearer   secret-token "),)).owner
    assert (
        "secret" not in owner and owner != OwnerResolver("bearer", key=b"other").resolve(bearer("secret-token")).owner
    )
    assert owners.resolve(()) == owners.resolve((("authorization", "Basic x"),)) == Caller("anonymous")


@pytest.mark.parametrize("key", ["first-key-of-sixteen", "second-key-of-sixteen"])
def test_known_keys_are_let_in_as_owners_of_their_own(key: str) -> None:
    owners = OwnerResolver("bearer", key=b"k", client_keys=KEYS)
    assert owners.resolve(bearer(key)) == OwnerResolver("bearer", key=b"k").resolve(bearer(key))


@pytest.mark.parametrize("source", ["bearer", "header", "single"])
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ((), "missing_api_key"),
        ((("authorization", "Bearer "),), "missing_api_key"),
        ((("authorization", "Basic first-key-of-sixteen"),), "missing_api_key"),
        (bearer("wrong"), "invalid_api_key"),
        (bearer("first-key-of-sixtee"), "invalid_api_key"),
        (bearer("\udcff"), "invalid_api_key"),
        # A digest that leaked from the settings is no key.
        (bearer("sha256:" + _DIGESTS[0].hex()), "invalid_api_key"),
    ],
)
def test_others_are_not(source: str, headers: tuple[tuple[str, str], ...], code: str) -> None:
    owners = OwnerResolver(source, "x-owner", b"k", KEYS)  # type: ignore[arg-type]
    with pytest.raises(Unauthorized) as refused:
        owners.resolve((*headers, ("x-owner", "me")))
    assert (refused.value.status, refused.value.code) == (401, code)
    assert ("www-authenticate", "Bearer") in refused.value.headers
    assert "wrong" not in refused.value.message and "sixtee" not in refused.value.message


def test_a_key_comes_before_any_other_identity() -> None:
    headers = (*bearer("first-key-of-sixteen"), ("x-owner", "me"))
    assert OwnerResolver("header", "x-owner", client_keys=KEYS).resolve(headers) == Caller("h:me")
    assert OwnerResolver("single", client_keys=KEYS).resolve(headers) == Caller("single")


def test_the_keys_of_a_named_owner_are_that_owner() -> None:
    """Whichever of its keys a client presents, and with what the key allows."""
    access = Access(models=("qwen*",), tools=("function",))
    named = {digest: Caller("n:anna", "anna", "lab", f"anna/{n}", access) for n, digest in enumerate(_DIGESTS)}
    owners = OwnerResolver("bearer", key=b"k", client_keys=named)
    callers = [owners.resolve(bearer(key)) for key in ("first-key-of-sixteen", "second-key-of-sixteen")]
    assert callers == [Caller("n:anna", "anna", "lab", f"anna/{n}", access) for n in range(2)]
    with pytest.raises(Unauthorized):
        owners.resolve(())


def test_no_owner_of_another_source_can_have_the_name_of_a_named_one() -> None:
    others = [
        OwnerResolver("bearer", key=b"k").resolve(bearer("n:anna")).owner,
        OwnerResolver("header", "x-owner").resolve((("x-owner", "n:anna"),)).owner,
        OwnerResolver("bearer").resolve(()).owner,
        OwnerResolver("single").resolve(()).owner,
    ]
    assert not [owner for owner in others if owner.startswith("n:")]
