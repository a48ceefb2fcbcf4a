"""Token usage and cost of model calls as values, and the port that records them.

Lives here: the values and the port. Not here: prices (`config/upstreams.py`), when sums are written
(`engine/running/usage_recorder.py`), who keeps them (`stores/owner_usage.py`).
"""

from __future__ import annotations

from typing import Literal, Protocol

from msgspec import Struct

from antiphon.engine.ports.actions import Usage

By = Literal["day", "owner", "model", "upstream"]
KEY: tuple[By, ...] = ("day", "owner", "model", "upstream")
"""What tells sums apart."""


class CallUsage(Struct, frozen=True):
    """One model call of an owner's. `estimated`: the upstream said nothing, and the numbers are made of sizes. `cost`
    is in millionths of the prices' currency."""

    owner: str
    model: str
    upstream: str
    usage: Usage
    estimated: bool = False
    cost: int = 0


class UsageSum(Struct):
    """A sum of calls; what was estimated is beside what upstreams counted, `cost` is of both."""

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
        """One call more."""
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

    def join(self, other: UsageSum) -> None:
        """Another sum of the same key."""
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


NUMBERS = tuple(name for name in UsageSum.__struct_fields__ if name not in KEY)
"""What is added up."""


class UsageLedger(Protocol):
    """Who is told of every model call. Never waits, never fails."""

    def note(self, spent: CallUsage) -> None:
        """One call was made."""
