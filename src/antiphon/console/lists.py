"""Cuts lists into pages, and explains what the settings disable.

Lives here: a page of a list, and the error for parts of the API that do not exist. Not here: the lists themselves
(`views/`), the choice of an owner (`owners.py`).

Invariant: a part of a list knows how many entries the whole list has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from antiphon.console.site import Call
from antiphon.errors import ApiError, NotFound

MOST: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class ListPart:
    """A page of a list. `first` is the number of its first entry, from 1. `more`: the list has more than `total`
    entries. `following` is the number of the next page's first entry, 0 on the last page. `after` is the cursor of the
    next page, if the list has cursors."""

    items: Sequence[Any]
    first: int
    total: int
    more: bool = False
    following: int = 0
    after: str = ""

    @property
    def last(self) -> int:
        """The number of the last entry of this page."""
        return self.first + len(self.items) - 1


def part_of(call: Call, items: Sequence[Any], *, more: bool = False, per_page: int = 50) -> ListPart:
    """The page of the list that the query parameter `from` names. Raises `InvalidRequest`."""
    first = call.number("from", 1, least=1, most=MOST)
    shown = items[first - 1 : first - 1 + per_page]
    following = first + per_page if first - 1 + per_page < len(items) else 0
    return ListPart(shown, first, len(items), more, following)


@contextmanager
def needs(setting: str, what: str) -> Iterator[None]:
    """Explain the error of an endpoint that does not exist because a setting disables it."""
    try:
        yield
    except ApiError as error:
        if error.code != "unknown_url":
            raise
        raise NotFound(
            f"This server has no {what}. An operator can enable them with the setting '{setting}'.", code="not_enabled"
        ) from None
