"""Whether other settings may take the place of those in use, without a restart.

Lives here: what is refused, and in which words. Not here: which settings are live (`config/live.py`), whether they are
right by themselves (`antiphon.config`).

Invariants: a change is accepted whole or refused whole; a refusal names every setting that is in the way, and no value.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.app.routing import make_routes
from antiphon.commands.child_settings import envoy_environment
from antiphon.config.live import changed_settings, need_restart, with_change
from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.sidecars import endpoints
from antiphon.errors import ConfigError


def check_change(before: Settings, after: Settings, *, envoy: bool) -> tuple[str, ...]:
    """The names of the settings that change. Raises `ConfigError` where that takes a restart.

    `envoy`: an Envoy runs whose configuration was made of `before`.
    """
    changed = changed_settings(before, after)
    if fixed := need_restart(changed):
        raise ConfigError(f"{_named(fixed)} cannot change while it runs: restart, or take the change back")
    make_routes(after)
    if envoy and (shaping := _shaping_envoy(before, after, changed)):
        raise ConfigError(
            f"{_named(shaping)}: Envoy's configuration is made of this and was read at its start: restart both, or "
            "take the change back"
        )
    return changed


def _shaping_envoy(before: Settings, after: Settings, changed: Sequence[str]) -> tuple[str, ...]:
    """The changed settings that Envoy's configuration, or the secrets in its environment, would be others for."""
    at_first = _envoy_of(before)
    if _envoy_of(after) == at_first:
        return ()
    shaping = []
    for name in changed:
        try:
            alone = _envoy_of(with_change(before, after, name))
        except (KeyError, ValueError):
            # It does not go without the others, some of which are named.
            continue
        if alone != at_first:
            shaping.append(name)
    return tuple(shaping) or tuple(changed)


def _envoy_of(settings: Settings) -> object:
    return to_yaml(bootstrap(settings, sidecars=endpoints(settings))), envoy_environment(settings)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names)
