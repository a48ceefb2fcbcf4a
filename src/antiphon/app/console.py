"""Builds the console from the settings.

Lives here: the parts of the console and what it shows of the deployment. Not here: the pages (`console/`), the journal
that the servers fill (`app/journal.py`), the listener (`doors/http/console.py`).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from antiphon import __version__
from antiphon.api.failed_attempts import FailedAttempts
from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.app.journal import JournalParts
from antiphon.app.keys import make_sealer
from antiphon.app.quotas import quota_rules
from antiphon.config.settings import Settings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.exchange.loaded_request import open_sealed
from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.exchange.prompt_comparison import stored_prompt
from antiphon.engine.running.client_keys import KeyManager
from antiphon.engine.running.quotas import QuotaUse, quota_use
from antiphon.errors import NotFound
from antiphon.observability.log_lines import recent_warnings
from antiphon.stores import Stores
from antiphon.translation.prompt_cache import first_difference, read_settings
from antiphon.translation.values import PromptDifference

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
    routes: ModelRoutes,
) -> Console | None:
    """Return the console, or None if the settings do not enable it. `handle` answers requests of the API, `journal` has
    the recorded contents that only this process holds, and `routes` finds the upstream of a model."""
    if journal is None:
        return None
    # Imported only here, because most gateways have no console and need none of its packages.
    from antiphon.console.console import Console
    from antiphon.console.reading import Reading
    from antiphon.console.sessions import Sessions
    from antiphon.console.views.keys import KeySources

    token = settings.admin.token
    assert token is not None, "`with_admin_token` sets the token of a gateway with a console"
    rules = quota_rules(settings.quotas)

    async def quotas(subject: str) -> Sequence[QuotaUse]:
        return await quota_use(stores.quotas, rules, subject, most=500)

    sealer = make_sealer(settings)

    async def difference(owner: str, earlier: str, later: str) -> PromptDifference | None:
        stored = stores.responses
        one, other = await stored.load_compared(owner, earlier), await stored.load_compared(owner, later)
        if one is None or other is None:
            raise NotFound("One of the two prompts is not stored.")
        unseal = partial(open_sealed, sealer, owner)
        profile = routes.choose(read_settings(other.body).model).profile
        return first_difference(stored_prompt(one, profile, unseal), stored_prompt(other, profile, unseal))

    reading = Reading(
        stores.journal,
        stores.live,
        stores.responses.chain,
        stores.background.queued,
        handle,
        unstored=journal.recorder.held,
        settings=_as_yaml(settings),
        facts=_facts(settings),
        models=tuple(model.match for model in settings.models if "*" not in model.match),
        warnings=_warnings,
        difference=difference,
        audit=stores.audit,
        quotas=quotas,
        window=lambda model: routes.choose(model).context_tokens,
    )
    keys = KeySources(
        KeyManager(stores.client_keys, stores.audit, "console"),
        stores.audit,
        partial(quotas, ""),
        settings.owner.managed_keys,
    )
    sessions = Sessions(
        token.get_secret_value(),
        owners,
        seconds=settings.console.session,
        clock=time.time,
        attempts=FailedAttempts(),
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
