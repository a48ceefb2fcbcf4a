"""Stored bodies that only this server can read: layers over the stores of any backend.

Lives here: what is sealed of what a store is given, and opened of what it gives. Not here: the form of a sealed body
(`bodies.py`), SQL; ids, types, times, names and numbers, which a database must see to find and to count.

Invariant: a body goes into a store sealed, or, without `state.seal`, as it is; either comes out as it was given. So a
database may hold both, and the setting can be turned on and off.
"""

from __future__ import annotations

from dataclasses import replace

from antiphon.stores.backend import Stores
from antiphon.stores.sealed.bodies import Bodies
from antiphon.stores.sealed.jobs import SealedJobs
from antiphon.stores.sealed.responses import SealedResponses

__all__ = ["Bodies", "seal_stores"]


def seal_stores(stores: Stores, bodies: Bodies) -> Stores:
    """The same stores, whose bodies go through these hands."""
    return replace(
        stores,
        responses=SealedResponses(stores.responses, bodies),
        background=SealedJobs(stores.background, bodies),
    )
