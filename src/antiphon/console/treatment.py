"""Explains what Antiphon did with the parts of one request: which parts it ignored, handled itself, or changed.

This module looks up a request's parts in the table of `GET /v1/antiphon/capabilities`.
`translation/request/field_support.py` defines this table.

Invariant: the explanations use the table of the current settings. If Antiphon ignored a part that this table does not
list as ignored, the explanation mentions this difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from antiphon.engine.ports.idempotency import HEADER as IDEMPOTENCY
from antiphon.translation.request.tools import why_not_here

_GROUPS: Final = ("fields", "parameters", "include", "tools", "tool_choice", "items", "content")
_NO_NOTE: Final = "the model server does not support this part"
_OTHERS: Final = {
    "tools": ("any other tool", "any other member of a tool"),
    "input": ("any other item", "any other member of an item"),
    "content": ("any other part", "any other member of a part"),
}
"""Maps the first word of an unknown name to two rows of the table. The first row is for an unknown part, the second for
an unknown member of a part."""
_UNKNOWN: Final = "Antiphon does not know this name; "


class Treated(NamedTuple):
    """One part of a request, and a note about what Antiphon did with it."""

    name: str
    note: str


def ignored_parts(names: Sequence[str], capabilities: Mapping[str, Any]) -> list[Treated]:
    """Return the ignored parts of a request, each with the reason. `capabilities` is the decoded JSON of `GET
    /v1/antiphon/capabilities`, or empty."""
    table = _table(capabilities)
    return [Treated(name, _why_ignored(name, table) if table else "") for name in names]


def changed_parts(request: bytes, chat: bytes, capabilities: Mapping[str, Any]) -> list[Treated]:
    """Return the parts of a request that Antiphon handled itself or sent to the upstream with another value. `request`
    is the body of the client's request, and `chat` the body of the last chat request."""
    asked, sent = _object(request), _object(chat)
    table = _table(capabilities)
    found = list(_other_values(asked, sent)) if sent else []
    for name in dict.fromkeys(_names(asked)):
        row = table.get(name)
        if row is not None and row["support"] == "handled":
            found.append(Treated(name, row["note"] or "Antiphon handles it"))
    return found


def _why_ignored(name: str, table: Mapping[str, Mapping[str, Any]]) -> str:
    row = table.get(name) or next((row for key, row in table.items() if _is_ignored_value(key, row, name)), None)
    if row is None:
        return _why_unknown(name, table)
    note = row["note"] or ""
    if row["support"] != "ignored":
        now = f"now {row['support']}" + (f" ({note})" if note else "")
        return f"{now}; this request used a form without effect, or the settings have changed since"
    kind = name.removeprefix("tools.")
    if name.startswith("tools.") and "." not in kind:
        return f"{why_not_here(kind)}; {note}" if note else why_not_here(kind)
    return note or _NO_NOTE


def _is_ignored_value(key: str, row: Mapping[str, Any], name: str) -> bool:
    """Whether the table's row `key` describes an ignored value of the field `name`. An example is `truncation.auto`."""
    return key.startswith(f"{name}.") and row["support"] == "ignored" and name not in _OTHERS


def _why_unknown(name: str, table: Mapping[str, Mapping[str, Any]]) -> str:
    if name == IDEMPOTENCY:
        return "Antiphon returns an earlier result only for requests that create a response"
    if name.startswith("include:"):
        other = "any other value of `include`"
    elif ":" in name:
        return "Antiphon does not know this value"
    else:
        first = name.partition("[")[0].partition(".")[0]
        whole, member = _OTHERS.get(first, ("any other field", "any other field"))
        other = member if "[" in name or name.count(".") > 1 else whole
    row = table.get(other)
    return _UNKNOWN + row["note"] if row is not None and row["note"] else _UNKNOWN.rstrip("; ")


def _other_values(asked: Mapping[str, Any], sent: Mapping[str, Any]) -> Iterator[Treated]:
    """Yield the values that Antiphon replaced by the nearest value that the model server accepts."""
    model = asked.get("model")
    if isinstance(model, str) and isinstance(sent.get("model"), str) and model != sent["model"]:
        yield Treated("model", f"Antiphon sent {sent['model']!r} instead of {model!r}")
    effort = _inside(asked, "reasoning").get("effort")
    used = sent.get("reasoning_effort")
    if isinstance(effort, str) and isinstance(used, str) and effort != used:
        nearest = f"the nearest value to {effort!r} that the upstream's profile allows"
        yield Treated("reasoning.effort", f"Antiphon sent {used!r}, {nearest}")
    wanted = _inside(_inside(asked, "text"), "format").get("type")
    form = _inside(sent, "response_format").get("type")
    if wanted in ("json_schema", "json_object") and form != wanted:
        told = f"the format {form!r}" if form else "no format"
        yield Treated("text.format", f"Antiphon sent {told} instead of {wanted!r}")


def _names(asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names under which the table may list the parts of this request."""
    for field, value in asked.items():
        if not value:
            continue
        yield field
        if isinstance(value, str):
            yield f"{field}.{value}"
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield f"{field}.{name}"
                if isinstance(inner, dict):
                    yield f"{field}.{name}.{inner.get('type')}"
            yield f"{field}.{value.get('type')}"
        elif isinstance(value, list):
            prefix = {"include": "include:", "tools": "tools."}.get(field, "")
            for one in value if prefix else ():
                yield prefix + str(one.get("type") if isinstance(one, dict) else one)


def _table(capabilities: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Merge all groups of the capabilities into one table. If the group `fields` and another group have a row of the
    same name, the table has the row of `fields`. No other two groups share a name."""
    groups: Iterable[Mapping[str, Any]] = (capabilities.get(group) or {} for group in reversed(_GROUPS))
    return {name: row for rows in groups for name, row in rows.items()}


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _inside(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = value.get(name)
    return inner if isinstance(inner, dict) else {}
