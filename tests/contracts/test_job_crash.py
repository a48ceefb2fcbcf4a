"""Kills a process while it queues, streams and ends responses, and checks that each is complete or can be rerun."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from antiphon.engine.ports.jobs import EventPiece, count_events
from antiphon.stores.sqlite.backend import SESSIONS_FILE
from tests.contracts import job_crash_child
from tests.contracts.killed import killed_at_work

_ROUNDS = 8


def check(data: Path, words: list[list[str]]) -> None:
    with closing(sqlite3.connect(data / SESSIONS_FILE)) as database:
        states = dict(database.execute("SELECT id, status FROM responses"))
        jobs = {row[0] for row in database.execute("SELECT response_id FROM jobs")}
        outputs = dict(
            database.execute("SELECT response_id, count(*) FROM response_items WHERE dir = 1 GROUP BY response_id")
        )
        streams: dict[str, list[EventPiece]] = {}
        for response_id, last, piece in database.execute(
            "SELECT response_id, last_seq, data FROM response_events ORDER BY response_id, last_seq"
        ):
            streams.setdefault(response_id, []).append(EventPiece(last, piece))
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    for response_id, status in states.items():
        # A completed response has no job and all its output. Any other response has a job and no output.
        over = status == "completed"
        assert over != (response_id in jobs) and outputs.get(response_id, 0) == (3 if over else 0)
        last = -1
        for number, piece in enumerate(streams[response_id]):
            first = piece.last - count_events(piece.data) + 1
            # A later attempt appends its events after those of an earlier attempt.
            assert first == last + 1 if number != 1 else first > last
            last = piece.last
    for what, response_id, *numbers in words:
        if what == "finished":
            assert states[response_id] == "completed"
        elif what == "appended":
            assert streams[response_id][-1].last >= int(numbers[0])
        else:
            assert response_id in states


@pytest.mark.slow
def test_kill_9_leaves_every_response_whole_or_to_be_run_again(tmp_path: Path) -> None:
    chance = random.Random(21)  # The moment of the kill within a commit is still random.
    words: list[list[str]] = []
    for number in range(_ROUNDS):
        lines = killed_at_work(job_crash_child, tmp_path, f"r{number}", chance.randrange(50, 500))
        words += [line.split() for line in lines]
        check(tmp_path, words)
    assert {what for what, *_ in words} == {"queued", "appended", "finished"}
