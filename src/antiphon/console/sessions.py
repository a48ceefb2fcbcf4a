"""Signs users of the console in, and recognises their sessions.

This module makes the session cookie and the CSRF token, and checks a presented key. `api/credential_checks.py` limits
failed attempts, and `console.py` has the sign-in page. The keys come from `app/keys.py` and
`engine/running/client_keys.py`.

A session is a sealed cookie. Every replica with the same `admin.token` can read the cookie, and no replica stores a
session.

Invariants: the cookie never contains a token. A session of a client key ends when the key is revoked or expires. A
session of an issuer's token ends when the token expires or the issuer withdraws the key that signed it. Every sign-in
creates a new session id. The console compares the SHA-256 digests of tokens in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from antiphon.api.credential_checks import AttemptsByAddress
from antiphon.api.http import ApiRequest
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import NAMED, AdminToken, Caller
from antiphon.errors import ApiError, InvalidRequest, Unauthorized
from antiphon.sealing import Sealer
from antiphon.types.transport import Headers, header_value

COOKIE: Final = "antiphon_console"
_SEALED_FOR: Final = ("console", "session")
_TOKEN_SESSION: Final = 3600.0
"""The longest session in seconds, if the user signed in with an issuer's token. The session does not hold the token, so
it does not end when the process would refuse the token for another reason."""
_LONGEST_TOKEN: Final = 16_384

Kind = Literal["operator", "key", "token", "gateway"]


class Session(msgspec.Struct, frozen=True):
    """A signed-in user. `owner` is empty for an operator, who sees all owners. `digest` is the SHA-256 of the client
    key, or of the issuer's key that signed the token. `ends` is in seconds since the epoch."""

    id: str
    kind: Kind
    ends: float
    owner: str = ""
    name: str = ""
    team: str = ""
    digest: str = ""

    @property
    def is_operator(self) -> bool:
        """Whether the user sees the data of every owner."""
        return self.kind == "operator"


class Sessions:
    """The sessions of one console.

    `admin_token` is the setting `admin.token`, with which operators sign in. `clock` returns seconds since the epoch.
    `attempts` limits failed attempts to sign in.
    """

    def __init__(
        self,
        admin_token: str,
        owners: OwnerResolver,
        *,
        seconds: float,
        clock: Callable[[], float],
        attempts: AttemptsByAddress,
    ) -> None:
        self._admin = AdminToken(admin_token)
        secret = hmac.digest(admin_token.encode(), b"antiphon console sessions", "sha256")
        self._sealer = Sealer([secret], max_bytes=4096)
        self._csrf_key = hmac.digest(admin_token.encode(), b"antiphon console csrf", "sha256")
        self._owners = owners
        self._seconds = seconds
        self._clock = clock
        self._attempts = attempts

    @property
    def takes_keys(self) -> bool:
        """Whether an owner signs in with a client key or a token of the issuer. If this is false, only operators sign
        in, with the admin token."""
        return self._owners.client_keys is not None or self._owners.tokens is not None

    @property
    def by_gateway(self) -> bool:
        """Whether a gateway in front authenticates owners, by a trusted header or by metadata."""
        return self._owners.by_gateway

    def sign_in(self, token: str, address: str = "") -> Session:
        """Return the new session of the user who presents this token. `address` is the address of the user's browser,
        or empty if the server does not know it.

        Raises `Unauthorized`, and `ApiError` (429) after too many failures. After too many failures from one address,
        this address gets the error 429 even with a valid token.
        """
        self._attempts.check(address)
        token = token.strip()
        if not token or len(token) > _LONGEST_TOKEN:
            raise InvalidRequest("Enter the operators' token (admin.token) or a client key.", code="missing_token")
        sent = token.encode(errors="surrogateescape")
        if self._admin.equals(sent):
            return self._new("operator", Caller(""), "", self._seconds)
        digest = hashlib.sha256(sent).digest()
        try:
            found, kind = self._caller(token, digest)
            tokens = self._owners.tokens
            left = tokens.expiry_of(sent) - self._clock() if tokens is not None else self._seconds
            bound = tokens.signer_of(sent) if tokens is not None else digest.hex()
        except Unauthorized:
            self._attempts.add(address)
            raise Unauthorized(
                "This is neither the operators' token nor a valid client key.", code="wrong_token"
            ) from None
        seconds = min(self._seconds, left, _TOKEN_SESSION) if kind == "token" else self._seconds
        return self._new(kind, found, bound, seconds)

    def of_gateway(self, named: Caller) -> Session | None:
        """Return a new session of the owner whom the gateway in front names. Returns None if that gateway names no
        owner."""
        return self._new("gateway", named, "", self._seconds) if named.owner and self.by_gateway else None

    def find(self, request: ApiRequest) -> Session | None:
        """Return the session of a request, or None if the request has no valid session. Raises `Unavailable` if
        Antiphon cannot read the client keys or the issuer's keys."""
        text = read_cookie(request.headers, COOKIE)
        if text is None:
            return None
        try:
            session = msgspec.json.decode(self._sealer.open(*_SEALED_FOR, text), type=Session)
        except (ApiError, msgspec.DecodeError):
            return None
        if session.ends <= self._clock():
            return None
        if session.kind == "key":
            return session if self._is_valid(session) else None
        if session.kind == "token":
            tokens = self._owners.tokens
            return session if tokens is not None and tokens.has_signer(session.digest) else None
        if session.kind == "gateway":
            # The gateway decides on every request who the user is.
            return session if self.by_gateway and request.caller.owner == session.owner else None
        return session

    def caller(self, session: Session) -> Caller:
        """Return the owner of a session as the caller of API requests. The caller has the rights of the session's
        client key. Raises `Unauthorized`."""
        if session.kind == "key":
            found = self._key(session)
            if found is None:
                raise Unauthorized("Your client key is no longer valid. Sign in again.", code="signed_out")
            return found if found.owner else Caller(session.owner, found.name, found.team, found.key_id, found.access)
        return Caller(session.owner, session.name, session.team)

    def cookie(self, session: Session, *, secure: bool) -> tuple[str, str]:
        """Return the header that stores the session in the browser."""
        text = self._sealer.seal(*_SEALED_FOR, msgspec.json.encode(session))
        seconds = max(0, round(session.ends - self._clock()))
        return "set-cookie", f"{COOKIE}={text}; {_attributes(secure)}; Max-Age={seconds}"

    @staticmethod
    def no_cookie(*, secure: bool) -> tuple[str, str]:
        """Return the header that removes the session from the browser."""
        return "set-cookie", f"{COOKIE}=; {_attributes(secure)}; Max-Age=0"

    def csrf(self, session: Session) -> str:
        """Return the CSRF token, which each request of this session that changes data must contain."""
        return hmac.new(self._csrf_key, session.id.encode(), "sha256").hexdigest()

    def check_csrf(self, session: Session, token: str) -> None:
        """Raise `ApiError` (403) unless `token` is the CSRF token of the session."""
        if not hmac.compare_digest(self.csrf(session).encode(), token.encode(errors="surrogateescape")):
            raise ApiError(
                "The form is out of date. Load the page again, then repeat the change.",
                status=403,
                type="invalid_request_error",
                code="wrong_csrf_token",
            )

    def _caller(self, token: str, digest: bytes) -> tuple[Caller, Kind]:
        owners = self._owners
        bearer: Headers = (("authorization", f"Bearer {token}"),)
        if owners.tokens is not None:
            return owners.resolve(bearer), "token"
        if owners.client_keys is None:
            raise Unauthorized(
                ("This gateway accepts every token, so the console has no client keys to check."), code="wrong_token"
            )
        found = owners.client_keys.get(digest)
        if found is None:
            raise Unauthorized("Unknown key.", code="wrong_token")
        return (found if found.owner else owners.resolve(bearer)), "key"

    def _key(self, session: Session) -> Caller | None:
        """Return the caller to whom the session's client key belongs, or None if Antiphon no longer accepts the key."""
        keys = self._owners.client_keys
        return keys.get(bytes.fromhex(session.digest)) if keys is not None else None

    def _is_valid(self, session: Session) -> bool:
        """Whether Antiphon still accepts the session's key, and the key still belongs to the session's owner."""
        found = self._key(session)
        if found is None:
            return False
        # If a key names no owner, its owner is a hash of the token, and the session does not hold the token.
        return found.owner == session.owner if found.owner else not session.owner.startswith(NAMED)

    def _new(self, kind: Kind, caller: Caller, digest: str, seconds: float) -> Session:
        ends = self._clock() + seconds
        return Session(secrets.token_hex(16), kind, ends, caller.owner, caller.name, caller.team, digest)


def read_cookie(headers: Headers, name: str) -> str | None:
    """Return the value of the cookie with this name, or None if the request has no such cookie."""
    for part in (header_value(headers, "cookie") or "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return None


def _attributes(secure: bool) -> str:
    return "Path=/console; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
