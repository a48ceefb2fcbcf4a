"""Decompresses large request bodies in a thread, so that other requests do not wait.

Not here: what a coding is, and what a body may grow to (`request_body.py`).
"""

from __future__ import annotations

from antiphon.doors.request_body import WholeBody, decode_now
from antiphon.engine.waiting import DECODING


async def decoded(body: WholeBody) -> bytes:
    """The plain body, once it is whole. Raises `ApiError` (400, 413, 429, 503)."""
    plain = body.decoded_now()
    if plain is None:
        plain = body.account(await DECODING.run(decode_now, body.codings, body.take(), body.limit))
    return plain
