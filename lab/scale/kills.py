"""Runs conversations while replicas and the state's server are killed: each acknowledged turn must exist once, and no
client may hang.

Lives here: the run and its verdict. Not here: the kills (`chaos.py`), the conversations (`talks.py`).

After the kills the run reads every acknowledged response, and compares every conversation with its acknowledged turns.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from lab.scale.chaos import chaos
from lab.scale.replicas import Replicas
from lab.scale.report import Report, milliseconds
from lab.scale.states import State
from lab.scale.talks import Talks


@dataclass
class Run:
    """The parameters of a run. `turns` is the total number of turns, and `length` the number in one conversation."""

    replicas: Replicas
    state: State
    turns: int
    length: int
    clients: int
    chance: random.Random
    replica_every: float = 4.0
    state_every: float = 15.0


async def kills(run: Run) -> Report:
    """Run the conversations. The report has the numbers of lost, doubled and hung turns."""
    talks = Talks(run.replicas, run.turns, run.length, run.clients, run.chance)
    seen, began = talks.seen, time.monotonic()
    async with chaos(
        run.replicas, run.state, run.chance, replica_every=run.replica_every, state_every=run.state_every
    ) as killed:
        await talks.all()
        took = time.monotonic() - began
    await talks.check()
    seen.wrong += run.replicas.failed
    acknowledged = talks.acknowledged
    title = f"Turns on {len(run.replicas)} replicas that are killed"
    report = Report(title, ("acknowledged turns", str(acknowledged)), wrong=seen.wrong)
    report.row("of them in conversations", sum(len(talk.acknowledged) for talk in talks.talks if talk.conversation))
    report.row("turns a second", acknowledged / took)
    report.row("replicas killed", killed.replicas)
    report.row("servers of the state killed", killed.states)
    report.row("attempts beyond the first", seen.attempts - acknowledged)
    report.row("a turn with all its attempts, p50 / p99 / longest", milliseconds(seen.lasted))
    report.row("lost", seen.lost)
    report.row("doubled in a conversation", seen.doubled)
    report.row("hung", seen.hung)
    if acknowledged != len(talks.talks) * run.length:
        report.wrong.append(f"{len(talks.talks) * run.length - acknowledged} turns were never acknowledged")
    return report
