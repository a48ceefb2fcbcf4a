"""`reasoning_details`: what some servers say about their reasoning beside its text, and want to see again.

Lives here: the text in them, and what of them must be kept for the next turn. Not here: when it is used
(`chat_stream.py`), how it is carried (`builder.py` seals it).

Invariant: pieces of one detail that were streamed apart are kept as one.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw

from antiphon.types.json import decode_any, encode, fragment_of

_JOINED: Final = ("text", "summary")


class ReasoningDetails:
    """The details of one answer."""

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []

    def receive(self, data: Raw) -> bytes:
        """Take in what a delta says; returns the text in it, as a fragment."""
        try:
            value = decode_any(bytes(data))
        except ValueError:
            return b""
        parts = []
        for detail in value if isinstance(value, list) else ():
            if isinstance(detail, dict):
                text = detail.get("text") or detail.get("summary")
                if isinstance(text, str):
                    parts.append(text)
                self._keep(detail)
        return fragment_of("".join(parts))

    def take(self) -> list[Raw]:
        """What must be sent back, as it was received."""
        kept, self._kept = self._kept, []
        return [Raw(encode(detail)) for detail in kept]

    def _keep(self, detail: dict[str, Any]) -> None:
        last = self._kept[-1] if self._kept else None
        if last is not None and all(last.get(key) == detail.get(key) for key in ("type", "index", "id")):
            for key, value in detail.items():
                if key in _JOINED and isinstance(value, str) and isinstance(last.get(key), str):
                    last[key] += value
                elif value is not None:
                    last[key] = value
        else:
            self._kept.append(dict(detail))
