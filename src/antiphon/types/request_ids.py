"""Validates request ids that callers send.

Lives here: the format of an `x-request-id`, and replacing it in the headers. Not here: the generation of new ids by the
HTTP server and the ext_proc server.

Invariant: the log, the response and the upstream get the same id, and that id has this format.
"""

from __future__ import annotations

import re
from typing import Final

from antiphon.types.transport import Headers

HEADER: Final = "x-request-id"
LETTERS: Final = "[A-Za-z0-9._:/+=-]"
"""The characters of a valid id, as a regular expression for Python and Envoy."""
UNFIT: Final = f"(.*[^{LETTERS[1:-1]}].*)?"
"""A regular expression that matches ids with invalid characters, and the empty id."""
LONGEST: Final = 128
_FORM: Final = re.compile(f"{LETTERS}{{1,{LONGEST}}}")


def sent_id(headers: Headers) -> str | None:
    """The id of the request's `x-request-id` header. None if the header is missing, repeated, or not in the valid
    format."""
    given = [value for name, value in headers if name == HEADER]
    return given[0] if len(given) == 1 and _FORM.fullmatch(given[0]) else None


def with_own_id(headers: Headers, request_id: str) -> Headers:
    """The headers, with this id in place of the client's. If the client sent no id, the function adds none. The
    upstream then generates an id."""
    others = tuple(pair for pair in headers if pair[0] != HEADER)
    return headers if len(others) == len(headers) else (*others, (HEADER, request_id))
