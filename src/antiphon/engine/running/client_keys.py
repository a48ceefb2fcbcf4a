"""Creates, rotates and revokes client keys for operators, and holds the keys that one process accepts.

This module generates tokens, and checks a key's owner, name and limits. The module also reloads the stored keys after a
change, and checks keys while the database is unreachable. Not here: the SQL (`stores/client_keys.py`), the keys of the
settings (`app/keys.py`), the headers that carry a key (`doors/owners.py`), the admin commands and endpoints
(`commands/admin/client_keys.py`, `api/admin.py`).

Invariants: a new token is returned only once, to the caller that creates the key. The database stores only the token's
SHA-256 and its first characters. One transaction stores both a change and its audit row. No error and no log line has a
token. A process polls for changes of the keys every `POLL_SECONDS`. After such a poll, the process accepts new keys,
and refuses revoked and expired keys. While the database is unreachable, the stored keys stay valid for at most `stale`
seconds. The keys of the settings stay valid without the database.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog
from msgspec import Struct

from antiphon.config.owners import OWNER_NAME
from antiphon.engine.ports.callers import NAMED, Access, ClientKey
from antiphon.engine.ports.state import Page, PageQuery
from antiphon.engine.waiting import stop
from antiphon.errors import InvalidRequest, NotFound, StoreError, Unavailable
from antiphon.ids import IdFactory, new_id
from antiphon.observability.repeated_failures import Outage
from antiphon.redaction import without_client_keys
from antiphon.stores.audit import AuditEntry, AuditStore, log_audit_entry
from antiphon.stores.client_keys import MOST_KEYS, ClientKeyStore

if TYPE_CHECKING:
    from antiphon.engine.ports.callers import Caller
    from antiphon.stores.client_keys import ClientKeyStore


LONGEST: Final = 100
"""The maximum number of characters of a key's name, its team and each glob."""
_PREFIX: Final = 8
_MOST_GLOBS: Final = 100
# The form of the ids that `settings_key_id` makes. No path of the admin API can contain such an id.
_SETTINGS_KEY: Final = re.compile(r".+/[0-9]+")
_CHANGE_SETTINGS: Final = "keys with such an id are in the settings: remove or replace the key in 'owner.keys' there"


class WantedKey(Struct, frozen=True):
    """The description of a new key. `lifetime` is in seconds; None: the key never expires."""

    owner: str
    name: str = ""
    team: str = ""
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    lifetime: float | None = None


class KeyRefused(InvalidRequest):
    """The description of the key is not valid. `param` is the field, and `problem` the message without the field's
    name."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"Invalid '{field}': {problem}.", param=field, code="invalid_value")
        self.problem = problem


class TooManyKeys(InvalidRequest):
    """The number of valid keys has reached the maximum that a process can hold."""

    def __init__(self) -> None:
        self.problem = f"there are {MOST_KEYS} valid keys already: revoke those that no client uses"
        super().__init__(f"{self.problem[:1].upper()}{self.problem[1:]}.", code="too_many_keys")


class KeyMissing(NotFound):
    """The database has no key with this id. `in_settings` is True for the id of a key in the settings. `problem` is a
    message for an operator, without the id."""

    def __init__(self, key_id: str) -> None:
        self.in_settings = _SETTINGS_KEY.fullmatch(key_id) is not None
        self.problem = _CHANGE_SETTINGS if self.in_settings else "there is no such key"
        super().__init__(f"Client key with id '{without_client_keys(key_id[:LONGEST])}' not found.")


class KeyEnded(InvalidRequest):
    """The key is revoked or expired. An operator can neither rotate nor revoke such a key. `problem` says whether the
    key is revoked or expired."""

    def __init__(self, key: ClientKey) -> None:
        self.problem = "it is already revoked" if key.revoked_at is not None else "it is expired"
        super().__init__(f"The client key '{key.id}' cannot be changed: {self.problem}.", code="key_not_valid")


class KeyManager:
    """Changes the stored client keys. Audit rows name `actor` as the operator who changed them. Every method raises
    `StoreError`."""

    def __init__(
        self,
        keys: ClientKeyStore,
        audit: AuditStore,
        actor: str,
        *,
        tell: Callable[[AuditEntry], None] = log_audit_entry,
        make_id: IdFactory = new_id,
    ) -> None:
        """`tell` gets each audit row after it is stored, and writes its log event."""
        self._keys = keys
        self._audit = audit
        self._actor = actor
        self._tell = tell
        self._new_id = make_id

    async def create(self, wanted: WantedKey, token: str | None = None) -> tuple[ClientKey, str]:
        """Create a key with a new token, or with `token`, whose form the caller has checked. Returns the stored key and
        its token. Raises `KeyRefused` and `TooManyKeys`."""
        _check(wanted)
        given = token if token is not None else _new_token()
        digest = hashlib.sha256(given.encode()).digest()
        if token is not None and await self._keys.has(digest):
            raise KeyRefused("token", "a key with this token already exists (a revoked key counts too)")
        access = Access(wanted.models, wanted.tools)
        named = (wanted.name, NAMED + wanted.owner, wanted.team)
        key = ClientKey(self._new_id("key"), *named, given[:_PREFIX], access, 0.0)
        limits = {"models": access.models, "tools": access.tools, "expires_in": wanted.lifetime}
        detail = {"name": key.name, "team": key.team, **limits}
        noted = AuditEntry(self._actor, "keys create", key.id, key.owner, detail)
        made = await self._keys.create(key, digest, wanted.lifetime, self._audit.statement(noted))
        if made is None:
            raise TooManyKeys()
        self._tell(noted)
        return made, given

    async def rotate(self, key_id: str, *, lifetime: float | None, overlap: float) -> tuple[ClientKey, str]:
        """Create the successor of a key, with the same owner and access. The successor expires after `lifetime`
        seconds, and the old key after at most `overlap` seconds. If `lifetime` is None, the successor gets the old
        key's lifetime, which an earlier rotation of the old key does not shorten. Returns the successor and its token.
        Raises `KeyMissing`, `KeyEnded` and `TooManyKeys`."""
        former = await self._known(key_id)
        if lifetime is None:
            lifetime = former.lifetime
        token, new = _new_token(), self._new_id("key")
        detail = {"successor": new, "expires_in": lifetime, "overlap": overlap}
        noted = AuditEntry(self._actor, "keys rotate", key_id, former.owner, detail)
        digest = hashlib.sha256(token.encode()).digest()
        beside = self._audit.statement(noted)
        made = await self._keys.rotate(key_id, new, token[:_PREFIX], digest, beside, lifetime=lifetime, overlap=overlap)
        if made is None:
            former = await self._known(key_id)
            # The store refuses to rotate a valid key only if the number of keys has reached the maximum.
            raise TooManyKeys() if former in await self._keys.list(former.owner) else KeyEnded(former)
        self._tell(noted)
        return made, token

    async def revoke(self, key_id: str) -> None:
        """Revoke a key. Within a second, every process refuses the key. Raises `KeyMissing`, and `KeyEnded` for an
        expired or revoked key."""
        noted = AuditEntry(self._actor, "keys revoke", key_id, (await self._known(key_id)).owner)
        if not await self._keys.revoke(key_id, self._audit.statement(noted)):
            raise KeyEnded(await self._known(key_id))
        self._tell(noted)

    async def list(self, owner: str = "", *, all_keys: bool = False) -> list[ClientKey]:
        """Return the valid keys of the owner with the name `owner`, or of all owners if `owner` is empty. With
        `all_keys`, the list also has the revoked and expired keys. Raises `KeyRefused`."""
        return await self._keys.list(_owner_id(owner), all_keys=all_keys)

    async def page(self, page: PageQuery, owner: str = "", *, all_keys: bool = False) -> Page[ClientKey]:
        """Like `list`, but returns one page, sorted by creation time. Cursors are ids of keys. Raises `KeyRefused`, and
        `InvalidRequest` for an unknown cursor."""
        return await self._keys.page(page, _owner_id(owner), all_keys=all_keys)

    async def _known(self, key_id: str) -> ClientKey:
        # A database cannot encode every text that a caller may send.
        found = await self._keys.get(key_id) if key_id.isprintable() and len(key_id) <= LONGEST else None
        if found is None:
            raise KeyMissing(key_id)
        return found


def _new_token() -> str:
    """A token with 256 random bits."""
    return "ant_" + secrets.token_urlsafe(32)


def _owner_id(owner: str) -> str:
    if not owner:
        return ""
    _check_owner(owner)
    return NAMED + owner


def _check_owner(owner: str) -> None:
    if not OWNER_NAME.fullmatch(owner):
        raise KeyRefused("owner", "use 1 to 64 letters, digits and . _ @ + -, and begin with a letter or a digit")


def _check(wanted: WantedKey) -> None:
    _check_owner(wanted.owner)
    for field, text in (("name", wanted.name), ("team", wanted.team)):
        if len(text) > LONGEST or not text.isprintable():
            raise KeyRefused(field, f"use at most {LONGEST} printable characters")
    for field, globs in (("models", wanted.models), ("tools", wanted.tools)):
        if len(globs) > _MOST_GLOBS:
            raise KeyRefused(field, f"use at most {_MOST_GLOBS} globs")
        for number, glob in enumerate(globs):
            if not 0 < len(glob) <= LONGEST or not glob.isprintable():
                raise KeyRefused(f"{field}[{number}]", f"a glob has 1 to {LONGEST} printable characters")


POLL_SECONDS = 0.25
"""Seconds between two queries for changes of the stored keys."""

_log = structlog.get_logger(__name__)


class KeyRing:
    """The client keys that one process accepts. Implements `KnownKeys`. A key in `fixed` (from the settings) replaces a
    stored key with the same token."""

    def __init__(
        self,
        store: ClientKeyStore,
        fixed: Mapping[bytes, Caller],
        *,
        stale: float,
        poll: float = POLL_SECONDS,
    ) -> None:
        self._store = store
        self._fixed = fixed
        self._stale = stale
        self._poll = poll
        self._known: Mapping[bytes, Caller] = fixed
        self._number = -1
        self._expires_at: int | None = None
        self._read_at = float("-inf")
        self._is_stale = True
        self._task: asyncio.Task[None] | None = None
        self._outage = Outage(_log, "client_keys_not_read", "client_keys_read_again")

    def get(self, digest: bytes, /) -> Caller | None:
        """Return the caller of a token's digest, or None. Raises `Unavailable` for an unknown digest while the process
        cannot read the stored keys."""
        found = self._known.get(digest)
        if found is None and self._is_stale:
            raise Unavailable(
                "The server cannot check your API key, because its database is unreachable. Try again later.",
                code="keys_unavailable",
                headers=(("retry-after", "1"),),
            )
        return found

    async def open(self) -> None:
        """Read the stored keys, and start the task that polls for changes. Raises `StoreError`."""
        await self.refresh()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def aclose(self) -> None:
        """Stop the polling task."""
        await stop(self._task)

    async def refresh(self) -> None:
        """Read the stored keys if a key changed or expired since the last call. Raises `StoreError`."""
        began = asyncio.get_running_loop().time()
        # Read the number of changes before the keys. A change between the two queries raises that number, so the next
        # call reads the keys again.
        number, date = await self._store.state()
        if number != self._number or (self._expires_at is not None and date >= self._expires_at):
            valid = await self._store.valid()
            self._known = {**valid.callers, **self._fixed}
            self._number, self._expires_at = number, valid.expires_at
        self._read_at, self._is_stale = began, False

    async def _follow(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._poll)
            try:
                async with asyncio.timeout_at(clock() + self._stale if self._is_stale else self._read_at + self._stale):
                    await self.refresh()
                self._outage.recovered()
            except (StoreError, TimeoutError) as error:
                self._outage.failed(cause=str(error) or "the database does not answer")
            except Exception:
                _log.error("client_keys_failed", exc_info=True)
            if clock() >= self._read_at + self._stale and not self._is_stale:
                # Forget the stored keys. The number -1 makes the next `refresh` load all keys again.
                self._known, self._number, self._is_stale = self._fixed, -1, True
