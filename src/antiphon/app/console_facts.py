"""Collects what the console shows about upstreams: the settings of each, and the profile that Antiphon uses.

Not here: calls to an upstream (`commands/doctor/`), the health of an upstream, which `console/views/models.py` finds in
the journal.
"""

from __future__ import annotations

from collections.abc import Iterator

from antiphon.config.settings import Settings
from antiphon.config.urls import shown_text
from antiphon.console.reading import UpstreamFacts
from antiphon.engine.exchange.model_routes import ModelRoutes


def upstream_facts(settings: Settings, routes: ModelRoutes) -> Iterator[UpstreamFacts]:
    """The facts of each upstream, without secrets. The profile may change while the process runs, because a server may
    name its kind later."""
    used = [routes.default, *(rule.route for rule in routes.rules)]
    for name, upstream in settings.every_upstream.items():
        route = next((one for one in used if name in one.upstreams and one.mode != "disabled"), None)
        if route is None:
            profile, origin = upstream.profile, "no model uses this upstream"
        elif route.assumed:
            profile, origin = route.profile.name, "assumed, because the server has not named its kind"
        elif upstream.profile == "auto":
            profile, origin = route.profile.name, "detected"
        else:
            profile, origin = route.profile.name, "from the settings"
        yield UpstreamFacts(name, shown_text(str(upstream.url)), profile, origin)
