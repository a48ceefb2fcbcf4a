"""Owner names: the same for the same token, never the token, and short enough for a row."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from antiphon.doors.owners import ClaimNames, LeftClaims, OwnerResolver
from antiphon.engine.ports.callers import NO_CALLER, AdminToken, Caller
from antiphon.errors import Unauthorized

_BEARER = OwnerResolver("bearer", key=b"key")


def test_a_token_is_named_by_a_keyed_hash() -> None:
    digest = hmac.new(b"key", b"sk-1", "sha256").hexdigest()
    assert _BEARER.resolve((("authorization", "Bearer sk-1"),)).owner == f"b:{digest[:40]}"
    for same in ("bearer sk-1", "BEARER  sk-1 "):
        assert _BEARER.resolve((("authorization", same),)).owner == f"b:{digest[:40]}"


@pytest.mark.parametrize("headers", [(), (("authorization", "Bearer "),), (("authorization", "Basic sk-1"),)])
def test_without_a_token_all_are_one(headers: tuple[tuple[str, str], ...]) -> None:
    assert _BEARER.resolve(headers).owner == "anonymous"
    assert OwnerResolver("single").resolve(headers).owner == "single"


def test_an_identity_is_the_gateways_header() -> None:
    by_header = OwnerResolver("header", header="x-owner")
    assert by_header.resolve((("x-owner", "me"),)).owner == "h:me"
    for headers in ((), (("x-owner", ""),)):
        with pytest.raises(Unauthorized) as refused:
            by_header.resolve(headers)
        assert refused.value.code == "missing_identity"


@pytest.mark.parametrize(
    ("given", "code"),
    [("Bearer one", ""), ("Bearer two", ""), ("Bearer three", "invalid_api_key"), ("", "missing_api_key")],
)
def test_only_known_keys_are_let_in(given: str, code: str) -> None:
    digests = [hashlib.sha256(key).digest() for key in (b"one", b"two")]
    keyed = OwnerResolver("single", client_keys={digest: Caller("") for digest in digests})
    if not code:
        assert keyed.resolve((("authorization", given),)).owner == "single"
        return
    with pytest.raises(Unauthorized) as refused:
        keyed.resolve((("authorization", given),))
    assert refused.value.code == code and ("www-authenticate", "Bearer") in refused.value.headers


@pytest.mark.parametrize("team", [["support"], "x" * 65, 7, "a\nb"])
def test_a_team_that_is_no_text_is_not_left_out(team: object) -> None:
    names = ClaimNames("sub", None, "team")
    assert names.caller({"sub": "anna", "team": team}) is None
    assert names.caller({"sub": "anna", "team": ""}) == names.caller({"sub": "anna"}) == Caller("j:anna", "anna")
    assert names.caller({"sub": "anna", "team": "support"}) == Caller("j:anna", "anna", "support")


def test_an_identity_that_is_no_text_is_refused() -> None:
    by_header = OwnerResolver("header", header="x-owner")
    assert by_header.resolve((("x-owner", "café"),)).owner == "h:café"
    # An escaped form could be the name of another owner.
    with pytest.raises(Unauthorized, match="'x-owner' is not valid UTF-8"):
        by_header.resolve((("x-owner", b"caf\xe9".decode(errors="surrogateescape")),))


def test_an_identity_that_is_too_long_for_a_database_is_refused() -> None:
    by_header = OwnerResolver("header", header="x-owner")
    assert by_header.resolve((("x-owner", "é" * 200),)).owner == "h:" + "é" * 200
    with pytest.raises(Unauthorized, match="'x-owner' has more than 200 characters") as refused:
        by_header.resolve((("x-owner", "é" * 201),))
    assert refused.value.code == "missing_identity"
    assert by_header.named_by_gateway((("x-owner", "é" * 201),)) == NO_CALLER


def test_a_token_is_named_alike_whoever_is_let_in_and_a_known_key_is_no_name() -> None:
    digest = hashlib.sha256(b"sk-1").digest()
    open_to_all, closed = _BEARER, OwnerResolver("bearer", key=b"key", client_keys={digest: Caller("")})
    headers = (("authorization", "Bearer sk-1"),)
    assert open_to_all.resolve(headers) == closed.resolve(headers)
    assert open_to_all.resolve(headers) != OwnerResolver("bearer", key=b"other").resolve(headers)


_LEFT = OwnerResolver("metadata", claims=LeftClaims(ClaimNames("sub", "name", "team"), "space", "claims", "x-owner"))


def test_claims_that_envoy_checked_name_the_caller() -> None:
    claims = {"sub": "n:anna", "name": "Anna A.", "team": "lab"}
    caller = Caller("j:n:anna", "Anna A.", "lab")
    assert _LEFT.resolve((), {"space": {"claims": claims}}) == caller
    assert _LEFT.resolve((("x-owner", json.dumps(claims)),)) == caller
    # Without a key the namespace itself has them.
    top = OwnerResolver("metadata", claims=LeftClaims(ClaimNames(), "space", "", "x-owner"))
    assert top.resolve((), {"space": claims}) == Caller("j:n:anna", "n:anna")


@pytest.mark.parametrize(
    "claims", [{}, {"sub": ""}, {"sub": 7}, {"sub": "a\nb"}, {"sub": "s" * 201}, {"sub": ["anna"]}, "anna", None, []]
)
def test_claims_that_name_no_owner_are_refused(claims: object) -> None:
    left: list[dict[str, dict[str, object]]] = [
        {"space": {"claims": claims}},
        {"space": {}},
        {"other": {"claims": {"sub": "anna"}}},
        {},
    ]
    for metadata in left:
        with pytest.raises(Unauthorized):
            # In ext_proc only metadata counts, whatever a header says.
            _LEFT.resolve((("x-owner", '{"sub": "anna"}'),), metadata)
    for text in (json.dumps(claims), "", "{", "[" * 100_000):
        with pytest.raises(Unauthorized):
            _LEFT.resolve((("x-owner", text),))


class _EveryToken:
    """An issuer who signed every token."""

    def caller_of(self, token: bytes, /) -> Caller:
        return Caller("j:" + token.decode())

    def expiry_of(self, token: bytes, /) -> float:
        return 2e9

    def signer_of(self, token: bytes, /) -> str:
        return ""

    def has_signer(self, signer: str, /) -> bool:
        return True

    def is_ready(self) -> bool:
        return True


_ADMIN = AdminToken("the-token-of-operators")


@pytest.mark.parametrize(
    "owners",
    [
        OwnerResolver("bearer", key=b"key", admin=_ADMIN),
        OwnerResolver("single", admin=_ADMIN),
        OwnerResolver("header", header="x-owner", admin=_ADMIN),
        OwnerResolver("jwt", tokens=_EveryToken(), admin=_ADMIN),
        OwnerResolver("metadata", claims=_LEFT.claims, admin=_ADMIN),
        OwnerResolver(
            "bearer",
            client_keys={hashlib.sha256(b"the-token-of-operators").digest(): Caller("n:anna")},
            admin=_ADMIN,
        ),
    ],
    ids=lambda owners: owners.source,
)
def test_the_admin_token_is_no_client_whatever_names_the_owner(owners: OwnerResolver) -> None:
    given = (("x-owner", json.dumps({"sub": "anna"})),)
    for value in ("Bearer the-token-of-operators", "the-token-of-operators", "Bearer x, Bearer the-token-of-operators"):
        with pytest.raises(Unauthorized) as refused:
            owners.resolve((*given, ("authorization", value)))
        assert refused.value.code == "invalid_api_key"
    if owners.client_keys is None:
        assert owners.resolve((*given, ("authorization", "Bearer another"))).owner
