"""Builds the console from the settings.

Lives here: the parts of the console and what it shows of the deployment. Not here: the pages (`console/`), the journal
that the servers fill (`app/journal.py`), the listener (`doors/http/console.py`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from antiphon import __version__
from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.app.journal import JournalParts
from antiphon.app.quotas import quota_rules
from antiphon.config.settings import Settings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.running.key_manager import KeyManager
from antiphon.engine.running.quota_use import QuotaUse, quota_use
from antiphon.observability.log_lines import recent_warnings
from antiphon.stores import Stores

if TYPE_CHECKING:
    from antiphon.console.console import Console
    from antiphon.console.reading import Warned

_HIDDEN = frozenset({"timestamp", "level", "message"})


def make_console(
    settings: Settings,
    stores: Stores,
    owners: OwnerResolver,
    handle: Callable[[ApiRequest], Awaitable[ApiResponse]],
    journal: JournalParts | None,
) -> Console | None:
    """Return the console, or None if the settings do not enable it. `handle` answers requests of the API, and
    `journal` has the recorded contents that only this process holds."""
    if journal is None:
        return None
    # Imported only here, because most gateways have no console and need none of its packages.
    from antiphon.console.console import Console
    from antiphon.console.reading import Reading
    from antiphon.console.sessions import Attempts, Sessions
    from antiphon.console.views.keys import KeySources

    token = settings.admin.token
    assert token is not None, "`with_admin_token` sets the token of a gateway with a console"
    rules = quota_rules(settings.quotas)

    async def quotas() -> Sequence[QuotaUse]:
        return await quota_use(stores.quotas, rules, most=500)

    reading = Reading(
        stores.journal,
        stores.live,
        stores.overviews,
        handle,
        unstored=journal.recorder.held,
        settings=_as_yaml(settings),
        facts=_facts(settings),
        models=tuple(model.match for model in settings.models if "*" not in model.match),
        warnings=_warnings,
    )
    keys = KeySources(
        KeyManager(stores.client_keys, stores.audit, "console"), stores.audit, quotas, settings.owner.managed_keys
    )
    sessions = Sessions(
        token.get_secret_value(),
        owners,
        seconds=settings.console.session,
        clock=time.time,
        attempts=Attempts(time.monotonic),
    )
    return Console(reading, keys, sessions, acts=settings.console.act)


def _as_yaml(settings: Settings) -> str:
    import yaml

    return str(yaml.safe_dump(settings.redacted(), sort_keys=False, allow_unicode=True))


def _facts(settings: Settings) -> dict[str, str]:
    console = settings.console
    recorded = console.record + (", and unstored requests in memory" if console.record_unstored else "")
    return {
        "version": __version__,
        "server for clients": settings.door,
        "state": settings.state.place.kind,
        "owners": settings.owner.source,
        "upstreams": ", ".join(settings.every_upstream),
        "journal": f"{console.most:,} requests, {console.keep / 86_400:g} days",
        "recorded contents": recorded if console.record != "off" else "none (console.record)",
        "operators may act": "yes" if console.act else "no (console.act)",
    }


def _warnings() -> list[Warned]:
    from antiphon.console.reading import Warned

    found = []
    for line in recent_warnings():
        fields = " ".join(f"{name}={value}" for name, value in line.items() if name not in _HIDDEN)
        found.append(Warned(str(line.get("timestamp", "")), str(line.get("message", "")), fields[:500]))
    return found
