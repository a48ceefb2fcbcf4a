"""A process's budget of bytes and slots for requests in flight, each owner's share, and the refusal beyond it.

Lives here: the budget (of bytes, of places), each owner's share of it, and one request's part. Not here: what a single
request may bring (each limit has a setting of its own), and who takes (the doors: places, bodies; the runner: what a
request refers to; the workers: their jobs).

A budget is asked before, or at once after, something is held; nothing waits for it. Who finds it used up is refused
with a 503, since another moment or another instance will do; who has his share already with a 429, since it is his own
requests that must end first; and what would never fit with a 413, since no other moment will do.

Invariants: a request gives back what it took exactly once, however it ends; no owner is given more than his share,
all together never more than there is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from antiphon.errors import AtCapacity, RequestTooLarge

_MEASURES: Final = {"bytes": "take as much", "requests": "are as many"}


class Budget:
    """So many bytes, or requests; `setting` is the name under which an operator knows them.

    Of these an owner may have `share` (0: all of them), which operators know as `share_setting`. `refused` is told of
    every refusal that another moment would not have seen.
    """

    def __init__(
        self,
        limit: int,
        setting: str,
        *,
        unit: Literal["bytes", "requests"] = "bytes",
        share: int = 0,
        share_setting: str = "",
        refused: Callable[[AtCapacity], None] = lambda _: None,
    ) -> None:
        self.limit = limit
        self.setting = setting
        self.share = share
        self.used = 0
        self._share_setting = share_setting
        self._unit = unit
        self._refused = refused
        self._owners: dict[str, int] = {}

    @property
    def owners(self) -> int:
        """How many owners hold something of their share."""
        return len(self._owners)

    def used_by(self, owner: str) -> int:
        """What the owner holds of his share."""
        return self._owners.get(owner, 0)

    def hold(self, owner: str) -> Hold:
        """A request's part, which is empty at first. What is nobody's (`""`: health) is of no share."""
        return Hold(self, owner if self.share else "")

    def take(self, owner: str, size: int) -> None:
        """Note that so many more are held; `Hold` has checked that they fit."""
        self.used += size
        if owner and size:
            self._owners[owner] = self._owners.get(owner, 0) + size

    def give(self, owner: str, size: int) -> None:
        """Note that so many are held no longer."""
        self.used -= size
        if owner and size:
            left = self._owners[owner] - size
            if left:
                self._owners[owner] = left
            else:
                # Only what is not 0 is kept.
                del self._owners[owner]

    def refuse(self, owner: str = "") -> AtCapacity:
        """The refusal of what would fit at another moment, and a call of `refused`."""
        held = _MEASURES[self._unit]
        if owner:
            full = AtCapacity(
                f"Your requests in flight, background responses that run among them, {held} as this server allows one "
                f"owner at once ({self.share} {self._unit}, '{self._share_setting}'). Wait for some of them to end, "
                "then try again.",
                self._share_setting,
                owner=owner,
            )
        else:
            full = AtCapacity(
                f"The requests in flight {held} as this server allows at once ({self.limit} {self._unit}, "
                f"'{self.setting}'). Try again shortly.",
                self.setting,
            )
        self._refused(full)
        return full

    def too_large(self, *, owner: bool) -> RequestTooLarge:
        """The refusal of what never fits."""
        limit, setting, whose = self.limit, self.setting, ""
        if owner:
            limit, setting, whose = self.share, self._share_setting, " for one owner"
        return RequestTooLarge(
            f"The request takes more by itself than this server allows{whose} at once, with what it refers to ({limit} "
            f"{self._unit}, '{setting}'). Ask for less, or for less at a time.",
            code="request_too_large",
        )


class Hold:
    """What one request holds of a budget; a context manager that gives it back.

    `refusal` is the last one for which another moment will do.
    """

    __slots__ = ("_budget", "_owner", "refusal", "size")

    def __init__(self, budget: Budget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self.size = 0
        self.refusal: AtCapacity | None = None

    def check(self, size: int) -> None:
        """Raise `AtCapacity` unless so many more would fit now, `RequestTooLarge` if they never would."""
        budget, owner = self._budget, self._owner
        if owner and budget.used_by(owner) + size > budget.share:
            if self.size + size > budget.share:
                raise budget.too_large(owner=True)
            self.refusal = budget.refuse(owner)
            raise self.refusal
        if budget.used + size > budget.limit:
            if self.size + size > budget.limit:
                raise budget.too_large(owner=False)
            self.refusal = budget.refuse()
            raise self.refusal

    def add(self, size: int) -> None:
        """Hold so many more; raises like `check` where there is no room."""
        self.check(size)
        self._budget.take(self._owner, size)
        self.size += size

    def close(self) -> None:
        """Give everything back."""
        size, self.size = self.size, 0
        self._budget.give(self._owner, size)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
