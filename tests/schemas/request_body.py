"""Makes the schema of the body of `POST /v1/responses`, for the API's OpenAPI document.

Lives here: the schema, from the tables and types with which Antiphon reads a request. Not here: the reader
(`translation/request/body.py`) and the treatment of each part (`translation/request/field_support.py`).

OpenAI may add values to some choices. The schema of such a choice permits the known values and any other string, which
Antiphon ignores.

Invariant: the schema has every field, parameter, item, tool and content part that Antiphon handles. Tests compare it
with the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from antiphon.translation.item_kinds import COMPACTIONS, ITEMS, OUTPUTS, ROLES
from antiphon.translation.request.checks import NAME
from antiphon.translation.request.field_support import GROUPS
from antiphon.translation.request.fields import (
    EFFORTS,
    FIELDS,
    FORMATS,
    INCLUDES,
    LEAST_THRESHOLD,
    SUMMARIES,
    VERBOSITIES,
    Field,
)
from antiphon.translation.request.parameters import PARAMETER_KINDS
from antiphon.translation.request.tool_choice import MODES
from antiphon.translation.request.tools import NAMED, TOOL_MEMBERS
from antiphon.types.request import ToolDeclaration
from tests.schemas.json_schema import Schema, Schemas

_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_REF = "#/components/schemas/"
_PARTS: Schema = {"anyOf": [_TEXT, {"type": "array", "items": {"$ref": f"{_REF}ContentPart"}}]}

_CALL: Mapping[str, Schema] = {"id": _TEXT, "status": _TEXT, "call_id": _TEXT}
_NAMED_CALL = {**_CALL, "name": _TEXT, "namespace": _TEXT}
_ANSWER = {**_CALL, "output": _PARTS}
_MEMBERS: dict[str, Mapping[str, Schema]] = {
    "message": {"id": _TEXT, "status": _TEXT, "role": {"enum": [*ROLES]}, "content": _PARTS, "phase": _TEXT},
    "item_reference": {"id": _TEXT},
    "reasoning": {
        "id": _TEXT,
        "status": _TEXT,
        "summary": {"type": "array", "items": _OBJECT},
        "content": {"type": "array", "items": _OBJECT},
        "encrypted_content": {"type": ["string", "null"]},
    },
    "function_call": {**_NAMED_CALL, "arguments": _TEXT},
    "custom_tool_call": {**_NAMED_CALL, "input": _TEXT},
    "local_shell_call": {**_CALL, "action": _OBJECT},
    "shell_call": {**_CALL, "action": _OBJECT, "environment": {}},
    "apply_patch_call": {**_CALL, "operation": _OBJECT},
    "tool_search_call": {**_CALL, "arguments": {}, "execution": _TEXT},
    "function_call_output": {**_ANSWER, "name": _TEXT},
    "custom_tool_call_output": {**_ANSWER, "name": _TEXT},
    "shell_call_output": {**_CALL, "output": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}]}},
    "computer_call_output": {**_CALL, "output": _OBJECT},
    "tool_search_output": {**_CALL, "tools": {"type": "array", "items": {"$ref": f"{_REF}Tool"}}, "execution": _TEXT},
    "mcp_approval_response": {
        "id": _TEXT,
        "approval_request_id": _TEXT,
        "approve": {"type": "boolean"},
        "reason": {"type": ["string", "null"]},
    },
    "program_output": {**_CALL, "output": {}},
    "additional_tools": {"tools": {"type": "array", "items": {"$ref": f"{_REF}Tool"}}, "role": _TEXT},
    "agent_message": {"author": _TEXT, "recipient": _TEXT, "content": _PARTS},
    "agent_reasoning": {"text": _TEXT},
    "configuration_update": {"reasoning": _OBJECT, "text": _OBJECT},
    "compaction_trigger": {},
    **{kind: {"id": _TEXT, "encrypted_content": _TEXT} for kind in COMPACTIONS},
}
"""The members that Antiphon reads in each type of item. Items of hosted tools have no list, because they reach the
model unchanged."""

_NEEDED = {
    "message": ("role", "content"),
    "item_reference": ("id",),
    "function_call": ("name",),
    "custom_tool_call": ("name",),
    "mcp_approval_response": ("approval_request_id",),
    **dict.fromkeys(COMPACTIONS, ("encrypted_content",)),
}
_PART_MEMBERS: dict[str, Mapping[str, Schema]] = {
    "input_text": {"text": _TEXT},
    "output_text": {"text": _TEXT},
    "refusal": {"refusal": _TEXT},
    "input_image": {"image_url": _TEXT, "file_id": _TEXT, "detail": _TEXT},
    "input_file": {"file_data": _TEXT, "file_url": _TEXT, "file_id": _TEXT, "filename": _TEXT},
    "input_audio": {"input_audio": _OBJECT},
}


def open_choice(words: Iterable[str]) -> Schema:
    """One of these words, or another string, which Antiphon ignores and lists in `antiphon-ignored`."""
    return {"anyOf": [{"type": "string", "enum": [*words]}, {"type": "string"}]}


def add_request_body(schemas: Schemas) -> Schema:
    """Add the schemas of a request and of its parts to the document. Returns the reference to the request's schema."""
    schemas.add("ContentPart", _typed(_PART_MEMBERS, {}, "Antiphon ignores a part of another type."))
    schemas.add("InputItem", _items())
    schemas.add("Tool", _tools(schemas))
    schemas.add("ToolChoice", _tool_choice())
    fields = {name: _plain(schemas, row) for name, row in FIELDS.items() if row.kind is not None}
    fields["include"] = {
        "type": ["array", "null"],
        "items": open_choice(sorted(INCLUDES)),
    }
    _limit_inside(schemas.named)
    parameters = {name: schemas.of(kind, answers=False) for name, kind in PARAMETER_KINDS.items()}
    read_apart: dict[str, Schema] = {
        "model": {"type": "string", "minLength": 1},
        "input": {
            "anyOf": [_TEXT, {"type": "array", "items": {"$ref": f"{_REF}InputItem"}}, {"type": "null"}],
            "description": "A request needs `input`, unless `previous_response_id`, `conversation` or `prompt` "
            "supplies it.",
        },
        "instructions": {"type": ["string", "null"]},
        "tools": {"type": ["array", "null"], "items": {"$ref": f"{_REF}Tool"}},
        "tool_choice": {"anyOf": [{"$ref": f"{_REF}ToolChoice"}, {"type": "null"}]},
        "conversation": {
            "anyOf": [_TEXT, {"type": "object", "properties": {"id": _TEXT}, "required": ["id"]}, {"type": "null"}]
        },
        "prompt": {
            "type": ["object", "null"],
            "properties": {
                "id": _TEXT,
                "version": {"type": ["string", "integer", "null"]},
                "variables": {"type": ["object", "null"]},
            },
            "required": ["id"],
        },
        "extra_body": {
            "type": ["object", "null"],
            "description": "Antiphon treats the members of this object as top-level fields of the request.",
        },
    }
    return schemas.add(
        "CreateResponse",
        {
            "type": "object",
            "description": "Antiphon ignores unknown fields and lists them in the header `antiphon-ignored`. Antiphon "
            "forwards the fields that the setting `upstream.field_allow` names. The page "
            "docs/reference/compatibility.md lists the treatment of each field for each chat server.",
            "properties": {**read_apart, **fields, **parameters},
            "required": ["model"],
        },
    )


def _plain(schemas: Schemas, row: Field) -> Schema:
    if row.words:
        return _nullable(open_choice(row.words))
    schema = _nullable(schemas.of(row.kind | None, answers=False))
    if row.least is not None:
        schema |= {"minimum": row.least, "maximum": row.most}
    if row.longest is not None:
        schema["maxLength"] = row.longest
    return schema


def _limit_inside(named: dict[str, Schema]) -> None:
    reasoning = named["ReasoningOptions"]["properties"]
    reasoning["effort"] = _nullable(open_choice(EFFORTS))
    reasoning["summary"] = reasoning["generate_summary"] = _nullable(open_choice(SUMMARIES))
    named["TextOptions"]["properties"]["verbosity"] = _nullable(open_choice(VERBOSITIES))
    form = named["TextFormat"]["properties"]
    of_schema = {name: form[name] for name in ("name", "description", "schema", "strict")}
    of_schema |= {"name": {"type": "string", "pattern": f"^{NAME.pattern}$"}, "schema": _OBJECT}
    formats = {one: of_schema if one == "json_schema" else {} for one in FORMATS}
    named["TextFormat"] = _typed(formats, {"json_schema": ("name", "schema")})
    named["ContextManagement"]["properties"]["compact_threshold"]["minimum"] = LEAST_THRESHOLD
    named["ContextManagement"]["properties"]["type"] = open_choice(["compaction"])


def _nullable(schema: Schema) -> Schema:
    """A schema that also allows null, because Antiphon treats a field with null as absent."""
    kind = schema.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind) or {"type": "null"} in schema.get("anyOf", ()):
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}


def _typed(
    members: Mapping[str, Mapping[str, Schema] | None],
    needed: Mapping[str, tuple[str, ...]],
    otherwise: str | None = None,
) -> Schema:
    """A schema of objects that `type` tells apart. A type with the value None permits any members. `otherwise` is the
    description of an object of another type."""
    known: list[Schema] = [
        {
            "type": "object",
            "title": kind,
            "properties": {"type": {"const": kind}, **(properties or {})},
            "required": ["type", *needed.get(kind, ())],
            **({"additionalProperties": True} if properties is None else {}),
        }
        for kind, properties in members.items()
    ]
    return {"anyOf": [*known, {"type": "object", "description": otherwise}] if otherwise else known}


def _items() -> Schema:
    plain = {kind: _MEMBERS.get(kind, _ANSWER if kind in OUTPUTS else None) for kind in sorted(ITEMS)}
    return _typed(
        plain,
        _NEEDED,
        "Messages and item references may omit `type`. Antiphon ignores an item of another type.",
    )


def _tools(schemas: Schemas) -> Schema:
    hints = get_type_hints(ToolDeclaration, include_extras=True)
    kinds = {name if name != "unhurried" else "async": kind for name, kind in hints.items()}
    members: dict[str, Mapping[str, Schema] | None] = {}
    hosted = [name.removeprefix("tools.") for name in GROUPS["Tools"] if name.count(".") == 1 and " " not in name]
    for kind, known in TOOL_MEMBERS.items():
        names = sorted(known - {"type"})
        members[kind] = {
            **{name: schemas.of(kinds.get(name, Any), answers=False) for name in names},
            **({"parameters": {"type": ["object", "null"]}} if "parameters" in names else {}),
            **({"tools": {"type": "array", "items": {"$ref": f"{_REF}Tool"}}} if "tools" in names else {}),
        }
    members |= dict.fromkeys(one for one in hosted if one not in TOOL_MEMBERS)
    return _typed(members, dict.fromkeys(NAMED, ("name",)), "Antiphon ignores a tool of another type.")


def _tool_choice() -> Schema:
    named = {"name": _TEXT, "namespace": _TEXT}
    among = {"type": "object", "properties": {"type": _TEXT, **named, "server_label": _TEXT}, "required": ["type"]}
    members: dict[str, Mapping[str, Schema]] = {
        name.removeprefix("tool_choice."): {} for name in GROUPS["Forms of `tool_choice`"]
    }
    members |= {"function": named, "custom": named, "mcp": {"server_label": _TEXT, "name": _TEXT}}
    members["allowed_tools"] = {"mode": {"enum": [*MODES]}, "tools": {"type": "array", "items": among}}
    forms = {kind: said for kind, said in members.items() if kind not in MODES}
    needed = {"function": ("name",), "custom": ("name",), "mcp": ("server_label",), "allowed_tools": ("tools",)}
    return {"anyOf": [{"enum": [*MODES]}, *_typed(forms, needed)["anyOf"]]}
