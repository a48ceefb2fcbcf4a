"""How much a property tries, by the tier that runs."""

from __future__ import annotations

from hypothesis import settings


def examples(full: int) -> int:
    """So many examples in the full tier, where a property without a number of its own has a hundred; in the quick tier
    fewer in the same proportion."""
    return max(1, full * settings().max_examples // 100)
