"""A file as the translation sees it.

Lives here: one value. Not here: fetching (`upstream/fetch.py`) and what a file becomes in a chat request
(`translation/chat_content.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """`name` is a plain file name (never empty, no path), `media_type` is in lower case and without parameters."""

    name: str
    media_type: str
    data: bytes
