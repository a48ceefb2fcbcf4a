"""Builds the statements that store a response on SQLite, and the statements that delete this response if its client got
an error.

Lives here: the INSERT and UPDATE statements of a stored response, and their values. Not here: the handling of a failed
write (`responses.py`), reading and deleting responses (`../responses.py`), running the statements (`units.py`).

Storing a response always runs these statements, so they must be cheap. Python's sqlite3 module looks up each named
parameter on every call. The module also searches for an adapter for each `None` and `bytes` value. This search costs
more than binding the value. So parameters are positional, INSERTs leave out NULL columns, and a small body is a
`bytearray`.

Invariant: a response with a predecessor is stored only if the predecessor exists and has the same owner. The INSERT
statement itself checks the predecessor and its owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.stores.conversations import RELEASE
from antiphon.stores.responses import DELETE, DELETE_LAST_OF_CHAIN
from antiphon.stores.sqlite.units import Insertion, Rows, Step
from antiphon.stores.tables import Statement, milliseconds

_LIGHT: Final = 16 << 10
"""The maximum bytes of a response whose rows may share an INSERT statement with rows of other responses."""

# A new chain of responses has the same id as its first response, which is unique.
CHAINS: Final = Insertion("INSERT INTO chains (id, owner, updated_at) VALUES", "(?, ?, ?)")

_OWN: Final = "own_bytes, status, model, created_at, completed_at, input_tokens, output_tokens, body"
_VALUES: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
FIRST_RESPONSES: Final = Insertion(
    f"INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, {_OWN}) VALUES", _VALUES
)

# Inserts no row when the predecessor was deleted, belongs to another owner, or is in a chain under deletion
# (`expires_at` set). If a row is not inserted, the whole write fails with `RowsMissing`.
NEXT_RESPONSES: Final = Insertion(
    f"""
INSERT INTO responses (id, owner, chain_id, prev_id, history_items, history_bytes, {_OWN})
SELECT given.column1, given.column2, prev.chain_id, prev.id, prev.history_items + given.column4,
       prev.history_bytes + given.column5, given.column6, given.column7, given.column8, given.column9, given.column10,
       given.column11, given.column12, given.column13
FROM (VALUES""",
    _VALUES,
    """) given CROSS JOIN responses prev ON prev.id = given.column3 AND prev.owner = given.column2
WHERE (SELECT expires_at FROM chains WHERE chains.id = prev.chain_id) IS NULL
""",
)

TOUCH_CHAIN: Final = """
UPDATE chains SET updated_at = max(updated_at, ?1) WHERE id = (SELECT chain_id FROM responses WHERE id = ?2)
"""

ITEMS: Final = Insertion(
    "INSERT INTO response_items (response_id, dir, seq, item_id, type, body) VALUES", "(?, ?, ?, ?, ?, ?)"
)
SHOWN_ITEMS: Final = Insertion(
    "INSERT INTO response_items (response_id, dir, seq, item_id, type, body, shown) VALUES", "(?, ?, ?, ?, ?, ?, ?)"
)

INSERT_IN_CONVERSATION: Final = f"""
INSERT INTO responses (id, owner, chain_id, history_items, history_bytes, {_OWN}, conversation_id, conversation_pos)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,
        (SELECT next_pos - ?15 FROM conversations WHERE owner = ?2 AND id = ?14))
"""

# Only the response that holds the conversation's lock may add items. This statement reserves the positions of the items
# and releases the lock.
JOIN_CONVERSATION: Final = """
UPDATE conversations SET next_pos = next_pos + :joining, updated_at = max(updated_at, :at),
                         locked_by = NULL
WHERE owner = :owner AND id = :conversation_id AND locked_by = :id
"""
INSERT_CONVERSATION_ITEMS: Final = """
INSERT INTO conversation_items (owner, conversation_id, pos, item_id, type, response_id, body, shown)
SELECT :owner, :conversation_id, r.conversation_pos + row_number() OVER (ORDER BY i.dir, i.seq) - 1,
       i.item_id, i.type, r.id, i.body, i.shown
FROM responses r CROSS JOIN response_items i ON i.response_id = r.id WHERE r.id = :id
"""

# Part of `unsave_steps`: the client got an error, so the response's items must not stay in the conversation.
LEAVE_NOTHING: Final = """
DELETE FROM conversation_items
WHERE owner = :owner AND conversation_id = :conversation_id AND response_id = :id
"""


def save_steps(record: ResponseRecord) -> list[Step]:
    """Return the SQL statements and rows that insert a response and its items, which the writer runs as one unit
    (`units.py`)."""
    given, answered, body, usage = record.input_items, record.output_items, record.body, record.usage
    size = sum([item.size for item in (*given, *answered)])
    own = size + len(body)
    light = own <= _LIGHT
    created = at = milliseconds(record.created_at)
    completed: int | None = None
    if record.completed_at is not None:
        completed = at = milliseconds(record.completed_at)
    previous, conversation = record.previous_response_id, record.conversation_id
    count = len(given) + len(answered)
    values = (
        record.id,
        record.owner,
        # The chain's id if the response is the first of a chain, else the predecessor's id.
        record.id if previous is None else previous,
        max(1, count),
        size,
        own,
        record.status,
        record.model,
        created,
        completed,
        usage.input_tokens if usage is not None else None,
        usage.output_tokens if usage is not None else None,
        bytearray(body) if light else body,
    )
    steps: list[Step]
    if previous is not None:
        steps = [Rows(NEXT_RESPONSES, values, light), touch_chain(record.id, at)]
    else:
        steps = [Rows(CHAINS, (record.id, record.owner, at), light)]
        if conversation is None:
            steps.append(Rows(FIRST_RESPONSES, values, light))
    if conversation is None:
        steps.append(item_rows(record.id, (given, answered), light=light))
        return steps
    return _with_conversation(record, steps, values, count, at)


def _with_conversation(
    record: ResponseRecord, steps: list[Step], values: tuple[object, ...], count: int, at: int
) -> list[Step]:
    """Return the SQL statements and rows that insert a response that runs on a conversation."""
    joins = record.joins_conversation
    named = {
        "id": record.id,
        "owner": record.owner,
        "conversation_id": record.conversation_id,
        "joining": count if joins else 0,
        "at": at,
    }
    if record.previous_response_id is None:
        steps.append(Statement(INSERT_IN_CONVERSATION, (*values, record.conversation_id, named["joining"])))
    steps.append(item_rows(record.id, (record.input_items, record.output_items)))
    if joins:
        # JOIN_CONVERSATION comes first: it advances `next_pos`, from which the response's row computes where its items
        # begin.
        return [Statement(JOIN_CONVERSATION, named, rows=1), *steps, Statement(INSERT_CONVERSATION_ITEMS, named)]
    # A failed response adds no items, because the client's retry adds its input items again. The step RELEASE releases
    # the conversation's lock.
    return [*steps, Statement(RELEASE, named)]


def touch_chain(response_id: str, at: int) -> Statement:
    """Return the SQL statement that sets the time of last use of the response's chain. `at`: milliseconds since the
    epoch."""
    return Statement(TOUCH_CHAIN, (at, response_id), rows=1)


def item_rows(response_id: str, sides: Sequence[Sequence[StoredItem]], *, light: bool = False, first: int = 0) -> Rows:
    """Return the rows of a response's items. `sides` has the input items, then the output items. With `first=1`,
    `sides` has only the output items."""
    values: list[object] = []
    shown: list[object] = []
    for direction, side in enumerate(sides, first):
        for seq, item in enumerate(side):
            body = bytearray(item.body) if light else item.body
            values.extend((response_id, direction, seq, item.id, item.type, body))
            shown.append(item.shown)
    if all(each is None for each in shown):
        return Rows(ITEMS, tuple(values), light)
    width = ITEMS.width
    rows = [(*values[at * width : (at + 1) * width], each) for at, each in enumerate(shown)]
    return Rows(SHOWN_ITEMS, tuple([value for row in rows for value in row]), light)


def unsave_steps(record: ResponseRecord) -> list[Step]:
    """Return the SQL statements that undo `save_steps`. The writer runs these statements when the commit succeeds after
    the client got an error."""
    named = {"id": record.id, "owner": record.owner, "conversation_id": record.conversation_id}
    gone: list[Step] = [Statement(DELETE_LAST_OF_CHAIN, named), Statement(DELETE, named)]
    return [Statement(LEAVE_NOTHING, named), *gone] if record.joins_conversation else gone
