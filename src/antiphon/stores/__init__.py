"""Durable state: the stores behind the engine's ports.

Lives here: the one way to open them, and what a row becomes in every backend (`pages.py`). Not here: the backends, each
a package with all its SQL (`sqlite/`), and the contents of files (`blobs/`).
"""

from __future__ import annotations

from antiphon.stores.sqlite.opening import FILES_FOLDER, SESSIONS_FILE, Stores, open_stores

__all__ = ["FILES_FOLDER", "SESSIONS_FILE", "Stores", "open_stores"]
