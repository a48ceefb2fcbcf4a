"""Defines token usage and cost of model calls as values, and the port that records them.

This module also parses the query by which an operator reads sums of usage. Not here: prices (`config/upstreams.py`),
the code that writes sums (`engine/running/usage_recorder.py`), their storage (`stores/owner_usage.py`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, Protocol, cast

from msgspec import Struct, structs

from antiphon.engine.ports.actions import Usage

By = Literal["day", "month", "owner", "team", "model", "upstream"]
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
KEY: tuple[By, ...] = ("day", "owner", "model", "upstream")
"""The fields that identify a stored `UsageSum`."""
GROUPS: tuple[By, ...] = ("day", "month", "owner", "team", "model", "upstream")
"""The fields by which operators can group sums."""


class CallUsage(Struct, frozen=True):
    """The token usage and the cost of one model call of an owner.

    `estimated` is true when the upstream returned no usage. The sidecar then estimated the counts from the sizes of the
    call and its answer. `cost` is in millionths of the prices' currency.
    """

    owner: str
    model: str
    upstream: str
    usage: Usage
    estimated: bool = False
    cost: int = 0


class OwnerName(Struct, frozen=True):
    """The readable name of an owner, and the owner's team. `team` is empty if the team is unknown."""

    name: str
    team: str = ""


FindNames = Callable[[Sequence[str]], Awaitable[Mapping[str, OwnerName]]]
"""Finds the names of owners by their ids. The result omits owners that have no name. Raises `StoreError`."""
_NO_NAMES: Mapping[str, OwnerName] = {}


class _Group(Struct, kw_only=True):
    month: str = ""
    team: str = ""


class UsageSum(_Group):
    """The sum of the usage of all model calls with the same `KEY` fields.

    `day` is a day in UTC (`YYYY-MM-DD`), and `owner` an owner id. Only a sum that is grouped by `month` (`YYYY-MM`) or
    by `team` has this field, instead of `day` or `owner`. Calls with estimated token counts are counted only in
    the `estimated_…` fields. `cost` is the cost of all calls, in millionths of the prices' currency.
    """

    day: str = ""
    owner: str = ""
    model: str = ""
    upstream: str = ""
    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_calls: int = 0
    estimated_input_tokens: int = 0
    estimated_output_tokens: int = 0
    cost: int = 0

    def add(self, spent: CallUsage) -> None:
        """Add the usage of one model call to this sum."""
        usage = spent.usage
        self.cost += spent.cost
        if spent.estimated:
            self.estimated_calls += 1
            self.estimated_input_tokens += usage.input_tokens
            self.estimated_output_tokens += usage.output_tokens
            return
        self.calls += 1
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cached_tokens
        self.output_tokens += usage.output_tokens
        self.reasoning_tokens += usage.reasoning_tokens

    def shown(self, by: Sequence[By], names: Mapping[str, OwnerName] = _NO_NAMES) -> dict[str, str | float]:
        """Return the sum for an operator. The result has the key fields in `by`, the counts of calls and tokens, and
        the cost in the prices' currency.

        If sums are grouped by owner, `names` adds the owner's name and team as `owner_name` and `team`.
        """
        told = structs.asdict(self)
        named = {name: value for name, value in told.items() if name in by or name not in GROUPS}
        found = names.get(self.owner)
        whose = {} if found is None else {"owner_name": found.name, **({"team": found.team} if found.team else {})}
        return {**named, "cost": self.cost / 1e6, **whose}

    def join(self, other: UsageSum) -> None:
        """Add another sum that has the same `KEY` fields."""
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


NUMBERS = tuple(name for name in UsageSum.__struct_fields__ if name not in GROUPS)
"""The numeric fields of a sum, which `join` and the stores add up."""


def read_by(text: str) -> tuple[By, ...]:
    """Parse a comma-separated list of the fields in `GROUPS` by which sums are grouped: `day, model` gives `("day",
    "model")`.

    Raises `ValueError` with the first unknown name.
    """
    named = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in named:
        if name not in GROUPS:
            raise ValueError(name)
    return cast("tuple[By, ...]", named)


def day_start(text: str) -> float | None:
    """Return the time at which a day begins in UTC, in seconds since the epoch: `2026-01-31` gives `1769817600.0`.

    Returns None for a text that is no day in the form `YYYY-MM-DD`.
    """
    try:
        # `fromisoformat` accepts other forms too, which sort wrong among stored days.
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() if _DAY.fullmatch(text) else None
    except ValueError:
        return None


class UsageLedger(Protocol):
    """Records the usage of every model call. The ledger never blocks or raises."""

    def note(self, spent: CallUsage) -> None:
        """Record the usage of one call."""
