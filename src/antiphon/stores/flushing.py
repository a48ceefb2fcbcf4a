"""Seeing to it that a folder's entries outlive a crash of the machine.

Lives here: flushing a folder. Not here: writing and flushing files (whoever writes them).
"""

from __future__ import annotations

import os
from pathlib import Path


def flush_folder(folder: Path) -> None:
    """Have on the disk what was made, renamed and deleted in the folder. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
