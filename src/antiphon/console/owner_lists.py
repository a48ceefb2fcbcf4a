"""Helps the pages that list one owner's objects. An operator chooses the owner, and the module splits a long list into
pages.

This module also raises the errors for a missing owner and for disabled parts of the API. The views (`views/`) read the
lists.

Invariant: each page of a list shows how many entries the whole list has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from antiphon.api.http import ApiResponse
from antiphon.console.formats import owner_name
from antiphon.console.reading import OwnerSum, Reading
from antiphon.console.site import PageCall, redirect
from antiphon.engine.ports.callers import NAMED
from antiphon.engine.ports.journal import EntrySum
from antiphon.errors import ApiError, InvalidRequest, NotFound

MOST: Final = 10_000_000
_OWNERS: Final = 200
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class ListPart(Generic[_Row]):
    """A page of a list. `first` is the number of the page's first entry, counted from 1. `more` is true if the list has
    more than `total` entries. `following` is the number of the next page's first entry, or 0 on the last page. `after`
    is the cursor of the next page, if the list has cursors."""

    items: Sequence[_Row]
    first: int
    total: int
    more: bool = False
    following: int = 0
    after: str = ""

    @property
    def last(self) -> int:
        """The number of the last entry of this page."""
        return self.first + len(self.items) - 1


def part_of(call: PageCall, items: Sequence[_Row], *, more: bool = False, per_page: int = 50) -> ListPart[_Row]:
    """Return one page of the list. The query parameter `from` is the number of the page's first entry. Raises
    `InvalidRequest`."""
    first = call.number("from", 1, least=1, most=MOST)
    shown = items[first - 1 : first - 1 + per_page]
    following = first + per_page if first - 1 + per_page < len(items) else 0
    return ListPart(shown, first, len(items), more, following)


@contextmanager
def needs(setting: str, what: str) -> Iterator[None]:
    """Replace the error 404 of an endpoint that a setting disables by an error that names the setting."""
    try:
        yield
    except ApiError as error:
        if error.code != "unknown_url":
            raise
        raise NotFound(
            f"This server has no {what}. An operator can enable this feature with the setting '{setting}'.",
            code="not_enabled",
        ) from None


async def choose_owner(call: PageCall, reading: Reading, title: str, counted: str = "") -> ApiResponse:
    """Return the page on which an operator chooses an owner, or only the page's list of owners. The list has the owners
    with objects in the view `counted` (by default `title`), and owners that sent requests. The field of the page takes
    an owner's id or name, and the answer then redirects to the data of this owner."""
    view = counted or title

    async def compute() -> Sequence[OwnerSum]:
        sums = {one.name: one for one in await reading.journal.sums(by="owner")}
        objects = await reading.counts[view]() if view in reading.counts else {}
        found = [
            OwnerSum(name, objects.get(name, 0), sums.get(name) or EntrySum(name))
            for name in dict.fromkeys([*objects, *sums])
        ]
        return sorted(found, key=lambda one: (-one.objects, -one.requests.requests, one.name))[:_OWNERS]

    if name := call.query("who").strip():
        known = [one.name for one in await reading.owner_sums.whole(view, compute)]
        return redirect(call.same(owner=owner_id(name, known), who=""))
    values: dict[str, object] = {"objects": view.lower()}
    if call.fragment:
        return call.show("choose_owner_rows.html", values, owners=await reading.owner_sums.whole(view, compute))
    owners = await reading.owner_sums.shown(call, view, compute)
    return call.show("choose_owner.html", values, title=title, owners=owners)


def owner_id(name: str, known: Sequence[str]) -> str:
    """Return the id of the owner that an operator named. `known` are ids of owners. A name that is in no known id is
    the name of a client key's owner."""
    if ":" in name or name in known:
        return name
    return next((one for one in known if owner_name(one) == name), NAMED + name)


def check_owner(call: PageCall) -> None:
    """Raise `InvalidRequest` if the request for a change does not select an owner."""
    if not call.owner:
        raise InvalidRequest("Choose an owner before you change data.", code="missing_owner")
