"""Lets an operator choose the owner whose data a page shows.

Lives here: the list of owners. Not here: the pages that need an owner (`views/`).
"""

from __future__ import annotations

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import Call
from antiphon.errors import InvalidRequest


async def choose_owner(call: Call, reading: Reading, title: str) -> ApiResponse:
    """The page on which an operator chooses one of the owners that sent requests."""
    owners = await reading.journal.sums(by="owner")
    return call.show("choose_owner.html", title=title, owners=owners)


def check_owner(call: Call) -> None:
    """Raise `InvalidRequest` if a change names no owner."""
    if not call.owner:
        raise InvalidRequest("Choose an owner before you change data.", code="missing_owner")
