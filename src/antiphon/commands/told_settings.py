"""Other settings for a worker of `antiphon up`, as its parent tells it.

Lives here: the worker's side: it prepares, swaps and forgets as it is told. Not here: the parent's side
(`worker_reload.py`), how the two talk (`orders.py`).

Invariant: what cannot be prepared changes nothing.
"""

from __future__ import annotations

from typing import Any

import structlog

from antiphon.app.built import App
from antiphon.app.generation import Generation
from antiphon.config.settings import load_settings
from antiphon.errors import ConfigError

_log = structlog.get_logger(__name__)


class ToldSettings:
    """Of one worker."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._prepared: Generation | None = None

    async def obey(self, order: dict[str, Any]) -> str:
        """What is wrong, or nothing."""
        try:
            if order["do"] == "prepare":
                settings = load_settings(order["settings"], order["secrets"])
                self._prepared = await self._app.prepare(settings)
            else:
                prepared, self._prepared = self._prepared, None
                if order["do"] == "swap":
                    if prepared is None:
                        return "nothing is prepared"
                    self._app.swap(prepared)
        except ConfigError as error:
            return str(error)
        except Exception as bug:
            _log.error("settings_not_prepared", error=type(bug).__name__, exc_info=True)
            return f"it failed: {type(bug).__name__}"
        return ""
