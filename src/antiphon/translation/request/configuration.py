"""Applies `configuration_update` items, which change the settings of later responses in a conversation.

This module reads `configuration_update` items and changes the request accordingly. `translation/chat/body.py` applies
the settings to the chat request.

Source: OpenAI's `ResponseConfigurationUpdateItemParam`. An item sets the reasoning effort or the text format until a
later item replaces it.

Invariant: the last update of a setting overrides earlier updates, and also the request's own field. Clients do not
change the request's own effort and format during a conversation, so that the model server's prefix cache stays valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from antiphon.translation.request.checks import known_choice, read_value
from antiphon.translation.request.fields import EFFORTS, check_format
from antiphon.types.items import InputItem
from antiphon.types.request import CreateResponse, ReasoningOptions, TextFormat, TextOptions
from antiphon.types.tolerance import Tolerance
from antiphon.types.views import ConfigurationUpdate, KeptConfiguration, ReasoningUpdate, TextUpdate

CONFIGURATION: Final = "configuration_update"


_UPDATE: Final = msgspec.json.Decoder(ConfigurationUpdate)
_SETTINGS: Final = msgspec.json.Decoder(KeptConfiguration)


@dataclass(slots=True)
class Configuration:
    """The settings after all updates of a conversation. A setting that no update changes is `UNSET`."""

    effort: str | UnsetType | None = UNSET
    format: TextFormat | UnsetType | None = UNSET

    def apply(self, request: CreateResponse) -> bool:
        """Set the updated settings in the request. Returns whether any update set a value."""
        if self.effort is not UNSET:
            before = request.reasoning or ReasoningOptions()
            request.reasoning = msgspec.structs.replace(before, effort=self.effort)
        if self.format is not UNSET:
            request.text = msgspec.structs.replace(request.text or TextOptions(), format=self.format)
        return self.effort is not UNSET or self.format is not UNSET


def read_updates(items: Iterable[tuple[str, InputItem]], tolerance: Tolerance) -> Configuration:
    """Return the settings that result from all `configuration_update` items. `items` pairs each item with its path in
    the request, which error messages name. Raises `InvalidRequest`."""
    found = Configuration()
    for where, item in items:
        if item.type == CONFIGURATION:
            _read(where, item, found, tolerance)
    return found


def _note_members(source: Raw, tolerance: Tolerance) -> None:
    """Record the unknown settings of an update, so that the response lists them as ignored."""
    settings = _SETTINGS.decode(source)
    for name, known, sent in (("reasoning", ReasoningUpdate, settings.reasoning), ("text", TextUpdate, settings.text)):
        for inner in tolerance.unknown(sent or (), known.__struct_fields__):
            tolerance.note(f"input.{CONFIGURATION}.{name}.{inner}")


def _read(where: str, item: InputItem, found: Configuration, tolerance: Tolerance) -> None:
    update = read_value(where, _UPDATE, item.source)
    _note_members(item.source, tolerance)
    if update.reasoning is not None and (effort := update.reasoning.effort) is not UNSET:
        known = known_choice(f"{where}.reasoning.effort", effort, EFFORTS, tolerance)
        found.effort = effort if known else found.effort
    if update.text is not None and (form := update.text.format) is not UNSET:
        if form is not None:
            check_format(f"{where}.text.format", form)
        found.format = form
