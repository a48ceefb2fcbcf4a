"""Converts journal entries to rows of the table `requests` and back, and stores batches of entries as one row each.

Lives here: the columns and the statements of an entry, the table `request_batches`, and the move of entries from
batches into the table `requests`. Not here: the queries of the journal (`journal.py`), the choice between rows and
batches (`engine/running/journal.py`).

A row of the table `requests` is in up to six indexes. Writing it takes about twenty times the CPU time of an entry in
a batch. A process under load writes batches. A reader moves the newest batches before its query, for at most
`MOVE_SECONDS`. The sweep deletes old batches without moving them.

Invariants: one transaction deletes a batch and inserts its entries, so each entry is in one of the two tables. If an
entry or a batch is already stored, a second write changes nothing. A batch that cannot be decoded is deleted, with a
log line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec
import structlog

from antiphon.engine.ports.journal import Detail, Entry
from antiphon.errors import StoreError, Unavailable
from antiphon.ids import Clock, now
from antiphon.observability.repeated_failures import Outage
from antiphon.stores.tables import Row, RowsMissing, Statement, Tables, milliseconds

MOVE_SECONDS: Final = 0.1
"""The seconds for which a reader moves batches before its query."""
_PAUSE: Final = 1.0
"""The shortest time in seconds between two moves by readers of one process."""
_MOST_BYTES: Final = 4 << 20
_MOST: Final = 10**15
_TEXTS = {
    **dict.fromkeys(("id", "response_id", "previous_id", "conversation_id", "key_id", "request_id"), 128),
    **dict.fromkeys(("key_name", "team", "model", "upstream"), 200),
    **dict.fromkeys(("door", "outcome", "fault", "code"), 64),
}
"""The maximum bytes of each text column in a row of the journal. PostgreSQL refuses an index row of more than 2700
bytes. Antiphon never shortens the id of an owner, because the id decides who may read the row."""
_SHORT = min(_TEXTS.values())
NUMBERS = ("calls", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost")
_COLUMNS = (
    *("id", "owner", "request_id", "key_id", "key_name", "team", "door", "model", "upstream", "response_id"),
    *("previous_id", "conversation_id", "outcome", "fault", "code", "http_status", "stored", "recorded"),
    *("took", "first_at"),
    *("calls", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "estimated", "cost", "detail"),
)
FIELDS = ", ".join(_COLUMNS)
_texts_of = attrgetter(*_TEXTS)
_numbers_of = attrgetter(*NUMBERS)
# An entry of a batch ended before the time at which the batch was stored.
INSERT, INSERT_OF_BATCH = [
    f"""
INSERT INTO requests (ended_at, {FIELDS})
VALUES ({stored_at} - CAST(:age AS bigint), {", ".join(f":{name}" for name in _COLUMNS)})
ON CONFLICT (id) DO NOTHING
"""
    for stored_at in ("now_ms()", "CAST(:now_ms AS bigint)")
]
ADD_BATCH = """
INSERT INTO request_batches (id, at, entries, body) VALUES (:id, now_ms(), :entries, :body) ON CONFLICT (id) DO NOTHING
"""
NEWEST = """
SELECT id, at, body FROM request_batches WHERE at <= CAST(:until AS bigint) ORDER BY at DESC, id DESC LIMIT 1
"""
WAITING = "SELECT CAST(coalesce(sum(entries), 0) AS bigint) FROM request_batches"
DELETE = "DELETE FROM request_batches WHERE id = :id"
FORGET_OLD = "DELETE FROM request_batches WHERE at < now_ms() - CAST(:age AS bigint)"
# The time of the first entry beyond the newest `most` entries of both tables. An entry of a batch has the batch's time.
CUT = """
SELECT at FROM (
  SELECT at, sum(entries) OVER (ORDER BY at DESC ROWS UNBOUNDED PRECEDING) AS newest
  FROM (SELECT ended_at AS at, 1 AS entries FROM requests UNION ALL SELECT at, entries FROM request_batches) AS both_of
) AS counted
WHERE newest > CAST(:most AS bigint) ORDER BY at DESC LIMIT 1
"""
FORGET_UNTIL = "DELETE FROM request_batches WHERE at <= CAST(:at AS bigint)"
_FOREVER: Final = 1 << 62
_log = structlog.get_logger(__name__)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Entry, ...])


class JournalBatches:
    """The batches in one database, which the caller closes. Every method raises `StoreError` when the database
    fails."""

    def __init__(self, tables: Tables, clock: Clock = now) -> None:
        """`clock`: the function that returns the current time on SQLite. PostgreSQL uses the server's clock."""
        self._tables = tables
        self._clock = clock
        self._moved_at = float("-inf")
        self._lock = asyncio.Lock()
        self._outage = Outage(_log, "journal_batches_not_moved", "journal_batches_moved_again")

    def statement(self, entries: Sequence[Entry]) -> Statement | None:
        """Return the statement that stores these entries as one batch. Returns None if the batch would be too large, or
        if an entry has a value that the encoding cannot represent."""
        try:
            body = _encoder.encode(entries)
        except (TypeError, ValueError, OverflowError):
            return None
        if len(body) > _MOST_BYTES:
            return None
        # A repeated write may have more entries than the first one, and is then another batch.
        name = f"{entries[0].id}:{entries[-1].id}"
        named = {"id": name, "entries": len(entries), "body": body, "now_ms": milliseconds(self._clock())}
        return Statement(ADD_BATCH, named)

    async def move(self, seconds: float | None = MOVE_SECONDS) -> None:
        """Move the entries of batches into the table `requests`, newest batch first, for about `seconds`. With None,
        move all that exist now."""
        ends = None if seconds is None else time.monotonic() + seconds
        # Two moves at once in one process would both read the newest batch.
        async with self._lock:
            until = _FOREVER
            while rows := await self._tables.fetch(NEWEST, {"until": until}):
                until = rows[0]["at"]
                await self._move_one(rows[0])
                if ends is not None and time.monotonic() >= ends:
                    return

    async def try_to_move(self, seconds: float | None = MOVE_SECONDS) -> None:
        """Call `move`, and log a failure of the database instead of raising `StoreError`. A reader then sees fewer
        entries."""
        try:
            await self.move(seconds)
        except (StoreError, Unavailable) as error:
            self._outage.failed(cause=str(error))
        else:
            self._outage.recovered()

    async def move_for_reader(self) -> None:
        """Move the newest batches before a reader's query, unless a reader of this process has done this within the
        last second."""
        if time.monotonic() - self._moved_at >= _PAUSE:
            self._moved_at = time.monotonic()
            await self.try_to_move()

    async def waiting(self) -> int:
        """Return the number of entries in batches. Queries of the journal do not see these entries yet."""
        return int((await self._tables.fetch(WAITING, {}))[0][0])

    async def sweep(self, keep: float, most: int) -> int | None:
        """Delete the batches that are older than `keep` seconds. Also delete the batches beyond the newest `most`
        entries of both tables, and return the time in milliseconds until which the caller deletes the rows. Returns
        None if there is no batch, or if no entry is too many."""
        age = {"age": milliseconds(keep), "now_ms": milliseconds(self._clock())}
        await self._tables.run([Statement(FORGET_OLD, age)], again=True)
        if not await self.waiting() or not (rows := await self._tables.fetch(CUT, {"most": most})):
            return None
        await self._tables.run([Statement(FORGET_UNTIL, {"at": rows[0]["at"]})], again=True)
        return int(rows[0]["at"])

    async def _move_one(self, row: Row) -> None:
        try:
            entries = _decoder.decode(row["body"])
        except (msgspec.DecodeError, ValueError) as error:
            _log.error("journal_batch_damaged", batch=row["id"], cause=str(error))
            entries = ()
        unit = [Statement(DELETE, {"id": row["id"]}, rows=1)]
        if entries:
            named = [parameters_of(one, row["at"]) for one in entries]
            unit.append(Statement(INSERT_OF_BATCH, named, many=True, light=True))
        try:
            await self._tables.run(unit, again=True)
        except RowsMissing:
            # Another process has moved this batch.
            return


def parameters_of(entry: Entry, now_ms: int) -> dict[str, object]:
    texts = _texts_of(entry)
    joined = "".join(texts)
    if not joined.isascii() or "\0" in joined or max(map(len, texts)) > _SHORT:
        texts = tuple([_text(text, most) for text, most in zip(texts, _TEXTS.values(), strict=True)])
    named: dict[str, object] = dict(zip(_TEXTS, texts, strict=True))
    for name, value in zip(NUMBERS, _numbers_of(entry), strict=True):
        named[name] = value if type(value) is int and 0 <= value <= _MOST else _number(value)
    named["owner"] = _text(entry.owner, len(entry.owner) * 4)
    named["http_status"] = _number(entry.status)
    named["stored"] = int(entry.stored)
    named["recorded"] = int(entry.recorded)
    named["estimated"] = int(entry.estimated)
    named["took"] = _number(entry.seconds * 1_000_000)
    named["first_at"] = None if entry.first is None else _number(entry.first * 1_000_000)
    named["age"] = _number(entry.age * 1000)
    named["detail"] = _detail(entry.detail)
    named["now_ms"] = now_ms
    return named


def _text(text: str, most: int) -> str:
    # Clients choose some of these texts, which may contain half of a surrogate pair, or a null character. No database
    # can store half of a surrogate pair, and PostgreSQL no null character.
    text = text.replace("\0", "\ufffd")
    return text[:most] if text.isascii() else text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def _number(value: float) -> int:
    return value if type(value) is int and 0 <= value <= _MOST else max(0, min(round(value), _MOST))


def _detail(detail: Detail) -> str:
    try:
        return msgspec.json.encode(detail).decode()
    except (TypeError, ValueError):
        # A field that JSON cannot represent must not make the whole transaction fail. So the store writes only the
        # texts below.
        texts: dict[str, Any] = {name: _text(getattr(detail, name), 1000) for name in ("message", "cause", "advice")}
        return msgspec.json.encode(Detail(**texts)).decode()


_DETAIL = msgspec.json.Decoder(Detail)


def entry_of(row: Row) -> Entry:
    try:
        detail = _DETAIL.decode(row["detail"])
    except msgspec.DecodeError as error:
        raise StoreError(f"the row {row['id']} of the journal is damaged: {error}") from error
    named: dict[str, Any] = {name: row[name] for name in (*_TEXTS, *NUMBERS, "owner")}
    return Entry(
        **named,
        status=row["http_status"],
        stored=bool(row["stored"]),
        recorded=bool(row["recorded"]),
        estimated=bool(row["estimated"]),
        seconds=row["took"] / 1e6,
        first=None if row["first_at"] is None else row["first_at"] / 1e6,
        detail=detail,
        ended_at=row["ended_at"] / 1000,
    )
