"""Creates trace spans, tracks the current span, and reads `traceparent`.

`span_names.py` defines the names of spans and attributes. Only `otel.py` imports OpenTelemetry's SDK, and the process
imports `otel.py` only if an endpoint is configured. Other modules use the classes of `otel.py` only as types.

Invariants: without a trace, `span` does one lookup and creates no span. An unsampled request has no spans, and the
process forwards its client's trace context unchanged. No failure in this module fails a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from antiphon.observability.span_names import Kind, Value
from antiphon.types.transport import Headers, header_value

if TYPE_CHECKING:
    from antiphon.observability.otel import Span

_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NO_TRACE = "0" * 32


_current: ContextVar[Span | None] = ContextVar("antiphon_span", default=None)


def set_current(span: Span | None) -> None:
    """Set the current span of this task, and of tasks that this task starts later."""
    _current.set(span)


def is_traced() -> bool:
    """Return whether this task has a current span."""
    return _current.get() is not None


@contextmanager
def span(name: str, kind: Kind = "internal", **attributes: Value) -> Iterator[Span | None]:
    """Make a child of the current span. Within the `with` block, the child is the current span. Yields None if the task
    has no current span. In the name of a keyword argument, `__` stands for a dot in the attribute's name."""
    parent = _current.get()
    if parent is None:
        yield None
        return
    made = parent.child(name, kind, {key.replace("__", "."): value for key, value in attributes.items()})
    token = _current.set(made)
    error = ""
    try:
        yield made
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        _current.reset(token)
        made.end(error)


def trace_headers() -> Headers:
    """Return the headers with which another process continues the current span's trace. Returns an empty tuple if the
    task has no current span."""
    now = _current.get()
    return now.headers() if now is not None else ()


def read_parent(headers: Headers) -> tuple[str, str, bool] | None:
    """Return the trace id, the span id and the sampling flag of the `traceparent` header. Returns None for a missing or
    invalid header."""
    value = header_value(headers, "traceparent")
    found = _PARENT.fullmatch(value) if value is not None else None
    if found is None or value is None or value.startswith("ff") or found[1] == _NO_TRACE or found[2] == _NO_TRACE[:16]:
        return None
    return found[1], found[2], bool(int(found[3], 16) & 1)
