"""A search query as values: attribute filters and ranking options.

Lives here: the types of filters and ranking options. Not here: reading filters and options from a request
(`translation/request/search_options.py`), and making a database query from them.
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

    A comparison has `key` and `value` (a tuple for `in` and `nin`). A compound filter (`and`, `or`) has `parts`. A file
    that lacks the attribute, or has a value of another type, matches only `ne` and `nin`.
    """

    kind: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "and", "or"]
    key: str = ""
    value: str | float | bool | tuple[str | float | bool, ...] = ""
    parts: tuple[Filter, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of search hits. The search leaves out hits whose score is below `threshold` (0..1).

    The weights set the shares of the embedding score and the text score in a hybrid search. Both weights matter only if
    the store has vectors. The search skips a side whose weight is 0.
    """

    threshold: float = 0.0
    embedding_weight: float = 0.5
    text_weight: float = 0.5


DEFAULT_RANKING: Final = Ranking()
