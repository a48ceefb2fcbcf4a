"""Collects what the console shows about each upstream: its URL, and the profile that Antiphon uses.

Not here: test calls to an upstream (`commands/doctor/`), and the health of an upstream. `console/views/models.py` reads
the health from the journal.
"""

from __future__ import annotations

from collections.abc import Iterator

from antiphon.config.settings import Settings
from antiphon.config.urls import shown_text
from antiphon.console.reading import UpstreamFacts
from antiphon.engine.exchange.model_routes import ModelRoutes


def upstream_facts(settings: Settings, routes: ModelRoutes) -> Iterator[UpstreamFacts]:
    """Yield the facts of each upstream, without secrets. The profile may change while the process runs, because
    Antiphon may detect the type of the server later."""
    used = [routes.default, *(rule.route for rule in routes.rules)]
    for name, upstream in settings.every_upstream.items():
        route = next((one for one in used if name in one.upstreams and one.mode != "disabled"), None)
        if route is None:
            profile, origin = upstream.profile, "from the settings; no model uses this upstream"
        elif route.assumed:
            profile, origin = route.profile.name, "assumed until Antiphon has detected the type of the server"
        elif upstream.profile == "auto":
            profile, origin = route.profile.name, "detected"
        else:
            profile, origin = route.profile.name, "from the settings"
        yield UpstreamFacts(name, shown_text(str(upstream.url)), profile, origin)
