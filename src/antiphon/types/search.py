"""A search query as values: attribute conditions and ranking options.

Lives here: the values. Not here: how they are read from a request (`translation/request/search_options.py`), and their
meaning in a database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Attributes = Mapping[str, str | float | bool]
"""A file's attributes in a vector store."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on the attributes of a file.

    A comparison has `key` and `value` (a tuple for `in` and `nin`), a compound (`and`, `or`) has `parts`. A file
    without the attribute, or with one of another kind, fits `ne` and `nin` alone.
    """

    kind: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"]
    key: str = ""
    value: str | float | bool | tuple[str | float | bool, ...] = ""
    parts: tuple[Filter, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """How hits are ranked: hits below `threshold` (0..1) are left out.

    The weights say how much the two sides of a hybrid search count; they matter only where there are vectors. A side
    whose weight is 0 is not asked at all.
    """

    threshold: float = 0.0
    embedding_weight: float = 0.5
    text_weight: float = 0.5


DEFAULT_RANKING: Final = Ranking()
