"""Uploaded files that a request brings to the model by their ids.

Lives here: reading them, and how much of them a request may bring. Not here: which items name them and
what they become (`translation/chat_content.py`), files by URL (the `FileFetcher`).

Invariant: no more is read than a request may bring; a file that is missing, expired or somebody else's is one error.
"""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing

from antiphon.engine.ports.files import FileStore
from antiphon.errors import ApiError, InvalidRequest
from antiphon.ids import is_name
from antiphon.types.file_kinds import FetchedFile

_SHOWN_ID = 128


class StoredFiles:
    """Reads files of an owner for one request at a time; `max_bytes` is what they may be together."""

    def __init__(self, files: FileStore, max_bytes: int) -> None:
        self._files = files
        self._limit = max_bytes

    async def load(self, owner: str, ids: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        """Every id's file, or the error a client gets for it (a 400 without `param`). Raises `StoreError`.

        A file is read once, and counted as often as it is named: that often it is sent.
        """
        found: dict[str, FetchedFile | ApiError] = {}
        left = self._limit
        for file_id, times in Counter(ids).items():
            opened = await self._files.open(owner, file_id) if is_name(file_id) else None
            if opened is None:
                found[file_id] = InvalidRequest(
                    f"File with id '{file_id[:_SHOWN_ID]}' not found.", code="file_not_found"
                )
                continue
            async with aclosing(opened):
                file = opened.file
                if file.size * times > left:
                    found[file_id] = InvalidRequest(
                        f"The files of a request, each as often as it is named, may have {self._limit} bytes together; "
                        "with this one they have more (files.input_bytes).",
                        code="file_too_large",
                    )
                    continue
                left -= file.size * times
                found[file_id] = FetchedFile(file.name, file.media_type, await opened.read())
        return found
