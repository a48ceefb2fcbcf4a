"""Validates request ids that callers send.

Lives here: the form of an `x-request-id`, and its place among headers. Not here: who makes another one (the doors).

Invariant: the log, the answer and the upstream get one and the same id, and it has this form.
"""

from __future__ import annotations

import re
from typing import Final

from antiphon.types.transport import Headers

HEADER: Final = "x-request-id"
LETTERS: Final = "[A-Za-z0-9._:/+=-]"
"""The characters of a valid id, as a regular expression for Python and Envoy."""
UNFIT: Final = f"(.*[^{LETTERS[1:-1]}].*)?"
"""A regular expression that matches ids with other characters, and the empty id."""
LONGEST: Final = 128
_FORM: Final = re.compile(f"{LETTERS}{{1,{LONGEST}}}")


def sent_id(headers: Headers) -> str | None:
    """The id that a request came with, if there is just one and it has the form of one."""
    given = [value for name, value in headers if name == HEADER]
    return given[0] if len(given) == 1 and _FORM.fullmatch(given[0]) else None


def with_own_id(headers: Headers, request_id: str) -> Headers:
    """The headers, with this id in place of the client's. Without a client's id it adds none, and the upstream makes
    its own."""
    others = tuple(pair for pair in headers if pair[0] != HEADER)
    return headers if len(others) == len(headers) else (*others, (HEADER, request_id))
