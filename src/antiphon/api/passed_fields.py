"""Reads the fields of a forwarded body that decide its upstream and its quotas: the model and the limits of the answer.

This module reads JSON and forms. Not here: the check of the client's key (`engine/exchange/allowed_by_key.py`), and the
reservation in the quotas (`passed_quota.py`).

Invariant: if these fields of a JSON body or form have two readings, the module refuses the body. So it refuses a body
that only lenient parsers read. It also refuses a field that stands twice or in upper case, because parsers disagree
about such fields.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import Raw

from antiphon.api.multipart import FormDecoder, FormPart, PartData, boundary
from antiphon.engine.exchange.named_models import fields_of, hidden_models, hides_models, note_field, other_models
from antiphon.errors import invalid_parameter, invalid_type
from antiphon.translation.request.checks import read_string
from antiphon.types.json import ABSENT, given, try_decode

_FORM: Final = "multipart/form-data"
_PLAIN_FORM: Final = "application/x-www-form-urlencoded"
_NAMES: Final = frozenset({"model", "max_tokens", "max_completion_tokens", "n"})
_BEFORE: Final = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"
"""Bytes before the first brace of a JSON object: whitespace, byte order marks and the zero bytes of UTF-16."""
_PIECE: Final = 1 << 20
_LONGEST_MODEL: Final = 4096
_LARGEST: Final = 1 << 40
"""A number of tokens above every sensible limit. The module replaces larger numbers by this number, because they could
exceed the database's integers."""


class PassedFields(msgspec.Struct, frozen=True):
    """The fields of one forwarded body. `output`: the maximum of output tokens, or None if the body does not limit
    them. `choices`: the number of answers. `others`: the models that the body names in addition to `model`."""

    model: str | None = None
    output: int | None = None
    choices: int = 1
    others: tuple[str, ...] = ()


_NUMBER: Final = msgspec.json.Decoder(bool | int | float | str)


def read_fields(body: bytes, *, others: bool = False) -> PassedFields:
    """Return the fields of a JSON body. Raises `InvalidRequest` if the body is no JSON object, or is ambiguous.

    `others`: whether to find all models that the body names, because a quota limits a model.
    """
    found: dict[str, Raw] = {}
    fields = fields_of(body)
    for written, value in fields:
        if (name := written.casefold()) in _NAMES:
            note_field(found, written, name)
            found[name] = value
    model = read_string("model", found["model"]) if given(found.get("model", ABSENT)) else None
    limits = [_number(name, found.get(name, ABSENT)) for name in ("max_completion_tokens", "max_tokens")]
    return PassedFields(
        model,
        max((limit for limit in limits if limit is not None), default=None),
        _number("n", found.get("n", ABSENT)) or 1,
        other_models(model or "", fields) if others else (),
    )


def read_any_fields(body: bytes, content_type: str | None, *, others: bool = False) -> PassedFields:
    """Return the fields of a body of any content type: JSON, a form, or other data, which has no fields. With `others`,
    a form may name models only in its field `model`. Raises `InvalidRequest`.

    Some servers ignore the content type, so a body that begins as a JSON object counts as JSON.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if "json" in kind or not kind or body.lstrip(_BEFORE)[:1] == b"{":
        return read_fields(body, others=others)
    models: dict[str, str] = {}
    if kind == _FORM:
        _read_form(body, content_type, models, others=others)
    elif kind == _PLAIN_FORM:
        for name, value in parse_qsl(body.decode("latin-1"), keep_blank_values=True, encoding="utf-8"):
            if name.casefold() == "model":
                note_field(models, name, "model")
                models["model"] = value
            elif others and hides_models(name):
                raise hidden_models(name)
    model = models.get("model")
    return PassedFields(model, others=other_models(model or "") if others else ())


def _read_form(body: bytes, content_type: str | None, models: dict[str, str], *, others: bool) -> None:
    """Add the field `model` of a multipart form to `models`. With `others`, raises `InvalidRequest` for other fields
    that may name models."""
    decoder = FormDecoder(boundary(content_type))
    value: bytes | None = None
    for at in range(0, len(body), _PIECE):
        for event in decoder.feed(body[at : at + _PIECE]):
            if isinstance(event, FormPart):
                value = None
                if event.name.casefold() == "model":
                    note_field(models, event.name, "model")
                    value, models["model"] = b"", ""
                elif others and hides_models(event.name):
                    raise hidden_models(event.name)
            elif isinstance(event, PartData) and value is not None:
                value += event.data
                if len(value) > _LONGEST_MODEL:
                    raise invalid_parameter("model", f"the name has more than {_LONGEST_MODEL} bytes")
                models["model"] = value.decode("utf-8", "replace")
    decoder.finish()


def _number(name: str, value: Raw) -> int | None:
    """The positive number in a field, or None. Some servers also accept a number as a text."""
    if not given(value):
        return None
    read = try_decode(_NUMBER, value)
    try:
        number = int(float(read) if isinstance(read, str) else read) if read is not None else None
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise invalid_type(name, "expected an integer")
    return min(number, _LARGEST) if number > 0 else None
