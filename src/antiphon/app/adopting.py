"""Builds the adoption: named owners take over the data that their keys' tokens stored without a name.

Lives here: which data an adoption moves, in which order. Not here: when it moves (`engine/running/adoption.py`), the
move in the database (`stores/owner_data.py`), containers (`tools/code_interpreter/owners.py`).

Invariant: an owner has data until every part has moved. So after a kill, or while a container is in use, a later
adoption moves the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from antiphon.app.keys import known_bodies
from antiphon.config.settings import Settings
from antiphon.engine.ports.state import NotMovable
from antiphon.engine.running.adoption import Adoption
from antiphon.stores import Stores
from antiphon.stores.audit import Noted
from antiphon.stores.choice import backend_of


def make_adoption(
    settings: Settings, stores: Stores, *, moved: Callable[[str], None] = lambda _kind: None
) -> Adoption | None:
    """Return the adoption of data by named owners, or None if no key names an owner or the state is in memory. `moved`
    gets the kind of the data after each part of a move."""
    owner = settings.owner
    if owner.source != "bearer" or not (owner.keys or owner.managed_keys) or settings.state.place.kind == "memory":
        return None

    async def has_data(old: str) -> bool:
        return await stores.usage.has_data(old) or await _has_containers(settings, stores, old)

    async def move(old: str, new: str) -> None:
        async with aclosing(
            await backend_of(settings.state, settings.data).open_owner_data(known_bodies(settings))
        ) as data:
            if problems := await data.obstacles(old, new):
                raise NotMovable(" ".join(problems))
            # An interrupted move has already moved data, so the row comes first.
            await stores.audit.note(Noted("server", "adopt-owner", old, new))
            async with aclosing(data.move(old, new)) as moving:
                async for kind in moving:
                    moved(kind)
        # Imported only here, because most gateways adopt nothing.
        from antiphon.tools.code_interpreter import OwnersContainers

        if left := await OwnersContainers(settings.data, stores.containers).move(old, new):
            raise NotMovable(f"Containers are in use: {', '.join(left)}.")
        moved("containers")

    return Adoption(has_data, move)


async def _has_containers(settings: Settings, stores: Stores, owner: str) -> bool:
    """Whether the owner has containers. `OwnerData.move` leaves them, so they may be the only data that is left."""
    if stores.containers is not None:
        return await stores.containers.count([owner]) > 0
    if not (settings.data / "containers").exists():
        return False
    from antiphon.tools.code_interpreter import OwnersContainers

    return owner in await OwnersContainers(settings.data).count()
