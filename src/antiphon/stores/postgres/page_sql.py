"""The SQL that the lists share: which rows of a page still fit.

Lives here: a part of queries. Not here: the lists, reading the result (`../pages.py`).

PostgreSQL knows the length of a body without reading it, also of one that it keeps outside of the row, so what does not
fit is never read.

Invariant: the first row always fits.
"""

from __future__ import annotations


def within(order: str, most: str) -> str:
    """The table `cut (place, fits)` of a query that has the table `page (place, size, …)`.

    `fits` holds for the rows, taken in this order, that are within `most` bytes together (a parameter: `$5`).
    """
    return f"""cut (place, fits) AS (
  SELECT place, total <= {most} OR total = size
  FROM (SELECT place, size, sum(size) OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total FROM page) AS summed
)"""
