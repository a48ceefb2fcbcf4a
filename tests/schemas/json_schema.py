"""Makes JSON schemas of types, for the API's OpenAPI document.

Lives here: the conversion of a Python type to a schema. A msgspec Struct becomes a named schema. Not here: the choice
of the types (the routes), and paths and operations (`api_document.py`).

This module does not use msgspec's own schemas, for two reasons. They have no union of Structs without tags, which the
items of an output need. They also declare every field with a default optional, although an answer lacks only unset
fields.

Invariant: no two types have the same name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from antiphon.api.http import Open, StandsFor

Schema = dict[str, Any]

_PLAIN: dict[object, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
    None: {"type": "null"},
    Any: {},
    object: {},
    Raw: {},
}
_WHERE = "#/components/schemas/"


class Schemas:
    """The schemas of one document. In a schema of an answer (`answers`), only fields that can be unset are optional.

    `whole` maps a type with few members to the complete type, which the document describes instead."""

    def __init__(self, whole: Mapping[type[Struct], type[Struct]] | None = None) -> None:
        self._whole = whole or {}
        self.named: dict[str, Schema] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def of(self, kind: object, *, answers: bool, known: Mapping[object, object] | None = None) -> Schema:
        """The schema of a type. `known` has the arguments of generic types."""
        known = known or {}
        if isinstance(kind, TypeVar):
            kind = known[kind]
        if isinstance(kind, Mapping):
            # A schema already.
            return dict(kind)
        try:
            if kind in _PLAIN:
                return dict(_PLAIN[kind])
        except TypeError:
            pass
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._annotated(arguments, answers, known)
        if origin is Literal:
            return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
        if origin in (Union, UnionType):
            return self._union([one for one in arguments if one is not UnsetType], answers, known)
        if origin in (list, tuple, frozenset):
            return {"type": "array", "items": self.of(arguments[0], answers=answers, known=known)}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1], answers=answers, known=known)}
        struct = origin or kind
        if isinstance(struct, type) and issubclass(struct, Struct):
            given = [known.get(one, one) if isinstance(one, TypeVar) else one for one in arguments]
            return self._struct(self._whole.get(struct, struct), given, answers)
        raise TypeError(f"no schema for {kind!r}")

    def add(self, name: str, schema: Schema) -> Schema:
        """Name a schema that belongs to no type. Returns the reference to the schema."""
        if self.named.setdefault(name, schema) != schema:
            raise ValueError(f"there are two schemas of the name {name}")
        return {"$ref": _WHERE + name}

    def _annotated(self, arguments: tuple[Any, ...], answers: bool, known: Mapping[object, object]) -> Schema:
        stands = next((said.kind for said in arguments[1:] if isinstance(said, StandsFor)), arguments[0])
        schema = self.of(stands, answers=answers, known=known)
        for said in arguments[1:]:
            if not isinstance(said, msgspec.Meta):
                continue
            limits = {
                "minimum": said.ge,
                "maximum": said.le,
                "minLength": said.min_length,
                "maxLength": said.max_length,
            }
            schema |= {name: value for name, value in limits.items() if value is not None}
            schema |= {"description": said.description} if said.description else {}
            schema |= said.extra_json_schema or {}
        return schema

    def _union(self, kinds: list[Any], answers: bool, known: Mapping[object, object]) -> Schema:
        found = [self.of(one, answers=answers, known=known) for one in kinds]
        if len(found) == 1:
            return found[0]
        plain = [one["type"] for one in found if one.keys() == {"type"} and isinstance(one["type"], str)]
        if len(plain) == len(found):
            return {"type": plain}
        return {"anyOf": found}

    def _struct(self, struct: type[Struct], arguments: list[Any], answers: bool) -> Schema:
        name = struct.__name__
        if arguments:
            words = [one.__name__ for one in arguments if isinstance(one, type)]
            name = f"{words[0]}{name.removesuffix('Of')}" if words else ""
        if not name:
            return self._members(struct, arguments, answers)
        key = (struct, tuple(arguments), answers)
        if key in self._names:
            return {"$ref": _WHERE + self._names[key]}
        other = self._names.get((struct, tuple(arguments), not answers))
        if other is not None:
            # As a rule both ways are the same; where they differ, the second has a name of its own.
            name = other
            if self.named[other] != self._members(struct, arguments, answers):
                name += "Answer" if answers else "Param"
        elif name in self.named:
            raise ValueError(f"there are two types of the name {name}")
        self._names[key] = name
        if name not in self.named:
            self.named[name] = {}
            self.named[name] = self._members(struct, arguments, answers)
        return {"$ref": _WHERE + name}

    def _members(self, struct: type[Struct], arguments: list[Any], answers: bool) -> Schema:
        known = dict(zip(getattr(struct, "__parameters__", ()), arguments, strict=True))
        hints = get_type_hints(struct, include_extras=True)
        properties: dict[str, Schema] = {}
        required: list[str] = []
        config = struct.__struct_config__
        if config.tag is not None:
            properties[str(config.tag_field)] = {"const": config.tag}
            required.append(str(config.tag_field))
        for field in msgspec.structs.fields(struct):
            properties[field.encode_name] = self.of(hints[field.name], answers=answers, known=known)
            if (field.default is not UNSET) if answers else field.required:
                required.append(field.encode_name)
        said = inspect.cleandoc(struct.__doc__ or "").replace("\n", " ")
        return {
            "type": "object",
            **({"description": said} if said else {}),
            "properties": properties,
            **({"required": required} if required else {}),
            **({"additionalProperties": True} if issubclass(struct, Open) else {}),
        }
