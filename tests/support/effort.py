"""Sets the number of examples of a property test for the current tier."""

from __future__ import annotations

from hypothesis import settings


def examples(full: int) -> int:
    """The number of examples for the current tier: `full` in the full tier. The quick tier uses the same fraction as
    for properties without a number, which have a hundred examples in the full tier."""
    return max(1, full * settings().max_examples // 100)
