"""Token usage of an answer that passes untouched: of Responses, Chat Completions or embeddings.

Lives here: finding it in the answer's last bytes. Not here: the usage object (`usage.py`), who keeps those bytes
(`engine/exchange/native_answer.py`).

Invariant: nothing is changed, and what is not understood counts as nothing said. What a model or a client wrote is
never taken for the upstream's count: only whole events and answers are looked at, where upstreams count in them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from antiphon.translation.usage import read_usage
from antiphon.types.response import UsageObject
from antiphon.types.views import PassedAnswer

_DECODER: Final = msgspec.json.Decoder(PassedAnswer)


def usage_of_answer(body: bytes) -> UsageObject | None:
    """What a whole JSON answer (or an event's data) says; None when it says nothing."""
    try:
        passed = _DECODER.decode(body)
    except (ValueError, RecursionError):
        return None
    used = read_usage(passed.usage) if passed.usage else None
    return used or (read_usage(passed.response.usage) if passed.response is not None else None)


def usage_of_stream(tail: bytes) -> UsageObject | None:
    """What the last of the whole events that counts says; `tail` may begin in the middle of one."""
    for line in reversed(tail.splitlines()[1:]):
        if line.startswith(b"data:") and b'"usage"' in line:
            used = usage_of_answer(line[5:])
            if used is not None:
                return used
    return None
