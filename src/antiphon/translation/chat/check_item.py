"""Checks items that a client adds to a conversation or a prompt without a model call.

Lives here: refusing items that would make every later request fail. Not here: reading the items, and checking items of
a request's `input` (`translation/request/body.py`). For items of `input`, the model's server decides about the limits.

Invariant: an item that passes this check can fail later for two reasons only. The conversation has no call for an
output, or the model's server does not accept the content (images, files).
"""

from __future__ import annotations

from typing import Final

import msgspec

from antiphon.errors import invalid_parameter, invalid_value
from antiphon.translation.chat.call_items import call_of, native_output
from antiphon.translation.chat.content import ContentRules, FileNotFetched, joined_text, message_content, output_content
from antiphon.translation.chat.foreign_items import agent_content
from antiphon.translation.item_kinds import CALLS, COMPACTIONS, FOREIGN_MESSAGES, OUTPUTS, ROLES
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.checks import required
from antiphon.translation.request.configuration import CONFIGURATION, read_updates
from antiphon.translation.request.tools import decode_tools, read_tools
from antiphon.types.items import InputItem
from antiphon.types.tolerance import Tolerance

_MAX_TOOLS: Final = 1_024
_TAKES_ALL: Final = UpstreamProfile("any", images=True, files="part", audio_input=True)


def check_item(where: str, item: InputItem, tolerance: Tolerance) -> None:
    """Raise `InvalidRequest` for an item that no model can read. `tolerance` decides about unknown parts. The caller
    has already removed items of unknown types (`only_known`)."""
    rules = ContentRules(_TAKES_ALL, {}, tolerance=tolerance)
    kind = item.type or ("message" if item.role is not None else None)
    if kind is None:
        required(where, "type", item.type)
    try:
        if kind == "message":
            if item.role not in ROLES:
                raise invalid_value(
                    f"{where}.role", f"{str(item.role)[:64]!r}. Supported values are: {', '.join(ROLES)}"
                )
            message_content(where, item.role, item.content, rules)
        elif kind == "reasoning":
            joined_text(where, item.content, rules)
            joined_text(where, item.summary, rules)
        elif kind in CALLS:
            call_of(where, item, 0)
        elif kind in OUTPUTS:
            if native_output(where, item) is None:
                output_content(where, item.output, rules)
        elif kind in COMPACTIONS:
            required(where, "encrypted_content", item.encrypted_content)
        elif kind in FOREIGN_MESSAGES:
            message_content(where, "user", agent_content(item)[0], rules)
        elif kind == "additional_tools":
            where = f"{where}.tools"
            read_tools(where, decode_tools(where, item.tools), _MAX_TOOLS, tolerance=tolerance, brought=kind)
        elif kind == CONFIGURATION:
            read_updates([(where, item)], tolerance)
        elif kind in ("item_reference", "compaction_trigger"):
            raise invalid_value(f"{where}.type", f"items of type {kind!r} are not supported here")
    except FileNotFetched:
        pass  # the exchange fetches the file when a response needs it
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise invalid_parameter(where, "its content cannot be read") from None
