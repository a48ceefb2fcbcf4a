"""Saves responses in a loop until it is killed: `python store_crash_child.py DATA PREFIX`.

The program prints the id of each response after `save` has returned, one line in one write.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.stores.sqlite.backend import open_sqlite

_WRITERS = 12
_TEXT = b"x" * 1500


def record(name: str, prev_id: str | None, turn: int) -> ResponseRecord:
    """A response whose body contains the number of its items."""
    items = tuple(StoredItem(f"msg_{name}_{n}", "message", _TEXT) for n in range(turn % 6))
    return ResponseRecord(
        id=f"resp_{name}",
        owner="o",
        previous_response_id=prev_id,
        status="completed",
        model="m",
        created_at=float(turn),
        completed_at=float(turn),
        body=str(len(items)).encode(),
        input_items=items[: turn % 3],
        output_items=items[turn % 3 :],
    )


async def _write(data: Path, prefix: str) -> None:
    store = (await open_sqlite(data, chain_items=1_000_000)).responses

    async def chain(writer: int) -> None:
        prev_id = None
        turn = 0
        while True:
            saved = record(f"{prefix}_{writer}_{turn}", prev_id, turn)
            await store.save(saved)
            os.write(1, saved.id.encode() + b"\n")
            turn += 1
            prev_id = saved.id if turn % 20 else None

    await asyncio.gather(*[chain(writer) for writer in range(_WRITERS)])


if __name__ == "__main__":
    asyncio.run(_write(Path(sys.argv[1]), sys.argv[2]))
