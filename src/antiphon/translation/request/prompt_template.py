"""Fills a prompt template: replaces its variables by the values in a request.

This module replaces `{{name}}` in instructions and in the text of messages by texts, images and files. The template's
other fields are fields of a create-response request, which `body.py` reads.

A template's messages come first, like instructions. A template's messages are not part of the response's stored input
or of later responses. A field of the request overrides the same field of the template.

Invariants: a request without a value for a variable of the template gets a 400. A request with a value for a variable
that the template does not have gets a 400 too. The sidecar never searches a value for variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import (
    InvalidRequest,
    RequestTooLarge,
    invalid_parameter,
    invalid_type,
    invalid_value,
    missing_value,
    wrong_value,
)
from antiphon.translation.request.checks import read_string, read_value
from antiphon.translation.request.fields import FIELDS
from antiphon.translation.request.parameters import PARAMETERS
from antiphon.translation.values import PromptReference, PromptTemplate
from antiphon.types.json import encode, first, given, raw, try_decode
from antiphon.types.views import PromptMember, PromptMessage, PromptValue

TEMPLATE_FIELDS: Final = frozenset({*PARAMETERS, *(name for name, row in FIELDS.items() if row.template)})
"""The fields of a request that a template may set."""

_VARIABLE: Final = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_.-]{0,63})\s*\}\}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_TEXT_KINDS: Final = ("input_text", "output_text", "text")


class PromptNotLoaded(Exception):
    """The request refers to a prompt that is not loaded. The caller must load the prompt, and then read the request
    again."""

    def __init__(self, reference: PromptReference) -> None:
        super().__init__(reference.id)
        self.reference = reference


_REFERENCE: Final = msgspec.json.Decoder(PromptMember)
_VALUE: Final = msgspec.json.Decoder(PromptValue)
_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_RAWS: Final = msgspec.json.Decoder(list[Raw])
_MESSAGE: Final = msgspec.json.Decoder(PromptMessage)


def read_reference(value: Raw) -> PromptReference | None:
    """Read a request's `prompt`, or return None when the request has no `prompt`. Raises `InvalidRequest`."""
    if not given(value):
        return None
    read = read_value("prompt", _REFERENCE, value)
    version = None
    if read.version is not None:
        if not _VERSION.fullmatch(str(read.version)):
            raise invalid_parameter(
                "prompt.version", f"{str(read.version)[:64]!r} is not a version; versions are numbered from 1"
            )
        version = int(read.version)
    return PromptReference(read.id, version, read.variables or {})


def show_reference(reference: PromptReference, prompt: PromptTemplate) -> Raw:
    """Return a request's `prompt` in the form that the response repeats, with the version that Antiphon used."""
    return raw({"id": reference.id, "version": str(prompt.version), "variables": reference.variables})


def pin_prompt(body: bytes, shown: Raw) -> bytes:
    """Set a fixed version of the prompt in the request body. A process that parses this body later then uses the same
    version. `shown` is the result of `show_reference`."""
    return encode({**_FIELDS.decode(body), "prompt": shown})


def variables_of(template: bytes) -> tuple[str, ...]:
    """Return the names of a template's variables, in order of their first use. Raises `InvalidRequest`."""
    seen = _Values({}, collect=True)
    seen.fill(template)
    return tuple(dict.fromkeys(seen.names))


def fill(template: bytes, values: Mapping[str, Raw], max_bytes: int) -> tuple[list[Raw], dict[str, Raw]]:
    """Insert the values into the template, a JSON object. Returns the template's messages, and the request fields that
    the template sets.

    Raises `InvalidRequest`. Raises `RequestTooLarge` if the result would have more than `max_bytes` bytes.
    """
    seen = _Values({}, collect=True)
    seen.fill(template)
    names = tuple(dict.fromkeys(seen.names))
    missing = [name for name in names if name not in values]
    if missing:
        raise missing_value(f"Missing prompt variables: {', '.join(missing)}.", "prompt.variables")
    if unknown := [name for name in values if name not in names]:
        raise InvalidRequest(
            f"Unknown prompt variables: {', '.join(name[:64] for name in unknown)}.",
            param="prompt.variables",
            code="unknown_parameter",
        )
    # A template may use a variable many times, so the check counts every use.
    if len(template) + sum(len(values[name]) for name in seen.names) > max_bytes:
        raise RequestTooLarge(
            f"With all its variables filled in, the prompt has more than {max_bytes} bytes, the most "
            "that a request may have (limits.request_body_bytes).",
            param="prompt.variables",
            code="request_too_large",
        )
    return _Values(values).fill(template)


class _Values:
    """Replaces variables by values. With `collect`, the class only collects the variables' names, and leaves the text
    unchanged."""

    def __init__(self, values: Mapping[str, Raw], *, collect: bool = False) -> None:
        self._collect = collect
        self.names: list[str] = []
        self._texts: dict[str, str] = {}
        self._parts: dict[str, Raw] = {}
        for name, value in values.items():
            self._read(name, value)

    def fill(self, template: bytes) -> tuple[list[Raw], dict[str, Raw]]:
        fields = _FIELDS.decode(template)
        fields.pop("description", None)  # The description is only for people.
        messages = list(self._messages(fields.pop("input", Raw())))
        instructions = fields.get("instructions")
        if instructions is not None and given(instructions):
            text = read_string("instructions", instructions)
            fields["instructions"] = raw("".join(map(str, self._pieces(text, "instructions", parts=False))))
        return messages, fields

    def _read(self, name: str, value: Raw) -> None:
        where = f"prompt.variables.{name[:64]}"
        if first(value) == b'"':
            self._texts[name] = read_string(where, value)
            return
        read = try_decode(_VALUE, value)
        if read is not None and read.type == "input_text" and read.text is not None:
            self._texts[name] = read.text
        elif read is not None and read.type in ("input_image", "input_file"):
            self._parts[name] = value
        else:
            raise invalid_type(where, "expected a string, or a part of type input_text, input_image or input_file")

    def _messages(self, value: Raw) -> Iterable[Raw]:
        if not given(value):
            return
        if first(value) == b'"':
            value = raw([{"role": "user", "content": value}])
        sources = try_decode(_RAWS, value)
        if sources is None:
            raise invalid_type("input", "expected a string or a list of messages")
        for number, source in enumerate(sources):
            where = f"input[{number}]"
            message = read_value(where, _MESSAGE, source)
            if message.type != "message":
                raise invalid_value(f"{where}.type", "a prompt may contain only messages")
            yield self._message(where, source, message)

    def _message(self, where: str, source: Raw, message: PromptMessage) -> Raw:
        user = message.role == "user"
        if first(message.content) == b'"':
            pieces = list(self._pieces(read_string(f"{where}.content", message.content), where, parts=user))
            if all(isinstance(piece, str) for piece in pieces):
                content: object = "".join(str(piece) for piece in pieces)
            else:
                content = _parts(pieces, {"type": "input_text"})
        elif first(message.content) == b"[":
            read = _RAWS.decode(message.content)
            content = [made for part in read for made in self._part(part, where, user=user)]
        else:
            return source
        fields: dict[str, object] = dict(_FIELDS.decode(source))
        return raw({**fields, "content": content})

    def _part(self, part: Raw, where: str, *, user: bool) -> list[object]:
        """Replace the variables in one content part. If the value of a variable is an image or a file, the part becomes
        several parts."""
        read = try_decode(_VALUE, part)
        if read is None or read.type not in _TEXT_KINDS or read.text is None:
            return [part]
        fields: dict[str, object] = dict(_FIELDS.decode(part))
        return _parts(list(self._pieces(read.text, where, parts=user)), fields)

    def _pieces(self, text: str, where: str, *, parts: bool) -> Iterable[str | Raw]:
        """Split a text at its variables. Yields the text between variables, and the value of each variable. If `parts`
        is true, a value may be an image or a file."""
        at = 0
        for found in _VARIABLE.finditer(text):
            yield text[at : found.start()]
            at = found.end()
            name = found[1]
            self.names.append(name)
            if self._collect:
                yield found[0]
            elif name in self._texts:
                yield self._texts[name]
            elif parts:
                yield self._parts[name]
            else:
                raise wrong_value(
                    f"The prompt variable '{name}' is an image or a file, but the prompt uses it in '{where}', "
                    "where only text is allowed.",
                    f"prompt.variables.{name}",
                )
        yield text[at:]


def _parts(pieces: list[str | Raw], like: dict[str, object]) -> list[object]:
    """Make content parts from these texts, images and files. Adjacent texts become one part with the keys of `like`."""
    parts: list[object] = []
    text = ""
    for piece in pieces:
        if isinstance(piece, Raw):
            if text:
                parts.append({**like, "text": text})
            parts.append(piece)
            text = ""
        else:
            text += piece
    if text or not parts:
        parts.append({**like, "text": text})
    return parts
