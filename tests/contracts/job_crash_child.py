"""Queues, runs and ends jobs in a loop until it is killed: `python job_crash_child.py DATA PREFIX`.

The program prints each acknowledgement as one line in one write: `queued ID`, `appended ID NUMBER`, `finished ID`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from antiphon.stores.sqlite.backend import open_sqlite
from tests.contracts.job_contract import EVENTS, finished, piece, queued

_WRITERS = 6
_PIECES = 4


async def _work(data: Path, prefix: str) -> None:
    stores = await open_sqlite(data, chain_items=1000)
    jobs = stores.background

    async def queue(writer: int) -> None:
        number = 0
        while True:
            record = queued(f"{prefix}_{writer}_{number}")
            await jobs.enqueue(record, b"{}", EVENTS, limit=1 << 30)
            os.write(1, f"queued {record.id}\n".encode())
            number += 1

    async def run(writer: int) -> None:
        worker = f"worker_{prefix}_{writer}"
        while True:
            # The next process takes over half of these jobs, because their leases expire before it starts.
            for job in await jobs.claim(worker, 0.2 if writer % 2 else 1000.0, 3):
                last, restart = job.last_event, True
                for _ in range(_PIECES):
                    if not await jobs.append(worker, job.response_id, piece(last + 1, last + 3), restart=restart):
                        break
                    last, restart = last + 3, False
                    os.write(1, f"appended {job.response_id} {last}\n".encode())
                done = replace(finished(job.response_id.removeprefix("resp_"), outputs=3), owner=job.owner)
                if await jobs.finish(worker, done, piece(last + 1, last + 1)):
                    os.write(1, f"finished {job.response_id}\n".encode())

    async with asyncio.TaskGroup() as group:
        for writer in range(_WRITERS):
            group.create_task(queue(writer))
            group.create_task(run(writer))


if __name__ == "__main__":
    asyncio.run(_work(Path(sys.argv[1]), sys.argv[2]))
