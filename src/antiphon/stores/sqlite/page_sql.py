"""The SQL that the lists share: which rows of a page still fit, and the parameters of a page.

Lives here: parts of queries and their parameters. Not here: the lists (`responses.py`, `conversations.py`, `jobs.py`,
`prompts.py`, `vector_stores.py`), reading the result (`../pages.py`).

SQLite knows a row's size without reading it (it keeps the length of a body in the row's head), so what does not fit is
never read.

Invariant: the first row always fits.
"""

from __future__ import annotations

from typing import Any

from antiphon.engine.ports.state import PageQuery


def within(order: str) -> str:
    """The table `cut (place, fits)` of a query that has the table `page (place, size, …)` and the parameter `:bytes`.

    `fits` holds for the rows, taken in this order, that are within so many bytes together.
    """
    return f"""cut (place, fits) AS (
  SELECT place, total <= :bytes OR total = size
  FROM (SELECT place, size, sum(size) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total FROM page)
)"""


def asked(page: PageQuery, size: int = 0) -> dict[str, Any]:
    """The parameters of a query that lies between two cursors: `:low`, `:high`, `:limit`, `:bytes` (of `size`)."""
    low, high = page.bounds
    return {"low": low, "high": high, "limit": page.limit + 1, "bytes": size}
