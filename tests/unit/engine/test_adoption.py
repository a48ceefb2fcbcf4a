"""What a process does with the data of a token whose key has a named owner."""

from __future__ import annotations

import asyncio
import hashlib

from structlog.testing import capture_logs

from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.state import NotMovable
from antiphon.engine.running.adoption import Adoption

ANNA = Caller("n:anna", "anna", key_id="key_1")


class _Owners:
    """The moves that were asked for. The first `refusals` fail."""

    def __init__(self, *owners: str, refusals: int = 0) -> None:
        self.owners = set(owners)
        self.refusals = refusals
        self.moves: list[tuple[str, str]] = []
        self.asked = asyncio.Semaphore(0)

    async def has_data(self, owner: str) -> bool:
        self.asked.release()
        return owner in self.owners

    async def move(self, old: str, new: str) -> None:
        self.moves.append((old, new))
        if len(self.moves) <= self.refusals:
            raise NotMovable("Both owners have files: f.")
        self.owners.discard(old)


async def test_the_first_request_with_a_token_moves_its_data() -> None:
    owners = _Owners("b:one")
    adoption = Adoption(owners.has_data, owners.move)
    with capture_logs() as lines:
        adoption.start()
        adoption.presented(ANNA, "b:one")
        adoption.presented(Caller("n:bo", key_id="key_2"), "b:two")
        for _ in range(2):
            await owners.asked.acquire()
        await adoption.aclose()
    assert owners.moves == [("b:one", "n:anna")] and adoption.seen == {"key_1", "key_2"}
    assert [(line["event"], line["owner"], line["former"]) for line in lines] == [("owner_adopted", "n:anna", "b:one")]


async def test_a_refused_move_is_tried_again_with_one_line() -> None:
    owners = _Owners("b:one", refusals=2)
    adoption = Adoption(owners.has_data, owners.move, retry=0.0)
    with capture_logs() as lines:
        adoption.start()
        adoption.presented(ANNA, "b:one")
        async with asyncio.timeout(30):
            while owners.owners:
                await asyncio.sleep(0)
        await adoption.aclose()
    assert len(owners.moves) == 3
    assert [line["event"] for line in lines if "cause" in line] == ["owner_not_adopted"]
    assert lines[0]["cause"] == "Both owners have files: f."


async def test_the_door_notes_each_key_once_and_only_keys_of_named_owners() -> None:
    noted: list[tuple[str, str]] = []

    class Adopts:
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def presented(self, caller: Caller, old: str) -> None:
            self.seen.add(caller.key_id)
            noted.append((caller.owner, old))

    keys = {hashlib.sha256(b"named").digest(): ANNA, hashlib.sha256(b"bare").digest(): Caller("", key_id="key_9")}
    resolver = OwnerResolver("bearer", key=b"k", client_keys=keys, adopts=Adopts())
    bare = OwnerResolver("bearer", key=b"k")
    for token in ("named", "named", "bare"):
        resolver.resolve((("authorization", f"Bearer {token}"),))
    assert noted == [("n:anna", bare.resolve((("authorization", "Bearer named"),)).owner)]
