"""Bodies of which fields that mean nothing are named in the answer.

Lives here: reading such a body, and the header that names what had no effect. Not here: what the fields mean, bodies
that are read strictly.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from antiphon.api.http import ApiRequest, read_body
from antiphon.types.transport import Headers

_Body = TypeVar("_Body", bound=Struct)
_FIELDS = msgspec.json.Decoder(dict[str, Raw])


def read_known(request: ApiRequest, kind: type[_Body]) -> tuple[_Body, list[str]]:
    """The body, and the names of its fields that mean nothing here."""
    body = read_body(request, kind)
    names = _FIELDS.decode(request.body or b"{}")
    return body, [name for name in names if name not in kind.__struct_fields__]


def ignored_fields(names: list[str]) -> Headers:
    """The header that names what was ignored."""
    plain = [name[:64] for name in names[:16] if name.isascii() and name.isprintable() and "," not in name]
    return (("antiphon-ignored", ", ".join(plain)),) if plain else ()
