"""Defines the base class of all sections of settings, the value types that they share, and the list of setting names.

This module also has the functions that return the path and the description of each setting. `sources.py` reads the
values of settings, and `problems.py` formats the error messages.

Invariant: a section is complete, validated and immutable. No validation error contains the value of a setting.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from ipaddress import IPv6Address
from itertools import pairwise
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, SecretStr

from antiphon.config.urls import HIDDEN, shown_text, shown_value

MIB = 1 << 20
_MASK = str(SecretStr("x"))
NO_SECRET = (
    "is the text that Antiphon prints in place of a secret; write the secret itself, or remove the setting and set "
    "its environment variable"
)


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add the descriptions of a section's settings to its JSON Schema.

    The function removes the default of a nested section, because the schema has a default for each setting in that
    section.
    """
    texts = descriptions(model)
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    for name, one in schema["properties"].items():
        one.pop("title", None)
        if "$ref" in one:
            one.pop("default", None)
        if name in texts:
            one["description"] = " ".join(texts[name].split())


class Section(BaseModel):
    # `_describe` reads the descriptions only for the JSON Schema, so a normal start does not parse the source.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, json_schema_extra=_describe
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        for name, value in super().__repr_args__():
            yield name, shown_value(value)


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """The descriptions of a section's settings, by the setting's name, including inherited settings. The description of
    a setting is the string below its field in the code."""
    found = {}
    for above in reversed([one for one in model.__mro__ if issubclass(one, BaseModel) and one is not BaseModel]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(above))).body
        assert isinstance(node, ast.ClassDef)
        for field, below in pairwise(node.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def section_in(kind: object) -> type[Section] | None:
    """The section class in the type of a setting: the type itself, or the type of its elements. None if the setting has
    no section class."""
    parts = (one for one in (kind, *typing.get_args(kind)) if isinstance(one, type))
    return next((one for one in parts if issubclass(one, Section)), None)


def field_paths(model: type[Section], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    """Return the path and the type of every setting in the section `model` and its nested sections, in the order of the
    code."""
    found: list[tuple[tuple[str, ...], object]] = []
    for name, field in model.model_fields.items():
        kind: object = field.annotation
        section = section_in(kind)
        if section is not None and section is kind:
            found += field_paths(section, (*above, name))
        else:
            found.append(((*above, name), kind))
    return found


def _not_a_mask(value: SecretStr) -> SecretStr:
    if value.get_secret_value() == _MASK:
        raise ValueError(f"{_MASK} {NO_SECRET}")
    return value


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CONTROL_IN_HEADER = (
    "contains a line end or another control character, which a header cannot contain; remove the character"
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _header_secret(value: SecretStr) -> SecretStr:
    if _CONTROL.search(value.get_secret_value()):
        raise ValueError(_CONTROL_IN_HEADER)
    return value


def _header_value(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError(_CONTROL_IN_HEADER)
    return value


def _header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value):
        raise ValueError("is not a valid header name")
    return value


def parse_address(text: str) -> tuple[str, int]:
    """Parse an address into (host, port). For `unix:PATH` the result is (`unix`, 0). Raises ValueError for any other
    text."""
    if text.startswith("unix:"):
        return "unix", 0
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not _is_host(host):
        raise ValueError("is not HOST:PORT (or unix:PATH)")
    if int(port) > 65535:
        raise ValueError("is not HOST:PORT: the largest port is 65535")
    return host.strip("[]") or "0.0.0.0", int(port)


def _is_host(text: str) -> bool:
    if ":" not in text and not text.startswith("["):
        return re.search(r"[]/@\s\x00]", text) is None
    address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    parse_address(text)
    return text


def _tcp_address(text: str) -> str:
    if parse_address(text)[0] == "unix":
        raise ValueError("is not HOST:PORT")
    return text


def _web_url(value: str) -> SplitResult:
    if re.search(r"[\x00-\x20\x7f]", value):
        raise ValueError(
            "contains a space, a line end or another control character; remove the character, or write a space as %20"
        )
    wrong = ValueError("must be an http:// or https:// URL, for example http://127.0.0.1:11434/v1")
    try:
        parts = urlsplit(value)
    except ValueError:
        # The message of `urlsplit` contains the URL, which may hold a password.
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise wrong
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("the port must be a number below 65536") from None
    return parts


def _credential_url(value: str) -> str:
    _web_url(value)
    if HIDDEN in value and shown_text(value) == value:
        raise ValueError(f"{HIDDEN} {NO_SECRET}")
    return value


def _url(value: str) -> str:
    _base_url(value)
    return value


def _base_url(value: str) -> str:
    parts = _web_url(value)
    if parts.username or parts.password:
        raise ValueError(
            "must not contain credentials; put the credentials into api_key or headers of the same section"
        )
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or fragment")
    return value.rstrip("/")


Secret = Annotated[SecretStr, AfterValidator(_not_a_mask)]
"""A secret. Commands that print settings mask this value."""
HeaderSecret = Annotated[Secret, AfterValidator(_header_secret)]
"""A secret that Antiphon sends in a header. It must not contain a control character."""
HeaderValue = Annotated[str, AfterValidator(_header_value)]
"""A text that Antiphon sends in a header. It must not contain a control character."""
HeaderName = Annotated[str, AfterValidator(_header_name)]
"""The name of a header."""
Address = Annotated[str, AfterValidator(_address)]
"""`HOST:PORT` or `unix:PATH`."""
TcpAddress = Annotated[str, AfterValidator(_tcp_address)]
"""`HOST:PORT`, not a Unix socket."""
BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""The base URL of a server, without a slash at its end."""
HttpUrl = Annotated[str, AfterValidator(_url)]
"""The URL of a server, with the slash at its end if there is one."""
CredentialUrl = Annotated[str, AfterValidator(_credential_url)]
"""A URL that may contain credentials. Commands that print settings mask the credentials."""
