"""Times and traces one store operation, as a context manager.

`metric_names.py` defines the names of its metrics, and `tracing.py` makes its span.

Invariant: a cancelled operation is not counted, because its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager
from types import TracebackType

from antiphon.errors import StoreError
from antiphon.observability import span_names
from antiphon.observability.metric_values import LabelledCounter, LabelledHistogram
from antiphon.observability.tracing import is_traced, span


class StorageOperation:
    """The context manager for one store operation. A generator-based context manager would take five times as long,
    even without a span."""

    def __init__(self, operation: str, database: str, ended: LabelledCounter, seconds: LabelledHistogram) -> None:
        self._operation = operation
        self._database = database
        self._ended = ended
        self._seconds = seconds
        self._span: AbstractContextManager[object] | None = None
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()
        if is_traced():
            name = f"{span_names.STORE} {self._operation}"
            self._span = span(name, "client", db__system__name=self._database, db__operation__name=self._operation)
            self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._span.__exit__(kind, error, traceback)
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            result = "error" if kind is not None and issubclass(kind, StoreError) else "ok"
            self._ended.add(self._operation, result)
            self._seconds.add(time.perf_counter() - self._started, self._operation)
