"""Creates trace spans, tracks the current span, and reads `traceparent`.

Lives here: the span that is current, spans around blocks, and reading `traceparent`. Not here: which spans and
attributes there are (`span_names.py`), OpenTelemetry (`otel.py`, which alone imports it, and is imported only where
there is an endpoint; everybody else knows its classes as types).

Invariants: without a trace there is no cost but one look; what is sampled out has no spans at all, and its client's
context goes on as it came. Nothing here fails a request.
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
    """What this task, and those that it begins from now on, do within."""
    _current.set(span)


def is_traced() -> bool:
    """Whether what this task does is within a span."""
    return _current.get() is not None


@contextmanager
def span(name: str, kind: Kind = "internal", **attributes: Value) -> Iterator[Span | None]:
    """A span within the current one around a block, and the current one of what is in the block; None where nothing is
    traced. (A keyword's `__` is a dot of the attribute's name.)"""
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
    """The headers that continue the current span elsewhere; none where nothing is traced."""
    now = _current.get()
    return now.headers() if now is not None else ()


def read_parent(headers: Headers) -> tuple[str, str, bool] | None:
    """The trace, the span and whether it is sampled, of `traceparent`; None where there is no good one."""
    value = header_value(headers, "traceparent")
    found = _PARENT.fullmatch(value) if value is not None else None
    if found is None or value is None or value.startswith("ff") or found[1] == _NO_TRACE or found[2] == _NO_TRACE[:16]:
        return None
    return found[1], found[2], bool(int(found[3], 16) & 1)
