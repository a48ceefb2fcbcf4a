"""Creates trace spans, tracks the current span, and reads `traceparent`.

Lives here: the current span, spans around blocks, and reading `traceparent`. Not here: the names of spans and
attributes (`span_names.py`), OpenTelemetry. Only `otel.py` imports the SDK, and the process imports `otel.py` only if
an endpoint is configured; other modules use its classes only as types.

Invariants: without a trace the cost is one lookup. An unsampled request has no spans, and its client's trace context is
passed on unchanged. No failure here fails a request.
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
    """Set the current span of this task, and of tasks that it starts from now on."""
    _current.set(span)


def is_traced() -> bool:
    """Whether this task has a current span."""
    return _current.get() is not None


@contextmanager
def span(name: str, kind: Kind = "internal", **attributes: Value) -> Iterator[Span | None]:
    """A span within the current one around a block, where it is the current span; None without a trace. (In a keyword,
    `__` is a dot of the attribute's name.)"""
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
    """The headers that continue the current span in another process; none without a trace."""
    now = _current.get()
    return now.headers() if now is not None else ()


def read_parent(headers: Headers) -> tuple[str, str, bool] | None:
    """The trace id, the span id and the sampling flag of `traceparent`; None for a missing or invalid one."""
    value = header_value(headers, "traceparent")
    found = _PARENT.fullmatch(value) if value is not None else None
    if found is None or value is None or value.startswith("ff") or found[1] == _NO_TRACE or found[2] == _NO_TRACE[:16]:
        return None
    return found[1], found[2], bool(int(found[3], 16) & 1)
