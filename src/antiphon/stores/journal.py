"""Stores the journal in SQLite or PostgreSQL: one row for each finished request, and the recorded contents (inputs and
outputs) of requests.

Lives here: the SQL that filters, lists and sums the rows, and the size limits of recorded contents. Not here: the types
of the values (`engine/ports/journal.py`), the statements that insert rows and batches of rows (`journal_rows.py`). Not
here: the encoding of recorded contents (`stores/bodies.py`), the schedule of writes (`engine/running/journal.py`) and
of sweeps (`app/console.py`). Not here: requests in progress (`stores/live.py`).

A list has the rows in the order of `(ended_at, id)`, newest first. The cursor of a page is the position of its last row
in this order. So a row that the store adds later does not change the following pages.

When Antiphon deletes a stored response, the database also deletes the recorded contents of its request. If a completed
response is already deleted, the store writes no recorded contents for its request.

Invariants: the time of a row comes from the database's clock. If the id of an entry is already stored, a second write
of the entry changes nothing. The transaction that stores recorded contents also deletes the oldest recorded contents
until their total size is at most `most_bytes`. A query with an owner never returns a row of another owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from antiphon.engine.ports.journal import (
    MOST_COUNTED,
    QUEUED,
    REFUSED,
    Choices,
    Entry,
    EntryFilter,
    EntryPage,
    EntrySum,
    Recording,
    Slot,
    ThreadEntry,
    quantiles,
)
from antiphon.errors import InvalidRequest
from antiphon.ids import Clock, is_shortened, now
from antiphon.stores.bodies import PLAIN, Bodies, pack_recording, unpack_recording
from antiphon.stores.journal_rows import FIELDS, INSERT, NUMBERS, JournalBatches, entry_of, parameters_of
from antiphon.stores.tables import Row, Statement, Tables, milliseconds

LEAST_SIZE = 4096
"""The minimum number of bytes that one recorded request counts toward the size limit. Without this minimum, one
statement would have to delete very many small recordings to make room for a new one."""
MOST_WRITTEN = 16 << 20
"""The maximum bytes of recorded contents in one transaction."""
_MOST = 10**15
_PIECE = 1000
_SAMPLE = 5000
_GROUPS = 200
_REFUSALS = 10
"""At most a tenth of the entries are entries of refused requests."""
_CHOICES = 100
OVERLAP = 3.0
"""The seconds before the newest known entry that a reader reads again. Processes write their entries once a second, so
the store may receive an entry after entries of requests that ended later."""
_COMPLETED = frozenset({"completed", "incomplete"})

# Only one process at a time stores recorded contents. So each transaction counts the bytes of all other transactions.
LOCK_RECORDS = """
INSERT INTO sweeps (what, due_at) VALUES ('request_records', lease_now())
ON CONFLICT (what) DO UPDATE SET due_at = excluded.due_at
"""
ADD_RECORD = """
INSERT INTO request_records (id, owner, response_id, saved_id, at, size, body)
SELECT :id, :owner, :response_id, (SELECT id FROM responses WHERE id = :response_id AND owner = :owner),
       now_ms() - CAST(:age AS bigint), :size, :body
WHERE CAST(:stored AS bigint) = 0 OR EXISTS (SELECT 1 FROM responses WHERE id = :response_id AND owner = :owner)
ON CONFLICT (id) DO NOTHING
"""
_TOTAL = "(SELECT coalesce(sum(size), 0) FROM request_records)"
# Each recorded request counts at least LEAST_SIZE bytes, so the oldest rows in the subquery have more bytes together
# than one transaction adds.
MAKE_ROOM = f"""
DELETE FROM request_records WHERE id IN (
  SELECT id FROM (
    SELECT id, sum(size) OVER (ORDER BY at, id ROWS UNBOUNDED PRECEDING) - size AS older
    FROM (
      SELECT id, at, size FROM request_records WHERE {_TOTAL} > CAST(:bytes AS bigint)
      ORDER BY at, id LIMIT {2 * MOST_WRITTEN // LEAST_SIZE}
    ) AS oldest
  ) AS counted
  WHERE older < {_TOTAL} - CAST(:bytes AS bigint)
)
"""
RECORDED = "SELECT body FROM request_records WHERE id = :id AND (:owner = '' OR owner = :owner)"
FORGET_RESPONSE = "DELETE FROM request_records WHERE response_id = :id AND response_id <> '' AND owner = :owner"
# A client may use one request id many times, so the subquery reads only the newest entry with this request id.
GET = f"""
SELECT ended_at, {FIELDS} FROM requests WHERE (:owner = '' OR owner = :owner) AND id IN (
  SELECT id FROM requests WHERE id = :id
  UNION ALL SELECT id FROM requests WHERE response_id = :id AND response_id <> ''
  UNION ALL SELECT id FROM (
    SELECT id FROM requests WHERE request_id = :id AND request_id <> '' AND (:owner = '' OR owner = :owner)
    ORDER BY ended_at DESC, id DESC LIMIT 1
  ) AS newest
) ORDER BY CASE WHEN id = :id THEN 0 WHEN response_id = :id THEN 1 ELSE 2 END, ended_at DESC, id DESC LIMIT 1
"""
_WITH_BEGINNING = "{column} >= :id AND {column} < :end AND {column} <> '' LIMIT 100"
GET_SHORTENED = f"""
SELECT ended_at, {FIELDS} FROM requests WHERE (:owner = '' OR owner = :owner) AND id IN (
  SELECT id FROM (SELECT id FROM requests WHERE {_WITH_BEGINNING.format(column="id")}) AS by_id
  UNION ALL SELECT id FROM (
    SELECT id FROM requests WHERE {_WITH_BEGINNING.format(column="response_id")}
  ) AS by_response
  UNION ALL SELECT id FROM (
    SELECT id FROM requests WHERE {_WITH_BEGINNING.format(column="request_id")}
  ) AS by_request
) ORDER BY ended_at DESC, id DESC LIMIT 1
"""
# CROSS JOIN fixes the join order in SQLite.
_THREAD = """(
  SELECT id AS member FROM requests WHERE response_id = :thread AND response_id <> ''
  UNION SELECT id FROM requests WHERE previous_id = :thread AND previous_id <> ''
  UNION SELECT id FROM requests WHERE conversation_id = :thread AND conversation_id <> ''
) AS thread CROSS JOIN requests"""
_EQUAL = ("owner", "outcome", "fault", "code", "model", "upstream", "door", "team", "key_id")
OLD_PLACE = "SELECT ended_at, id FROM requests ORDER BY ended_at DESC, id DESC LIMIT 1 OFFSET :most"
_REFUSED = f"outcome = '{REFUSED}'"
OLD_REFUSAL = OLD_PLACE.replace("ORDER", f"WHERE {_REFUSED} ORDER")
FORGET_OLD = f"""
DELETE FROM requests WHERE id IN (
  SELECT id FROM requests WHERE ended_at < now_ms() - CAST(:age AS bigint) ORDER BY ended_at LIMIT {_PIECE}
)
"""
FORGET_MORE = f"""
DELETE FROM requests WHERE id IN (
  SELECT id FROM requests WHERE (ended_at, id) <= (CAST(:at AS bigint), :id) ORDER BY ended_at LIMIT {_PIECE}
)
"""
FORGET_REFUSALS = FORGET_MORE.replace("WHERE (", f"WHERE {_REFUSED} AND (")
FORGET_OLD_RECORDS = """
DELETE FROM request_records WHERE id IN (
  SELECT id FROM request_records WHERE at < now_ms() - CAST(:age AS bigint) ORDER BY at LIMIT 100
)
"""
_UNREFUSED = f"NOT {_REFUSED}"
# An entry of refused requests may stand for many requests, none of which reached a model. The entry of a request that
# queued a background response would count the response twice.
_SUMMED = f"outcome NOT IN ('{REFUSED}', '{QUEUED}')"
_FLAGS = {
    "failed": "fault <> ''",
    "unrefused": _UNREFUSED,
    "ended": f"outcome <> '{QUEUED}'",
    # An index has both counts, so the database reads only the rows of misses.
    "missed": "cached_tokens * 2 < input_tokens AND previous_id <> ''",
}
_SUMS = "count(*) AS requests, count(CASE WHEN fault <> '' THEN 1 END) AS failed, " + ", ".join(
    f"CAST(coalesce(sum({name}), 0) AS bigint) AS {name}" for name in NUMBERS if name != "calls"
)

By = Literal["model", "owner", "upstream"]


class JournalStore:
    """Stores the journal in a database that the caller closes. Every method raises `StoreError` when the database
    fails."""

    def __init__(self, tables: Tables, bodies: Bodies = PLAIN, clock: Clock = now) -> None:
        """`bodies` encrypts and decrypts recorded contents. `clock`: the function that returns the current time on
        SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._bodies = bodies
        self._clock = clock
        self._batches = JournalBatches(tables, clock)

    async def _fetch(self, sql: str, named: Mapping[str, object]) -> Sequence[Row]:
        """Run a query whose result may lack the oldest entries of batches."""
        await self._batches.move_for_reader()
        return await self._tables.fetch(sql, named)

    async def pack(self, recording: Recording) -> bytes:
        """Return the stored form of recorded contents: compressed, and encrypted if the setting `state.seal` is on."""
        return await pack_recording(recording, self._bodies)

    async def unpack(self, packed: bytes) -> Recording:
        """Return the recorded contents from their stored form. Raises `StoreError` when the store cannot decrypt or
        decode them."""
        return await unpack_recording(packed, self._bodies)

    async def add(
        self,
        entries: Sequence[Entry],
        packed: Mapping[str, bytes] = {},
        *,
        most_bytes: int = 1 << 62,
        together: bool = False,
    ) -> None:
        """Store these entries, and the recorded contents of some of them, in one transaction. With `together`, the
        entries become one batch, from which a reader moves them into the table.

        `packed`: the recorded contents in their stored form, by the id of the entry, at most `MOST_WRITTEN` bytes
        together. `most_bytes`: the maximum bytes of all recorded contents. An entry whose id is already stored changes
        nothing, so the caller may repeat this call after an unknown outcome.
        """
        if not entries:
            return
        batch = self._batches.statement(entries) if together else None
        if batch is not None:
            unit = [batch]
        else:
            now_ms = milliseconds(self._clock())
            unit = [Statement(INSERT, [parameters_of(one, now_ms) for one in entries], many=True, light=True)]
        # Two processes that lock responses in the same order do not deadlock.
        ordered = sorted(entries, key=lambda one: one.response_id)
        records = [self._record(one, packed[one.id]) for one in ordered if one.id in packed]
        if records:
            unit = [Statement(LOCK_RECORDS, {}), *unit, Statement(ADD_RECORD, records, many=True)]
            unit.append(Statement(MAKE_ROOM, {"bytes": most_bytes}))
        await self._tables.run(unit, again=True)

    async def move_batches(self) -> None:
        """Move the entries of all batches into the table. Statements outside this store find only entries in the
        table."""
        await self._batches.move(None)

    async def try_to_move_batches(self, seconds: float) -> None:
        """Move the entries of the newest batches for about `seconds`. Log a failure of the database instead of raising
        `StoreError`."""
        await self._batches.try_to_move(seconds)

    async def list(self, chosen: EntryFilter, *, limit: int = 50, after: str = "") -> EntryPage:
        """Return a page of at most `limit` entries, newest first. `after`: the cursor of the previous page.

        Raises `InvalidRequest` when `after` is not a valid cursor.
        """
        where, named = _selected(chosen)
        counting = (
            f"SELECT count(*) FROM (SELECT 1 FROM {_source(chosen)} WHERE {where} LIMIT {MOST_COUNTED}) AS counted"
        )
        total = (await self._fetch(counting, named))[0][0]
        if after:
            where += " AND (ended_at, id) < (CAST(:at AS bigint), :last)"
            named["at"], named["last"] = _place(after)
        rows = await self._fetch(_listing(chosen, where), {**named, "limit": limit + 1})
        entries = tuple([entry_of(row) for row in rows[:limit]])
        # The number of all owners' entries is nothing for one owner.
        waiting = 0 if chosen.owner else await self._batches.waiting()
        return EntryPage(entries, total, cursor_of(entries[-1]) if len(rows) > limit else "", waiting)

    async def newer(self, chosen: EntryFilter, *, than: str, limit: int = 50) -> tuple[Entry, ...]:
        """Return entries that may be newer than the cursor `than`, newest first. The result repeats the entries of the
        three seconds before the cursor, because processes write their entries late. The caller drops the entries that
        it already has."""
        where, named = _selected(chosen)
        named["at"] = (_place(than)[0] if than else 0) - milliseconds(OVERLAP)
        rows = await self._fetch(_listing(chosen, f"{where} AND ended_at >= :at"), {**named, "limit": limit})
        return tuple([entry_of(row) for row in rows])

    async def neighbours(self, chosen: EntryFilter, entry: Entry) -> tuple[str, str]:
        """Return two ids of entries that the filter selects: the entry directly after this stored entry in time, and
        the entry directly before. An id is empty if there is no such entry."""
        where, named = _selected(chosen)
        named["at"], named["last"] = _place(cursor_of(entry))
        ids = []
        for sign, order in ((">", "ASC"), ("<", "DESC")):
            rows = await self._fetch(
                f"SELECT id FROM {_source(chosen)} WHERE {where} AND (ended_at, id) {sign} "
                f"(CAST(:at AS bigint), :last) ORDER BY ended_at {order}, id {order} LIMIT 1",
                named,
            )
            ids.append(rows[0]["id"] if rows else "")
        return ids[0], ids[1]

    async def get(self, entry_id: str, owner: str = "") -> Entry | None:
        """Return the entry with this id. If no entry has this id, return the newest entry with this response id, or
        else with this request id. `entry_id` may be a shortened id, as a terminal's log line shows it, or the beginning
        of a UUID. An empty `owner` allows entries of any owner. Otherwise an entry of another owner counts as
        missing."""
        rows = await self._found(entry_id, owner)
        # A batch may have a newer entry of the same response.
        if (not rows or rows[0]["id"] != entry_id) and await self._batches.waiting():
            await self._batches.try_to_move(None)
            rows = await self._found(entry_id, owner)
        return entry_of(rows[0]) if rows else None

    async def _found(self, entry_id: str, owner: str) -> Sequence[Row]:
        rows = await self._tables.fetch(GET, {"id": entry_id, "owner": owner})
        if not rows and is_shortened(entry_id):
            # All further digits of an id, and the hyphens of a UUID, sort before "g".
            named = {"id": entry_id, "end": f"{entry_id}g", "owner": owner}
            rows = await self._tables.fetch(GET_SHORTENED, named)
        return rows

    async def choices(self, owner: str = "", *, recent: int = 2000) -> Choices:
        """Return the distinct values in the `recent` newest entries, and in as many refusals at most. The console
        offers these values as choices of a filter."""
        named: dict[str, object] = {"owner": owner, "recent": recent}
        # For all owners the query has no condition on the owner, so that the database reads the rows in the order of an
        # index. Refusals are read separately, so that they cannot displace the values of other entries.
        newest = [
            f"""SELECT * FROM (
              SELECT model, upstream, outcome, code, door, team FROM requests
              WHERE {kind}{" AND owner = :owner" if owner else ""} ORDER BY ended_at DESC, id DESC LIMIT :recent
            ) AS {name}"""
            for name, kind in (("others", _UNREFUSED), ("refusals", _REFUSED))
        ]
        rows = await self._fetch(" UNION ".join(newest), named)
        columns = [sorted({row[number] for row in rows} - {""})[:_CHOICES] for number in range(6)]
        return Choices(*(tuple(column) for column in columns))

    async def sums(self, owner: str = "", *, since: float = 0.0, by: By = "model") -> tuple[EntrySum, ...]:
        """Return sums over the entries since the time `since`, one for each model, upstream or owner. The sum with the
        most requests comes first. Sums leave out the outcomes `refused` and `queued`.

        `since` is in seconds since the epoch. The result has at most 200 sums. The medians and 95th percentiles cover
        only the newest 5000 entries.
        """
        await self._batches.try_to_move(None)
        where, named = _selected(EntryFilter(owner=owner, since=since))
        group = {"model": "model", "owner": "owner", "upstream": "upstream"}[by]
        rows = await self._tables.fetch(
            f"SELECT {group} AS name, {_SUMS} FROM requests WHERE {_SUMMED} AND {where} "
            f"GROUP BY {group} ORDER BY requests DESC, {group} LIMIT {_GROUPS}",
            named,
        )
        sample = await self._tables.fetch(
            f"SELECT {group} AS name, took, first_at FROM requests WHERE {_SUMMED} AND {where} "
            f"ORDER BY ended_at DESC, id DESC LIMIT {_SAMPLE}",
            named,
        )
        took: dict[str, list[int]] = {}
        first: dict[str, list[int]] = {}
        for row in sample:
            took.setdefault(row["name"], []).append(row["took"])
            if row["first_at"] is not None:
                first.setdefault(row["name"], []).append(row["first_at"])
        return tuple(
            EntrySum(
                **{name: row[name] for name in ("name", "requests", "failed")},
                **{name: row[name] for name in NUMBERS if name != "calls"},
                seconds=quantiles(took.get(row["name"], [])),
                first=quantiles(first.get(row["name"], [])),
            )
            for row in rows
        )

    async def thread_entries(self, owner: str = "", *, since: float, most: int) -> tuple[ThreadEntry, ...]:
        """Return the newest `most` entries with input tokens since the time `since`, newest first."""
        await self._batches.try_to_move(None)
        where, named = _selected(EntryFilter(owner=owner, since=since))
        sql = f"SELECT {', '.join(ThreadEntry.__struct_fields__)} FROM requests WHERE {where} AND input_tokens > 0"
        rows = await self._tables.fetch(f"{sql} ORDER BY ended_at DESC, id DESC LIMIT :most", named | {"most": most})
        return tuple(ThreadEntry(*(row[name] for name in ThreadEntry.__struct_fields__)) for row in rows)

    async def slots(self, owner: str = "", *, since: float, seconds: float) -> tuple[Slot, ...]:
        """Return sums over the entries since the time `since`, one for each interval of `seconds`, oldest first. Charts
        show these sums.

        The result lacks intervals without entries. The result has at most the newest 1000 intervals.
        """
        await self._batches.try_to_move(None)
        where, named = _selected(EntryFilter(owner=owner, since=since))
        named["step"] = max(1, milliseconds(seconds))
        rows = await self._tables.fetch(
            f"SELECT ended_at / CAST(:step AS bigint) AS slot, {_SUMS} FROM requests WHERE {_SUMMED} AND {where} "
            f"GROUP BY 1 ORDER BY 1 DESC LIMIT {_PIECE}",
            named,
        )
        names = ("requests", "failed", *(name for name in NUMBERS if name != "calls"))
        step = max(1, milliseconds(seconds)) / 1000
        return tuple(Slot(row["slot"] * step, **{name: row[name] for name in names}) for row in reversed(rows))

    async def put(self, entry: Entry, recording: Recording, *, most_bytes: int = 1 << 62) -> None:
        """Store the recorded contents of a request, and the request's entry unless the entry is already stored."""
        await self.add([entry], {entry.id: await self.pack(recording)}, most_bytes=most_bytes)

    async def record(self, entry_id: str, owner: str = "") -> Recording | None:
        """Return the recorded contents of a request. Returns None when the store has none, when the request belongs to
        another owner, or when its response is deleted. An empty `owner` allows requests of any owner."""
        rows = await self._tables.fetch(RECORDED, {"id": entry_id, "owner": owner})
        return await self.unpack(bytes(rows[0]["body"])) if rows else None

    async def sweep(self, keep: float, most: int, record_keep: float, record_bytes: int) -> tuple[int, int]:
        """Delete entries older than `keep` seconds, all but the newest `most` entries, and the oldest refusals beyond a
        tenth of `most`. Delete recorded contents older than `record_keep` seconds, and the oldest recorded contents
        beyond `record_bytes`. Returns how many entries and how many recorded contents were deleted."""
        cut = await self._batches.sweep(keep, most)
        gone = await self._repeat(FORGET_OLD, {"age": milliseconds(keep), **self._now})
        if cut is not None:
            gone += await self._repeat(FORGET_MORE, {"at": cut + 1, "id": ""})
        refusals = (OLD_REFUSAL, FORGET_REFUSALS, most // _REFUSALS)
        for place, forget, kept in (refusals, (OLD_PLACE, FORGET_MORE, most)):
            for row in await self._tables.fetch(place, {"most": kept}):
                gone += await self._repeat(forget, {"at": row["ended_at"], "id": row["id"]})
        records = await self._repeat(FORGET_OLD_RECORDS, {"age": milliseconds(min(keep, record_keep)), **self._now})
        return gone, records + await self._repeat(MAKE_ROOM, {"bytes": record_bytes})

    async def _repeat(self, sql: str, named: Mapping[str, object]) -> int:
        gone = 0
        while count := (await self._tables.run([Statement(sql, named)], again=True))[0]:
            gone += count
        return gone

    def _record(self, entry: Entry, packed: bytes) -> dict[str, object]:
        named = parameters_of(entry, milliseconds(self._clock()))
        return {
            **{name: named[name] for name in ("id", "owner", "response_id", "age", "now_ms")},
            "stored": int(entry.stored and bool(entry.response_id) and entry.outcome in _COMPLETED),
            "size": max(LEAST_SIZE, len(packed)),
            "body": packed,
        }

    @property
    def _now(self) -> dict[str, object]:
        return {"now_ms": milliseconds(self._clock())}


def cursor_of(entry: Entry) -> str:
    """Return the cursor of the page that follows this stored entry: the end time in milliseconds, a colon, and the
    entry's id."""
    return f"{milliseconds(entry.ended_at)}:{entry.id}"


def _place(cursor: str) -> tuple[int, str]:
    at, _, last = cursor.partition(":")
    if not (at.isascii() and at.isdigit() and len(at) <= 15 and last):
        raise InvalidRequest(
            "This cursor is not valid. Use the cursor of the previous page, or start without one.", param="after"
        )
    return int(at), last


def _selected(chosen: EntryFilter) -> tuple[str, dict[str, object]]:
    """Return the SQL condition of a filter, and the parameters of the condition. An empty field of the filter adds no
    condition, so that the database can use an index for the other fields."""
    named: dict[str, object] = {name: getattr(chosen, name) for name in _EQUAL if getattr(chosen, name)}
    parts = [f"{name} = :{name}" for name in named]
    parts += [sql for name, sql in _FLAGS.items() if getattr(chosen, name)]
    if chosen.thread:
        parts.append("id = member")
        named["thread"] = chosen.thread
    if chosen.since:
        parts.append("ended_at >= :since")
        named["since"] = milliseconds(chosen.since)
    if chosen.until:
        parts.append("ended_at < :until")
        named["until"] = milliseconds(chosen.until)
    return " AND ".join(parts) or "1 = 1", named


def _source(chosen: EntryFilter) -> str:
    return _THREAD if chosen.thread else "requests"


def _listing(chosen: EntryFilter, where: str) -> str:
    return (
        f"SELECT ended_at, {FIELDS} FROM {_source(chosen)} WHERE {where} ORDER BY ended_at DESC, id DESC LIMIT :limit"
    )
