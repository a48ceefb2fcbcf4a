"""Limits the bytes and the number of all requests in flight in a process, and how much of them one owner may use.

A process has one budget of bytes and one of requests. Each request in flight reserves a part of both budgets. An
owner's share is the largest part of a budget that the owner's requests may reserve together.

The HTTP and ext_proc servers reserve the budget for requests and bodies. The runner reserves bytes for the stored
objects that a request refers to. Workers reserve the budget for background jobs.

A caller reserves bytes before it allocates memory, or directly after the allocation. No request waits for free budget.
A request that does not fit into a budget gets one of these errors:

- 503 when the budget is used up: the client can retry later or at another instance.

- 429 when the owner's share is used up: some of the owner's other requests must end before a retry.

- 413 when the request exceeds the whole budget or share, so a retry cannot succeed.

Invariants: A request releases its reservation exactly once, however the request ends. No owner reserves more than the
owner's share. All owners together reserve at most the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from antiphon.errors import AtCapacity, RequestTooLarge


class Budget:
    """A limit of bytes or of requests in flight for all owners. `setting` is the name of the setting for this limit.

    One owner may reserve at most `share` of the budget (0: the whole budget). `share_setting` is the name of the
    setting for the share. The budget calls `refused` with each error after which a retry may succeed.
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
        """The number of owners with requests that reserve a part of the budget. Always 0 if `share` is 0, because then
        the budget does not count by owner."""
        return len(self._owners)

    def used_by(self, owner: str) -> int:
        """The number of bytes or requests that the owner's requests reserve."""
        return self._owners.get(owner, 0)

    def hold(self, owner: str) -> Hold:
        """Create an empty reservation for one request. A request without an owner (`""`, such as a health check) counts
        toward no owner's share."""
        return Hold(self, owner if self.share else "")

    def take(self, owner: str, size: int) -> None:
        """Add `size` to the reserved bytes or requests. The caller, `Hold.add`, has checked that `size` fits."""
        self.used += size
        if owner and size:
            self._owners[owner] = self._owners.get(owner, 0) + size

    def give(self, owner: str, size: int) -> None:
        """Subtract `size` from the reserved bytes or requests."""
        self.used -= size
        if owner and size:
            left = self._owners[owner] - size
            if left:
                self._owners[owner] = left
            else:
                # The dict has only owners whose requests hold a part of the budget.
                del self._owners[owner]

    def refuse(self, owner: str = "") -> AtCapacity:
        """Return the error for a request that may fit later, and call `refused` with the error. The caller passes
        `owner` if the owner's share is used up, and an empty string if the whole budget is used up."""
        if owner:
            full = AtCapacity(
                f"Your requests in flight, including running background responses, have reached this server's limit "
                f"for one owner ({self.share} {self._unit}, '{self._share_setting}'). Wait until some of them end, "
                "then try again.",
                self._share_setting,
                owner=owner,
            )
        else:
            full = AtCapacity(
                f"The requests in flight have reached this server's limit ({self.limit} {self._unit}, "
                f"'{self.setting}'). Try again shortly.",
                self.setting,
            )
        self._refused(full)
        return full

    def too_large(self, *, owner: bool) -> RequestTooLarge:
        """Return the error for a request that is larger than the whole budget. With `owner`, the error is for a request
        that is larger than an owner's share."""
        limit, setting, whose = self.limit, self.setting, ""
        if owner:
            limit, setting, whose = self.share, self._share_setting, " for one owner"
        return RequestTooLarge(
            f"This request and the objects that it refers to exceed this server's limit{whose} ({limit} {self._unit}, "
            f"'{setting}'). Send a smaller request, or split it.",
            code="request_too_large",
        )


class Hold:
    """The part of a budget that one request reserves. The end of a `with` block releases the reservation.

    `refusal` is the last error that `check` raised and after which a retry may succeed.
    """

    __slots__ = ("_budget", "_owner", "refusal", "size")

    def __init__(self, budget: Budget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self.size = 0
        self.refusal: AtCapacity | None = None

    def check(self, size: int) -> None:
        """Raise `AtCapacity` if `size` more bytes or requests do not fit at present. Raise `RequestTooLarge` if this
        size can never fit."""
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
        """Reserve `size` more bytes or requests. Raises the errors of `check` when the size does not fit."""
        self.check(size)
        self._budget.take(self._owner, size)
        self.size += size

    def close(self) -> None:
        """Release this request's reservation. A second call has no effect."""
        size, self.size = self.size, 0
        self._budget.give(self._owner, size)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
