"""Which settings may change while a process runs, and how two sets of settings differ.

Lives here: the list, and naming what changed. Not here: what is made of settings anew
(`app/generation.py`), who reads them again and when (`commands/reloading.py`).

Invariants: a setting that is not in the list needs a restart, so that a new one is never taken over by half; what is
said of a difference is names, never values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from antiphon.config.section import Section
from antiphon.config.settings import Settings

LIVE = (
    "dialect",
    "reasoning_as",
    "strict",
    "upstream",
    "upstreams",
    "models",
    "prices",
    "owner.api_keys",
    "owner.store_never",
    "limits.request_body_bytes",
    "limits.upstream_body_bytes",
    "limits.upstream_error_bytes",
    "limits.sse_event_bytes",
    "limits.no_output_bytes",
    "limits.input_items",
    "limits.tools",
    "limits.tool_calls",
    "limits.concurrent_requests",
    "limits.owner_requests",
    "limits.bytes_in_flight",
    "limits.owner_bytes_in_flight",
    "fetch",
    "tools.unavailable",
    "tools.seconds",
    "tools.output_chars",
    "tools.calls",
    "tools.result_bytes",
    "tools.turns",
    "web_search",
    "mcp",
    "files.max_bytes",
    "files.input_bytes",
    "websocket.enabled",
    "websocket.origins",
    "websocket.connections",
    "websocket.seconds",
    "websocket.ping",
    "websocket.memory_bytes",
    "websocket.compression",
    "cors",
    "conversations.create_unknown",
    "timeouts.connect",
    "timeouts.head",
    "timeouts.head_wait",
    "timeouts.idle",
    "timeouts.no_output",
    "timeouts.error_body",
    "timeouts.response",
)
"""What is made anew of changed settings. A section stands for all in it."""


def is_live(setting: str) -> bool:
    """Whether this setting (`upstreams.a.url`) may change while a process runs."""
    return any(setting == one or setting.startswith((f"{one}.", f"{one}[")) for one in LIVE)


def changed_settings(before: Settings, after: Settings) -> tuple[str, ...]:
    """The settings that differ, by name, in their order; of a list of sections the list."""
    changed = list(_changed(before, after, ""))
    # Whether `upstream` was given decides whether it is one of the upstreams.
    if before.has_default != after.has_default and not any(name.startswith("upstream.") for name in changed):
        changed.append("upstream")
    return tuple(changed)


def need_restart(changed: Iterable[str]) -> tuple[str, ...]:
    """Those of these settings that cannot change while a process runs."""
    return tuple(name for name in changed if not is_live(name))


def with_change(settings: Settings, other: Settings, setting: str) -> Settings:
    """The settings with this one as `other` has it. Nothing is checked: it may not go with the rest."""
    changed: Settings = _taken(settings, other, setting.split("."))
    return changed


def _changed(before: Any, after: Any, above: str) -> Iterator[str]:
    """Sections by their settings, sections by name (`upstreams`) by these names; everything else is one value."""
    if isinstance(before, Section) and type(before) is type(after):
        for name, value in before:
            yield from _changed(value, getattr(after, name), f"{above}.{name}" if above else name)
    elif _of_sections(before) and _of_sections(after) and (before or after):
        for name in dict.fromkeys((*before, *after)):
            if name in before and name in after:
                yield from _changed(before[name], after[name], f"{above}.{name}")
            else:
                yield f"{above}.{name}"
    elif before != after:
        yield above


def _of_sections(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, Section) for one in value.values())


def _taken(value: Any, other: Any, path: list[str]) -> Any:
    if not path:
        return other
    name, rest = path[0], path[1:]
    if isinstance(value, Section):
        return value.model_copy(update={name: _taken(getattr(value, name), getattr(other, name), rest)})
    if name not in other:
        return {key: one for key, one in value.items() if key != name}
    return {**value, name: _taken(value.get(name), other[name], rest) if name in value else other[name]}
