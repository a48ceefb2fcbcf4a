"""Stores the client keys that an operator creates at run time, in SQLite or PostgreSQL.

Lives here: the SQL of the table `client_keys`, and the conversion of rows to `ClientKey`. Not here: creating tokens and
caching the keys in memory (`engine/running/client_keys.py`), the keys in the settings (`app/keys.py`).

Invariants: a row holds the SHA-256 of a token, never the token. Each transaction that changes a key also increments a
counter. So a process detects every change with one short query. The database's clock decides when a key expires.
"""

from __future__ import annotations

import msgspec

from antiphon.engine.ports.callers import Access, Caller, ClientKey
from antiphon.engine.ports.state import Page, PageQuery
from antiphon.errors import StoreError
from antiphon.ids import Clock, now
from antiphon.stores.tables import Row, RowsMissing, Statement, Tables, both_orders, check_cursors, milliseconds

MOST_KEYS = 10_000
"""The maximum number of keys that are neither revoked nor expired. Every process keeps all these keys in memory."""

IS_VALID = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now_ms())"
"""The condition in SQL that a key is valid. It needs the parameter `now_ms`."""
INSERT = f"""
INSERT INTO client_keys (id, digest, name, owner, team, prefix, models, tools, created_at, expires_at)
SELECT :id, :digest, :name, :owner, :team, :prefix, :models, :tools, now_ms(), now_ms() + CAST(:lifetime AS bigint)
WHERE (SELECT count(*) FROM client_keys WHERE {IS_VALID}) < :most
"""
SUCCEED = f"""
INSERT INTO client_keys (id, digest, name, owner, team, prefix, models, tools, created_at, expires_at)
SELECT :new, :digest, name, owner, team, :prefix, models, tools, now_ms(), now_ms() + CAST(:lifetime AS bigint)
FROM client_keys WHERE id = :id AND {IS_VALID}
  AND (SELECT count(*) FROM client_keys WHERE {IS_VALID}) < :most
"""
END = f"""
UPDATE client_keys SET lifetime = coalesce(lifetime, expires_at - created_at, 0),
  expires_at = least(coalesce(expires_at, now_ms() + :overlap), now_ms() + :overlap)
WHERE id = :id AND {IS_VALID}
"""
REVOKE = f"UPDATE client_keys SET revoked_at = now_ms() WHERE id = :id AND {IS_VALID}"
CHANGE = """
INSERT INTO client_key_changes AS c (id, number) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET number = c.number + 1
"""
STATE = "SELECT coalesce((SELECT number FROM client_key_changes WHERE id = 1), 0) AS number, now_ms() AS date"
VALID = f"SELECT id, digest, owner, team, models, tools, expires_at FROM client_keys WHERE {IS_VALID}"
_COLUMNS = "id, name, owner, team, prefix, models, tools, created_at, expires_at, revoked_at, lifetime"
LIST = f"""
SELECT {_COLUMNS} FROM client_keys
WHERE (:owner = '' OR owner = :owner) AND (:all = 1 OR ({IS_VALID})) ORDER BY owner, created_at, id
"""
PAGE = both_orders(f"""
SELECT {_COLUMNS} FROM client_keys
WHERE (:owner = '' OR owner = :owner) AND (:all = 1 OR ({IS_VALID}))
  AND (CAST(:low AS text) IS NULL OR (created_at, id) > (SELECT created_at, id FROM client_keys WHERE id = :low))
  AND (CAST(:high AS text) IS NULL OR (created_at, id) < (SELECT created_at, id FROM client_keys WHERE id = :high))
ORDER BY created_at {{order}}, id {{order}} LIMIT :limit
""")
GET = f"SELECT {_COLUMNS} FROM client_keys WHERE id = :id"

HAS = "SELECT 1 FROM client_keys WHERE digest = :digest"
OWNER = "SELECT owner FROM client_keys WHERE digest = :digest"

_LIST: msgspec.json.Decoder[tuple[str, ...]] = msgspec.json.Decoder(tuple[str, ...])


class ValidKeys(msgspec.Struct, frozen=True):
    """All keys that are valid at one moment. `callers` maps the SHA-256 of a key's token to the key's owner, team and
    access (`Caller`).

    `expires_at` is the earliest time at which one of these keys expires, or None if no key expires. This time is in
    milliseconds since the epoch, by the database's clock.
    """

    callers: dict[bytes, Caller]
    expires_at: int | None


class ClientKeyStore:
    """Stores client keys in a database that the caller closes. Every method raises `StoreError` when the database
    fails.

    A digest is the SHA-256 of a token (32 bytes). A key is valid if it is neither expired nor revoked.
    """

    def __init__(self, tables: Tables, clock: Clock = now, *, most: int = MOST_KEYS) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock. `most`:
        the maximum number of valid keys."""
        self._tables = tables
        self._most = most
        self._clock = clock

    async def create(
        self, key: ClientKey, digest: bytes, lifetime: float | None, *beside: Statement
    ) -> ClientKey | None:
        """Store a new key that expires after `lifetime` seconds (None: never).

        The store's clock sets the creation time and the expiry time of the key. Returns the stored key, or None when
        there are already `most` valid keys. `beside`: further statements that run in the same transaction.
        """
        named: dict[str, object] = {"id": key.id, "digest": digest, "name": key.name, "owner": key.owner}
        named |= {"team": key.team, "prefix": key.prefix, "lifetime": _lifetime(lifetime), **self._now}
        named |= {"models": _packed(key.access.models), "tools": _packed(key.access.tools)}
        return await self.get(key.id) if await self._change(Statement(INSERT, named, rows=1), *beside) else None

    async def rotate(
        self,
        key_id: str,
        new_id: str,
        prefix: str,
        digest: bytes,
        *beside: Statement,
        lifetime: float | None,
        overlap: float,
    ) -> ClientKey | None:
        """Create a successor with the name, the owner and the access of this key. The old key expires after at most
        `overlap` seconds. Returns the successor, or None when the old key is not valid, or when there are already
        `most` valid keys."""
        named: dict[str, object] = {"id": key_id, "new": new_id, "prefix": prefix, "digest": digest, **self._now}
        named |= {"lifetime": _lifetime(lifetime), "overlap": milliseconds(overlap)}
        unit = (Statement(SUCCEED, named, rows=1), Statement(END, named, rows=1), *beside)
        return await self.get(new_id) if await self._change(*unit) else None

    async def revoke(self, key_id: str, *beside: Statement) -> bool:
        """Revoke a key immediately. Returns False when the key does not exist, is expired or is already revoked."""
        return await self._change(Statement(REVOKE, {"id": key_id, **self._now}, rows=1), *beside)

    async def get(self, key_id: str) -> ClientKey | None:
        """Return this key, even if it is expired or revoked. Returns None when the key does not exist."""
        rows = await self._tables.fetch(GET, {"id": key_id})
        return _key(rows[0]) if rows else None

    async def has(self, digest: bytes) -> bool:
        """Return whether a key with this digest exists, even if the key is expired or revoked."""
        return bool(await self._tables.fetch(HAS, {"digest": digest}))

    async def owner_of(self, digest: bytes) -> str | None:
        """Return the owner id of the key with this digest, even if the key is expired or revoked. Returns None without
        such a key."""
        rows = await self._tables.fetch(OWNER, {"digest": digest})
        return str(rows[0][0]) if rows else None

    async def list(self, owner: str = "", *, all_keys: bool = False) -> list[ClientKey]:
        """Return the valid keys of this owner, or of all owners if `owner` is empty, sorted by owner and creation time.
        With `all_keys`, the result also has expired and revoked keys."""
        rows = await self._tables.fetch(LIST, {"owner": owner, "all": int(all_keys), **self._now})
        return [_key(row) for row in rows]

    async def page(self, page: PageQuery, owner: str = "", *, all_keys: bool = False) -> Page[ClientKey]:
        """Return a page of the keys that `list` returns, sorted by creation time. Cursors are ids of keys. An unknown
        cursor raises `InvalidRequest`."""
        await check_cursors(page, self.get, "There is no client key with this id")
        low, high = page.bounds
        named = {"owner": owner, "all": int(all_keys), "low": low, "high": high, **self._now, "limit": page.limit + 1}
        rows = await self._tables.fetch(PAGE[page.backward], named)
        return Page(page.shown([_key(row) for row in rows]), has_more=len(rows) > page.limit)

    @property
    def _now(self) -> dict[str, object]:
        return {"now_ms": milliseconds(self._clock()), "most": self._most}

    async def _change(self, *statements: Statement) -> bool:
        """Run the statements in one transaction. Before them, the transaction increments the change counter, which
        locks the counter's row. This lock serializes all changes, so that two concurrent changes cannot exceed `most`
        together. Returns False when a statement changed no row."""
        try:
            await self._tables.run([Statement(CHANGE, {}), *statements])
        except RowsMissing:
            return False
        return True

    async def state(self) -> tuple[int, int]:
        """Return the number of changes so far, and the database's time in milliseconds since the epoch.

        A process reads the keys again when the number has changed.
        """
        row = (await self._tables.fetch(STATE, self._now, own=True))[0]
        return row[0], row[1]

    async def valid(self) -> ValidKeys:
        """Return all keys that are valid now."""
        rows = await self._tables.fetch(VALID, self._now, own=True)
        callers = {
            bytes(row["digest"]): Caller(
                row["owner"], row["owner"].partition(":")[2], row["team"], row["id"], _access(row)
            )
            for row in rows
        }
        return ValidKeys(
            callers, min((row["expires_at"] for row in rows if row["expires_at"] is not None), default=None)
        )


def _lifetime(seconds: float | None) -> int | None:
    return None if seconds is None else milliseconds(seconds)


def _packed(patterns: tuple[str, ...]) -> str:
    return msgspec.json.encode(patterns).decode()


def _access(row: Row) -> Access:
    try:
        return Access(_LIST.decode(row["models"]), _LIST.decode(row["tools"]))
    except msgspec.DecodeError as error:
        # Fail instead of guessing, so that a client never gets more access than the operator gave.
        raise StoreError(f"the client key {row['id']} is damaged: {error}") from error


def _first_lifetime(row: Row) -> float | None:
    if row["lifetime"] is not None:
        return row["lifetime"] / 1000 or None
    return None if row["expires_at"] is None else (row["expires_at"] - row["created_at"]) / 1000


def _key(row: Row) -> ClientKey:
    def seconds(name: str) -> float | None:
        return None if row[name] is None else row[name] / 1000

    return ClientKey(
        id=row["id"],
        name=row["name"],
        owner=row["owner"],
        team=row["team"],
        prefix=row["prefix"],
        access=_access(row),
        created_at=row["created_at"] / 1000,
        expires_at=seconds("expires_at"),
        revoked_at=seconds("revoked_at"),
        lifetime=_first_lifetime(row),
    )
