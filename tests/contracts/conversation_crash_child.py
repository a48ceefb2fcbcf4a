"""Runs turns in conversations as fast as possible until it is killed, and prints the id of each acknowledged response.

Run it as `python conversation_crash_child.py DATA PREFIX`. Each line of output is one id.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from pathlib import Path

from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from tests.contracts.store_contract import item, record

OWNER = "o"
CONVERSATIONS = 8


async def take_turns(stores: SqliteStores, prefix: str, number: int) -> None:
    conversation = f"conv_{number}"
    turn = 0
    while True:
        name = f"{prefix}_{number}_{turn}"
        items = tuple(item(f"msg_{name}_{n}") for n in range(turn % 4 + 1))
        made = dataclasses.replace(
            record(name, owner=OWNER, inputs=items, outputs=turn % 3),
            body=str(len(items) + turn % 3).encode(),
            conversation_id=conversation,
            status="failed" if turn % 7 == 6 else "completed",
        )
        # With a lease of zero seconds, the lock of a dead process is free immediately.
        found = await stores.conversations.load(OWNER, conversation, holder=made.id, seconds=0.0, create=True)
        assert found is not None
        await stores.responses.save(made)
        print(made.id, flush=True)
        turn += 1


async def main(data: str, prefix: str) -> None:
    stores = await open_sqlite(Path(data), chain_items=1_000_000)
    await asyncio.gather(*[take_turns(stores, prefix, number) for number in range(CONVERSATIONS)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
