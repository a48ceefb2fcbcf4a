"""What clearing up agrees on with everything else.

Lives here: who holds what is going. Not here: what is too old (settings), how it goes (`stores/`).
"""

from __future__ import annotations

SWEEPER = "retention"
"""Who holds the lock of a conversation that is going; it never runs out."""
