"""Sessions of the console: who may sign in, how long a session lasts, and what its cookie reveals."""

from __future__ import annotations

import hashlib

import pytest

from antiphon.api.credential_checks import AttemptsByAddress
from antiphon.api.http import ApiRequest
from antiphon.console.sessions import COOKIE, Session, Sessions, read_cookie
from antiphon.doors.owners import ClaimNames, LeftClaims, OwnerResolver
from antiphon.engine.ports.callers import NO_CALLER, Access, Caller, KnownKeys
from antiphon.errors import ApiError, InvalidRequest, Unauthorized
from antiphon.types.transport import Headers

ADMIN = "operators-token-of-thirty-two-characters"
KEY = "ant_a-client-key"


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def sessions(clock: Clock, owners: OwnerResolver | None = None, *, admin: str = ADMIN, most: int = 10) -> Sessions:
    resolver = owners or OwnerResolver("bearer", key=b"owner key", client_keys=keys())
    return Sessions(admin, resolver, seconds=3600, clock=clock, attempts=AttemptsByAddress(most, clock=clock))


def keys() -> dict[bytes, Caller]:
    return {digest(KEY): Caller("n:anna", "anna", "research", "key_1", Access(("qwen*",)))}


def sent(made: tuple[str, str], named: Caller = NO_CALLER) -> ApiRequest:
    """A request with the cookie that an answer set. `named`: the caller whom the gateway names."""
    name, value = made
    assert name == "set-cookie"
    return asking((("cookie", value.partition(";")[0]),), named)


def asking(headers: Headers, named: Caller = NO_CALLER) -> ApiRequest:
    return ApiRequest("GET", "/console/requests", (), headers, caller=named)


def test_an_operator_signs_in_with_the_admin_token() -> None:
    site = sessions(Clock())
    made = site.sign_in(f" {ADMIN}\n")
    assert made.is_operator and made.owner == ""
    assert site.find(sent(site.cookie(made, secure=False))) == made


def test_an_owner_signs_in_with_a_client_key() -> None:
    site = sessions(Clock())
    made = site.sign_in(KEY)
    assert (made.is_operator, made.owner, made.name) == (False, "n:anna", "anna")
    assert site.caller(made).access == Access(("qwen*",))


def test_a_key_without_a_named_owner_signs_in_as_the_hash_of_its_token() -> None:
    resolver = OwnerResolver("bearer", key=b"owner key", client_keys={digest(KEY): Caller("")})
    made = sessions(Clock(), resolver).sign_in(KEY)
    assert made.owner == resolver.resolve((("authorization", f"Bearer {KEY}"),)).owner


@pytest.mark.parametrize("token", ["wrong", KEY + "x", ADMIN[:-1], "\udcff"])
def test_another_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        sessions(Clock()).sign_in(token)


@pytest.mark.parametrize("token", ["", "   ", "x" * 20_000])
def test_an_empty_or_huge_token_is_no_attempt(token: str) -> None:
    with pytest.raises(InvalidRequest):
        sessions(Clock()).sign_in(token)


def test_without_client_keys_only_the_admin_token_signs_in() -> None:
    site = sessions(Clock(), OwnerResolver("bearer", key=b"owner key"))
    with pytest.raises(Unauthorized):
        site.sign_in("any token is a client's token here")
    assert site.sign_in(ADMIN).is_operator


def test_too_many_failures_are_refused_until_the_minute_is_over() -> None:
    clock = Clock()
    site = sessions(clock, most=3)
    for _ in range(3):
        with pytest.raises(Unauthorized):
            site.sign_in("wrong")
    with pytest.raises(ApiError) as refused:
        site.sign_in("wrong")
    assert refused.value.status == 429 and dict(refused.value.headers)["retry-after"] == "60"
    assert site.sign_in(ADMIN).is_operator and site.sign_in(KEY).owner == "n:anna", "others cannot lock users out"
    clock.now += 61
    with pytest.raises(Unauthorized):
        site.sign_in("wrong")


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::9", "2001:db8:0:2::1"),
        ("fe80::1%eth0", "fe80::2%eth1", "fe81::1"),
    ],
)
def test_an_address_with_too_many_failures_is_blocked_with_the_right_token_too(
    address: str, same: str, other: str
) -> None:
    clock = Clock()
    site = sessions(clock, most=3)
    for _ in range(3):
        with pytest.raises(Unauthorized):
            site.sign_in("wrong", address)
    for token in ("wrong", KEY, ADMIN):
        for blocked in (address, same):
            clock.now += 5
            with pytest.raises(ApiError) as refused:
                site.sign_in(token, blocked)
            assert (refused.value.status, refused.value.code) == (429, "too_many_attempts")
    assert dict(refused.value.headers)["retry-after"] == "30"
    assert site.sign_in(ADMIN, other).is_operator and site.sign_in(KEY, other).owner == "n:anna"
    clock.now += 30
    assert site.sign_in(KEY, address).owner == "n:anna"


def test_failures_from_many_addresses_are_few_and_take_little_memory() -> None:
    clock = Clock()
    attempts = AttemptsByAddress(3, addresses=2, clock=clock)
    for number in range(3):
        attempts.add(f"192.0.2.{number}")
    for number in range(3, 9):
        with pytest.raises(ApiError):
            attempts.add(f"192.0.2.{number}")
    for _ in range(2):
        with pytest.raises(ApiError):
            attempts.add("192.0.2.8")
    with pytest.raises(ApiError):
        attempts.check("192.0.2.8")
    # The two latest addresses are in memory, and an address that came back is among them.
    for number in (1, 2):
        with pytest.raises(ApiError):
            attempts.add(f"192.0.2.{number}")
    attempts.check("192.0.2.8")


def test_the_cookie_reveals_no_token_and_keeps_scripts_and_other_sites_out() -> None:
    site = sessions(Clock())
    _, value = site.cookie(site.sign_in(KEY), secure=True)
    assert KEY not in value and digest(KEY).hex() not in value
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/console", "Max-Age=3600", "Secure"):
        assert attribute in value
    assert "Secure" not in site.cookie(site.sign_in(KEY), secure=False)[1]


def test_every_replica_with_the_same_admin_token_knows_the_session() -> None:
    clock = Clock()
    one, other = sessions(clock), sessions(clock)
    cookie = sent(one.cookie(one.sign_in(KEY), secure=False))
    assert other.find(cookie) is not None
    assert sessions(clock, admin="another-operators-token-of-32-characters").find(cookie) is None


def test_a_session_ends_with_its_time() -> None:
    clock = Clock()
    site = sessions(clock)
    cookie = sent(site.cookie(site.sign_in(KEY), secure=False))
    clock.now += 3599
    assert site.find(cookie) is not None
    clock.now += 2
    assert site.find(cookie) is None


def test_a_session_ends_with_its_key() -> None:
    accepted = keys()
    site = sessions(Clock(), OwnerResolver("bearer", key=b"owner key", client_keys=accepted))
    made = site.sign_in(KEY)
    cookie = sent(site.cookie(made, secure=False))
    accepted.clear()
    assert site.find(cookie) is None
    with pytest.raises(Unauthorized):
        site.caller(made)


def test_a_session_ends_when_its_key_changes_its_owner() -> None:
    accepted = keys()
    site = sessions(Clock(), OwnerResolver("bearer", key=b"owner key", client_keys=accepted))
    cookie = sent(site.cookie(site.sign_in(KEY), secure=False))
    accepted[digest(KEY)] = Caller("n:bo", "bo")
    assert site.find(cookie) is None
    accepted[digest(KEY)] = Caller("")
    assert site.find(cookie) is None


@pytest.mark.parametrize("value", ["", "x", "as1_AAAA", "%00", "a" * 10_000])
def test_a_made_up_cookie_is_no_session(value: str) -> None:
    assert sessions(Clock()).find(asking((("cookie", f"{COOKIE}={value}"),))) is None


def test_a_changed_cookie_is_no_session() -> None:
    site = sessions(Clock())
    ((name, value),) = sent(site.cookie(site.sign_in(KEY), secure=False)).headers
    flipped = value[:-1] + ("A" if value[-1] != "A" else "B")
    assert site.find(asking(((name, flipped),))) is None


def test_every_sign_in_makes_a_new_session() -> None:
    site = sessions(Clock())
    assert site.sign_in(KEY).id != site.sign_in(KEY).id


def test_a_csrf_token_belongs_to_one_session() -> None:
    site = sessions(Clock())
    one, other = site.sign_in(KEY), site.sign_in(KEY)
    site.check_csrf(one, site.csrf(one))
    for wrong in (site.csrf(other), "", "\udcff"):
        with pytest.raises(ApiError) as refused:
            site.check_csrf(one, wrong)
        assert refused.value.status == 403


def test_behind_a_gateway_the_session_is_of_the_owner_whom_the_gateway_names() -> None:
    resolver = OwnerResolver("header", "x-user")
    anna, bo = resolver.named_by_gateway((("x-user", "anna"),)), resolver.named_by_gateway((("x-user", "bo"),))
    site = sessions(Clock(), resolver)
    assert site.by_gateway and site.of_gateway(resolver.named_by_gateway(())) is None
    made = site.of_gateway(anna)
    assert made is not None and made.owner == "h:anna"
    cookie = site.cookie(made, secure=False)
    assert site.find(sent(cookie, anna)) == made
    assert site.find(sent(cookie, bo)) is None
    assert site.find(sent(cookie)) is None


def test_claims_of_a_gateway_make_a_session() -> None:
    resolver = OwnerResolver("metadata", claims=LeftClaims(ClaimNames(), "namespace", "", "x-claims"))
    made = sessions(Clock(), resolver).of_gateway(resolver.named_by_gateway((("x-claims", '{"sub": "anna"}'),)))
    assert made is not None and made.owner == "j:anna"


def test_where_clients_have_tokens_no_gateway_names_an_owner() -> None:
    resolver = OwnerResolver("bearer", key=b"owner key")
    assert resolver.named_by_gateway((("authorization", "Bearer x"),)) == NO_CALLER
    assert not sessions(Clock(), resolver).by_gateway
    assert sessions(Clock(), resolver).of_gateway(Caller("n:anna")) is None


class Issuer:
    def __init__(self, expires: float = 2_000_000.0) -> None:
        self.expires = expires
        self.signer = "first"

    def expiry_of(self, token: bytes, /) -> float:
        return self.expires

    def signer_of(self, token: bytes, /) -> str:
        return self.signer

    def has_signer(self, signer: str, /) -> bool:
        return signer == self.signer

    def is_ready(self) -> bool:
        return True

    def caller_of(self, token: bytes, /) -> Caller:
        if token != b"a.b.c":
            raise Unauthorized("The token is not valid.")
        return Caller("j:anna", "Anna")


def test_a_session_of_an_issuers_token_lasts_at_most_an_hour() -> None:
    clock = Clock()
    resolver = OwnerResolver("jwt", tokens=Issuer())
    site = Sessions(ADMIN, resolver, seconds=86_400, clock=clock, attempts=AttemptsByAddress())
    assert site.takes_keys
    assert site.sign_in("a.b.c").ends == clock.now + 3600
    assert site.sign_in(ADMIN).ends == clock.now + 86_400


def test_a_session_ends_with_the_issuers_token() -> None:
    clock = Clock()
    resolver = OwnerResolver("jwt", tokens=Issuer(clock.now + 6))
    site = Sessions(ADMIN, resolver, seconds=86_400, clock=clock, attempts=AttemptsByAddress())
    made = site.sign_in("a.b.c")
    assert made.ends == clock.now + 6
    cookie = site.cookie(made, secure=False)
    assert site.find(sent(cookie)) is not None
    clock.now += 6
    assert site.find(sent(cookie)) is None


def test_a_session_ends_with_the_issuers_key() -> None:
    clock, issuer = Clock(), Issuer()
    site = Sessions(
        ADMIN, OwnerResolver("jwt", tokens=issuer), seconds=86_400, clock=clock, attempts=AttemptsByAddress()
    )
    owner, operator = (site.cookie(site.sign_in(token), secure=False) for token in ("a.b.c", ADMIN))
    assert site.find(sent(owner)) is not None
    issuer.signer = "second"
    assert site.find(sent(owner)) is None
    assert site.find(sent(operator)) is not None
    assert site.find(sent(site.cookie(site.sign_in("a.b.c"), secure=False))) is not None


def test_cookies_are_read_by_their_exact_name() -> None:
    headers = (("cookie", f"x{COOKIE}=1; {COOKIE}=2; other=3"),)
    assert read_cookie(headers, COOKIE) == "2"
    assert read_cookie((), COOKIE) is None


def test_a_session_in_the_cookie_of_another_kind_is_no_session() -> None:
    site = sessions(Clock())
    made = Session("id", "key", 2_000_000.0, "n:anna", digest="00" * 32)
    known: KnownKeys = keys()
    assert known.get(bytes(32)) is None
    assert site.find(sent(site.cookie(made, secure=False))) is None
