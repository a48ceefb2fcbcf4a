"""Shows client keys, the use of quotas, and the audit, and lets operators create, rotate and revoke keys.

`engine/running/client_keys.py` checks and performs each change of a key. `api/admin.py` serves the admin API.

Invariants: only operators reach these pages, and changes need the setting `console.act`. The reason is that a key gives
access to the data of its owner. Only the page that answers the creation of a key shows the key's token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from antiphon.api.http import ApiResponse
from antiphon.console.reading import ACTOR
from antiphon.console.site import PageCall, PageRoute, redirect
from antiphon.engine.ports.callers import NAMED, Caller, ClientKey
from antiphon.engine.running.client_keys import KeyManager, WantedKey
from antiphon.engine.running.quota_use import QuotaUse
from antiphon.errors import ApiError, InvalidRequest
from antiphon.stores.audit import LIST_SECONDS, AuditEntry, AuditStore, note_operator_read

_DAY = 86_400.0
_MOST_AUDIT = 200
_MOST_KEYS = 500


@dataclass(frozen=True, slots=True)
class KeySources:
    """The data sources of the pages about keys. `in_force` is true if processes accept the keys that these pages
    create. `fixed` has one caller for each client key in the settings."""

    manager: KeyManager
    audit: AuditStore
    quotas: Callable[[], Awaitable[Sequence[QuotaUse]]]
    in_force: bool
    fixed: Sequence[Caller] = ()


class KeysView:
    """Client keys, quotas and the audit."""

    nav = (("Keys", "/keys"),)

    def __init__(self, sources: KeySources) -> None:
        self._sources = sources

    @PageRoute("GET", "/keys", operators=True)
    async def show(self, call: PageCall) -> ApiResponse:
        """Show all valid keys, the use of quotas, and the newest rows of the audit. The page also lists the keys in the
        settings."""
        return await self._page(call)

    @PageRoute("POST", "/keys", changes=True, operators=True)
    async def create(self, call: PageCall) -> ApiResponse:
        """Create a key, and show the key's token once."""
        try:
            wanted = WantedKey(
                call.form.get("owner", "").strip(),
                call.form.get("name", "").strip(),
                call.form.get("team", "").strip(),
                tuple(call.form.get("models", "").split()),
                tuple(call.form.get("tools", "").split()),
                _lifetime(call.form.get("days", "")),
            )
            key, token = await self._sources.manager.create(wanted)
        except ApiError as error:
            return await self._page(call, problem=error)
        return await self._page(call, key=key, token=token)

    @PageRoute("POST", "/keys/{}/rotate", changes=True, operators=True)
    async def rotate(self, call: PageCall, key_id: str) -> ApiResponse:
        """Create the successor of a key, with the same lifetime. The old key stays valid for a day."""
        key, token = await self._sources.manager.rotate(key_id, lifetime=None, overlap=_DAY)
        return await self._page(call, key=key, token=token)

    @PageRoute("POST", "/keys/{}/revoke", changes=True, operators=True)
    async def revoke(self, call: PageCall, key_id: str) -> ApiResponse:
        """Revoke a key. Every process refuses the revoked key within a second."""
        await self._sources.manager.revoke(key_id)
        return redirect(call.link("/keys"))

    async def _page(
        self, call: PageCall, *, key: ClientKey | None = None, token: str = "", problem: ApiError | None = None
    ) -> ApiResponse:
        owner = call.owner if call.owner.startswith(NAMED) else ""
        everything, changes = call.query("all") == "1", call.query("reads") != "1"
        noted = AuditEntry(ACTOR, "read keys", owner=owner)
        await note_operator_read(self._sources.audit, noted, LIST_SECONDS)
        keys = await self._sources.manager.list(owner.removeprefix(NAMED), all_keys=everything)
        return call.show(
            "keys.html",
            status=problem.status if problem is not None else 200,
            keys=keys[:_MOST_KEYS],
            total=len(keys),
            fixed=[one for one in self._sources.fixed if owner in ("", one.owner)],
            everything=everything,
            made=key,
            token=token,
            problem=problem,
            form=call.form if problem is not None else {},
            quotas=await self._sources.quotas(),
            audit=await self._sources.audit.list(owner=owner, limit=_MOST_AUDIT, changes=changes),
            changes=changes,
            in_force=self._sources.in_force,
        )


def _lifetime(text: str) -> float | None:
    """Convert the form field `days` to a lifetime in seconds. Returns None if the field is empty."""
    if not text.strip():
        return None
    if not (text.strip().isascii() and text.strip().isdecimal() and 0 < int(text) <= 3650):
        raise InvalidRequest("A key expires after 1 to 3650 days, or never if the field is empty.", param="days")
    return int(text) * _DAY
