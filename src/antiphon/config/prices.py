"""What models cost.

Lives here: this section of the settings, and the cost of a call. Not here: where costs are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

from pydantic import Field

from antiphon.config.section import Section

_HIGHEST = 1e9


class PriceSettings(Section):
    """What a million tokens cost, in any one currency."""

    model: str
    """A model's name as clients ask for it, or a pattern (`gpt-5*`); the first entry that fits counts."""
    input: float = Field(ge=0, le=_HIGHEST)
    """A million tokens of input."""
    output: float = Field(ge=0, le=_HIGHEST)
    """A million tokens of output, reasoning among them."""
    cached_input: float | None = Field(default=None, ge=0, le=_HIGHEST)
    """A million tokens of input that the upstream had cached; unset: like all input."""

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """In millionths of the currency; `cached_tokens` are among `input_tokens`. (Some upstreams count them beside: a
        cost is never below nothing for that.)"""
        cached_tokens = min(cached_tokens, input_tokens)
        cached = self.input if self.cached_input is None else self.cached_input
        read = (input_tokens - cached_tokens) * self.input + cached_tokens * cached
        return round(read + output_tokens * self.output)


def price_of(prices: Sequence[PriceSettings]) -> Callable[[str], PriceSettings | None]:
    """What finds a model's price; None where there is none."""

    @lru_cache(1024)
    def find(model: str) -> PriceSettings | None:
        return next((one for one in prices if fnmatchcase(model, one.model)), None)

    return find
