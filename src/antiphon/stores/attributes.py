"""Stores file attributes as rows, and translates attribute filters into SQL, for any backend.

Lives here: the SQL of each comparison operator of a filter, and the conversion of attributes to rows. Not here: the
JSON form of filters and attributes in requests (`api/`), the searches that apply the SQL condition.

Invariant: the store passes attribute keys and values to the database as SQL parameters, never as SQL text. A comparison
matches only values of the same type, so `"5"`, `5` and `true` never match each other.
"""

from __future__ import annotations

from collections.abc import Callable

from antiphon.types.search import Attributes, Filter

_OPERATORS = {"eq": "=", "ne": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "in": "IN", "nin": "IN"}
_NEGATIONS = frozenset({"ne", "nin"})


class AttributeSql:
    """Converts file attributes to one backend's rows, and attribute filters to its SQL. `number` converts a number to a
    value that the database compares exactly."""

    def __init__(self, *, file: str, found: str, columns: tuple[str, str], number: Callable[[float], object]) -> None:
        """`file`: the SQL expression that identifies the file in row `f` of `vector_files`. `found`: the beginning of a
        query that selects files of store `:store` by an attribute. `columns`: the names of the text column and the
        number column."""
        self._file = file
        self._found = found
        self._columns = {"s": columns[0], "n": columns[1], "b": columns[1]}
        self._number = number

    def rows(self, attributes: Attributes) -> list[dict[str, object]]:
        """Convert attributes to rows. A row has the key, the kind (`s` text, `n` number, `b` boolean), and the value in
        the text column or the number column."""
        typed = [(key, *self._typed(value)) for key, value in attributes.items()]
        return [
            {
                "key": key,
                "kind": kind,
                "text": value if kind == "s" else None,
                "number": None if kind == "s" else value,
            }
            for key, kind, value in typed
        ]

    def condition(self, filters: Filter | None) -> tuple[str, dict[str, object]]:
        """Return an SQL condition on row `f` of `vector_files` in store `:store`, and the parameters of the condition.
        Without `filters` the condition is `true`."""
        named: dict[str, object] = {}
        return ("true" if filters is None else self._condition(filters, named)), named

    def _condition(self, one: Filter, named: dict[str, object]) -> str:
        if one.kind in ("and", "or"):
            return "(" + f" {one.kind.upper()} ".join([self._condition(part, named) for part in one.parts]) + ")"
        key = f"key{len(named)}"
        named[key] = one.key
        by_kind: dict[str, list[str]] = {}
        for value in one.value if isinstance(one.value, tuple) else (one.value,):
            kind, plain = self._typed(value)
            name = f"value{len(named)}"
            named[name] = plain
            by_kind.setdefault(kind, []).append(f":{name}")
        # `in` with an empty list matches no file, and `nin` with an empty list matches every file.
        found = " UNION ALL ".join(
            f"{self._found} AND key = :{key} AND kind = '{kind}' "
            f"AND {self._columns[kind]} {_OPERATORS[one.kind]} ({', '.join(values)})"
            for kind, values in by_kind.items()
        )
        negated = one.kind in _NEGATIONS
        return f"{self._file} {'NOT IN' if negated else 'IN'} ({found})" if found else str(negated).lower()

    def _typed(self, value: str | float | bool) -> tuple[str, object]:
        if isinstance(value, str):
            return "s", value
        return ("b", self._number(int(value))) if isinstance(value, bool) else ("n", self._number(value))
