"""Rebuilds the body of a create-response request from the stored response, for requests that no recording has.

A response repeats most fields of its request. `translation/request/fields.py` has the table of these fields. This
module also names the fields that a response does not repeat. The console shows these names before the request runs
again.

Invariant: the body leaves out every value that a request without the field has too. So the body does not fix a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from antiphon.translation.request.fields import ECHOED, FIELDS, IGNORED_FIELDS

_OWN: Final = (
    *("model", "instructions", "previous_response_id", "conversation", "prompt"),
    *("tools", "tool_choice", "text", "reasoning", "metadata"),
)
_REPEATED: Final = tuple(name for name in FIELDS if name in ECHOED or name in _OWN)
_OF_CALL: Final = frozenset({"input", "store", "stream", "stream_options"})
"""The fields that do not change the request's result. The input is a separate list."""
NOT_REPEATED: Final = tuple(sorted(FIELDS.keys() - set(_REPEATED) - _OF_CALL - IGNORED_FIELDS))
"""The fields with an effect that a stored response does not have."""
_ADDED: Final = "antiphon_"
"""The prefix of the keys that Antiphon adds to the metadata."""


def rebuilt(response: Mapping[str, Any], items: Sequence[object]) -> dict[str, object]:
    """Return the request's body. `response` is the stored response, and `items` are its input items."""
    body: dict[str, object] = {}
    for name in _REPEATED:
        row, value = ECHOED.get(name), response.get(name)
        default = row is not None and (value == row.echo or value in row.unsent)
        if not default and (value := _asked(name, value)) not in (None, {}, [], ""):
            body[name] = value
    if "prompt" in body and not isinstance(body.get("instructions", ""), str):
        # These instructions contain the messages of the prompt, which the prompt adds again.
        del body["instructions"]
    return {**body, "input": list(items)} if items else body


def what_is_missing(response: Mapping[str, Any], *, cut: bool) -> str:
    """Return a sentence for the user that names the parts which `rebuilt` cannot restore. `cut`: the input has more
    items."""
    parts = [*NOT_REPEATED, "fields of Chat Completions such as seed and stop", "fields that Antiphon does not know"]
    parts.append("values that equal the API's defaults, such as temperature 1")
    if isinstance(response.get("instructions"), list):
        parts.append("instructions in addition to the prompt")
    if any(isinstance(tool, Mapping) and tool.get("type") == "mcp" for tool in response.get("tools") or ()):
        parts.append("credentials of MCP servers")
    if cut:
        parts.append("the last input items")
    return f"A stored response does not have these parts, so add them if the request had them: {', '.join(parts)}."


def _asked(name: str, value: Any) -> object:
    """Return the value of a field as a request has it, without the defaults that Antiphon filled in."""
    if name == "conversation" and isinstance(value, Mapping):
        return value.get("id")
    if name == "metadata" and isinstance(value, Mapping):
        return {key: text for key, text in value.items() if not key.startswith(_ADDED)}
    if name == "reasoning" and isinstance(value, Mapping):
        return {key: one for key, one in value.items() if one is not None}
    if name == "text" and isinstance(value, Mapping):
        defaults: dict[str, object] = {"format": {"type": "text"}, "verbosity": "medium"}
        return {key: one for key, one in value.items() if one != defaults.get(key)}
    return None if (name, value) == ("tool_choice", "auto") else value
