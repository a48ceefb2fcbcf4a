"""Serves the Prompts API, which stores versioned prompt templates. OpenAI's API can use prompts, but cannot create
them.

This module lets clients create, list, get, change and delete prompts, list versions, and choose the default version.
`translation/request/prompt_template.py` fills in a template, and the exchange handles the field `prompt` of a request.

The API gives the same 404 error for a missing prompt or version and for a prompt of another owner.

Invariant: every stored version is usable, because its template has passed the checks of a request.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from antiphon.api.endpoint import Area, Route, listing
from antiphon.api.http import (
    ApiRequest,
    ApiResponse,
    Deleted,
    ListOf,
    Metadata,
    ObjectKind,
    Parameter,
    existing,
    list_response,
    made_again,
    made_is_gone,
    once_of,
    query_choice,
    query_value,
    raw_response,
    read_body,
    read_page,
)
from antiphon.engine.ports.actions import StoredPrompt
from antiphon.engine.ports.idempotency import AlreadyMade
from antiphon.engine.ports.state import PageQuery, PromptChange
from antiphon.errors import (
    InvalidRequest,
    invalid_parameter,
    invalid_type,
    missing_parameter,
    missing_value,
    unknown_parameter,
)
from antiphon.ids import IdFactory, is_id, new_id
from antiphon.stores.owner_usage import StorageQuota
from antiphon.stores.prompts import PromptStore
from antiphon.translation.chat.body import check_item
from antiphon.translation.request.body import read_request
from antiphon.translation.request.checks import check_metadata, read_string
from antiphon.translation.request.prompt_template import TEMPLATE_FIELDS, variables_of
from antiphon.translation.values import PromptTemplate
from antiphon.types.json import ABSENT, encode, given, raw, try_decode

_LLAMA_STACK = re.compile(r"(Async)?(LlamaStack|Ogx)Client/")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_MAX_LENGTH = {"name": 256, "description": 4096}
_OWN_FIELDS = frozenset({"name", "description", "metadata", "variables", "version", "set_as_default"})
# The names that other APIs have for a prompt's text.
_OTHER_NAMES = ("prompt", "template")
_STRINGS = msgspec.json.Decoder(list[str])
_METADATA = msgspec.json.Decoder(dict[str, str] | None)
_FLAG = msgspec.json.Decoder(bool | None)
_NUMBER = msgspec.json.Decoder(int | str | None)
_TEMPLATE = msgspec.json.Decoder(dict[str, Raw])
_VERSION_PARAMETER = Parameter(
    "version", str, "The version to return. Without this parameter, the API returns the default version."
)
_MAX_ITEMS, _MAX_TOOLS = 1_000, 1_024
_HOSTED = frozenset(
    {
        *("code_interpreter", "file_search", "image_generation", "mcp", "tool_search"),
        *("web_search", "web_search_preview"),
    }
)


_Version = Annotated[int | str, Meta(description="The number of a version. The first version has the number 1.")]


class WritePrompt(Struct):
    """A template. The template has at least one field of `POST /v1/responses` that a prompt can contain. Texts contain
    variables as `{{name}}`. `prompt` and `template` are other names for `instructions`. A request with other fields
    gets a 400."""

    name: Annotated[str, Meta(extra_json_schema={"maxLength": _MAX_LENGTH["name"]})] | None = None
    description: Annotated[str, Meta(extra_json_schema={"maxLength": _MAX_LENGTH["description"]})] | None = None
    metadata: Metadata | None = None
    variables: list[str] | None = None
    instructions: str | None = None
    input: Any = None


class ChangePrompt(WritePrompt):
    """A change of a prompt. The fields of the request replace the same fields of the prompt's latest version."""

    version: _Version | None = None
    set_as_default: bool | None = None


class DefaultVersion(Struct):
    """The choice of a prompt's default version."""

    version: _Version


class Prompt(Struct):
    """One version of a prompt (`pmpt_…`), with the fields of its template. Times are seconds since the epoch. A Llama
    Stack client gets a different format, which only that client requires."""

    id: str
    object: Literal["prompt"]
    created_at: int
    updated_at: int
    name: str | None
    description: str | None
    version: str
    default_version: str
    last_version: str
    is_default: bool
    variables: list[str]
    metadata: Metadata


def _choosing(method: str, name: str) -> Route:
    """Return a route that sets the default version. The API has several such routes, because clients use different
    methods and paths."""
    pattern = f"/v1/prompts/{{}}/{name}"
    return Route(method, pattern, "Choose the default version of a prompt", Prompt, body=DefaultVersion)


_PROMPTS = ObjectKind("Prompt", lambda one: is_id(one, "pmpt"), "prompt.deleted")


class Prompts(Area):
    """Serves `/v1/prompts`: versioned prompt templates."""

    def __init__(
        self, store: PromptStore, make_id: IdFactory = new_id, *, owner_room: StorageQuota | None = None
    ) -> None:
        self._owner_room = owner_room
        self._store = store
        self._new_id = make_id

    @Route("POST", "/v1/prompts", "Create a prompt", Prompt, body=WritePrompt, keyed=True)
    async def create(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/prompts`: create a prompt from the fields of a template, `name`, `description` and `metadata`."""
        fields = _read_fields(request)
        template = _read_template(fields, {})
        try:
            once = await once_of(request, self._store.made)
            await self._check_room(request)
            made = await self._store.create(
                request.owner,
                self._new_id("pmpt"),
                _text("name", fields.get("name", ABSENT)),
                _read_metadata(fields.get("metadata", ABSENT)) or b"{}",
                template,
                once,
            )
        except AlreadyMade as earlier:
            found = await self._store.get(request.owner, earlier.object_id, 1)
            return made_again(_shown(request, existing(found, made_is_gone("prompt"))))
        return _shown(request, made)

    @listing("/v1/prompts", "List prompts", ListOf[Prompt])
    async def list(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/prompts`: list the default version of each prompt, newest first unless the request sets `order`."""
        page = await self._store.list(request.owner, _page(request))
        return list_response(page, lambda one: _resource(request, one))

    @Route("GET", "/v1/prompts/{}", "Get a prompt", Prompt, parameters=(_VERSION_PARAMETER,))
    async def get(self, request: ApiRequest, prompt_id: str) -> ApiResponse:
        """`GET /v1/prompts/{id}`: get the default version, or the version that the parameter `version` names."""
        return _shown(request, await self._known(request, prompt_id, query_value(request, "version")))

    @listing("/v1/prompts/{}/versions", "List the versions of a prompt", ListOf[Prompt])
    async def list_versions(self, request: ApiRequest, prompt_id: str) -> ApiResponse:
        """`GET /v1/prompts/{id}/versions`: list the versions, newest first unless the request sets `order`. The cursors
        of this list are version numbers."""
        versions = self._store.versions
        page = await _PROMPTS.find(prompt_id, lambda: versions(request.owner, prompt_id, _page(request)))
        return list_response(page, lambda one: _resource(request, one), id_of=lambda one: str(one.version))

    @Route("GET", "/v1/prompts/{}/versions/{}", "Get a version of a prompt", Prompt)
    async def get_version(self, request: ApiRequest, prompt_id: str, version: str) -> ApiResponse:
        """`GET /v1/prompts/{id}/versions/{n}`: get the version with this number, from 1 on."""
        return _shown(request, await self._known(request, prompt_id, version))

    @Route("POST", "/v1/prompts/{}", "Change a prompt", Prompt, body=ChangePrompt, errors=(409,))
    async def change(self, request: ApiRequest, prompt_id: str) -> ApiResponse:
        """`POST /v1/prompts/{id}`: replace fields of the template, `name` or `metadata`.

        A change of the template creates a new version from the latest one. The new version becomes the default unless
        `set_as_default` is false. `name` and `metadata` belong to all versions, and a change of them creates no
        version.

        Raises `VersionConflict` (409, `version_conflict`) if `version` is not the latest version, or if another client
        changes the prompt at the same time.
        """
        fields = _read_fields(request)
        newest = await self._last(request, prompt_id)
        before = _TEMPLATE.decode(newest.body)
        return await self._change(request, newest, fields, before if _has_template(fields) else None)

    @Route("PUT", "/v1/prompts/{}", "Replace a prompt", Prompt, body=ChangePrompt, errors=(409,))
    async def replace(self, request: ApiRequest, prompt_id: str) -> ApiResponse:
        """`PUT /v1/prompts/{id}`: like `POST`, but the new version has only the fields of the request."""
        fields = _read_fields(request)
        newest = await self._last(request, prompt_id)
        return await self._change(request, newest, fields, {} if _has_template(fields) else None)

    @_choosing("POST", "default_version")
    @_choosing("PUT", "default_version")
    @_choosing("POST", "set-default-version")
    @_choosing("PUT", "set-default-version")
    async def set_default(self, request: ApiRequest, prompt_id: str) -> ApiResponse:
        """`POST /v1/prompts/{id}/default_version` (also `set-default-version`): make `version` the default version."""
        fields = read_body(request, dict[str, Raw])
        version = _read_version(fields.get("version", ABSENT))
        if version is None:
            raise missing_parameter("version")
        set_default = self._store.set_default
        return _shown(request, await _PROMPTS.find(prompt_id, lambda: set_default(request.owner, prompt_id, version)))

    @Route("DELETE", "/v1/prompts/{}", "Delete a prompt", Deleted[Literal["prompt.deleted"]])
    async def delete(self, request: ApiRequest, prompt_id: str) -> ApiResponse:
        """`DELETE /v1/prompts/{id}`: delete a prompt with all its versions."""
        return await _PROMPTS.delete(prompt_id, lambda: self._store.delete(request.owner, prompt_id))

    async def _check_room(self, request: ApiRequest) -> None:
        if self._owner_room is not None:
            await self._owner_room.check(request.owner, request.caller)

    async def _known(self, request: ApiRequest, prompt_id: str, version: str | None) -> StoredPrompt:
        number = None
        if version is not None:
            number = int(version) if _VERSION.fullmatch(version) else 0
        return await _PROMPTS.find(prompt_id, lambda: self._store.get(request.owner, prompt_id, number))

    async def _last(self, request: ApiRequest, prompt_id: str) -> StoredPrompt:
        found = await self._known(request, prompt_id, None)
        if found.version == found.last_version:
            return found
        return await self._known(request, prompt_id, str(found.last_version))

    async def _change(
        self, request: ApiRequest, newest: StoredPrompt, fields: dict[str, Raw], before: dict[str, Raw] | None
    ) -> ApiResponse:
        """Store the change. `before` has the fields that the new version inherits, or is None if the change creates no
        version."""
        given_version = _read_version(fields.get("version", ABSENT))
        body = None if before is None else _read_template(fields, before)
        change = PromptChange(
            body=body,
            make_default=_read_flag("set_as_default", fields.get("set_as_default", ABSENT)) is not False,
            # Without `version` in the request, the change still fails if another client has changed the prompt
            # meanwhile.
            expected_version=newest.last_version if given_version is None else given_version,
            renamed="name" in fields,
            name=_text("name", fields.get("name", ABSENT)),
            metadata=_read_metadata(fields.get("metadata", ABSENT)),
        )
        if change.body is not None or change.metadata not in (None, b"{}"):
            await self._check_room(request)
        changed = await self._store.change(request.owner, newest.id, change)
        return _shown(request, existing(changed, _PROMPTS.missing(newest.id)))


def _read_fields(request: ApiRequest) -> dict[str, Raw]:
    """Decode the body, and rename a field `prompt` or `template` to `instructions`. Raises `InvalidRequest` for an
    unknown field."""
    fields = read_body(request, dict[str, Raw])
    for other in _OTHER_NAMES:
        if other in fields:
            if "instructions" in fields:
                problem = f"'{other}' is another name for 'instructions'; send one of them."
                raise InvalidRequest(problem, param=other, code="mutually_exclusive_parameters")
            fields["instructions"] = fields.pop(other)
    for name in fields:
        if name not in TEMPLATE_FIELDS and name not in _OWN_FIELDS:
            raise unknown_parameter(name[:64])
    return fields


def _has_template(fields: dict[str, Raw]) -> bool:
    return any(name in TEMPLATE_FIELDS or name == "description" for name in fields)


def _read_template(fields: dict[str, Raw], before: dict[str, Raw]) -> bytes:
    """The template of a version. The template passes the same checks as a request that uses it."""
    template = {**before, **{name: value for name, value in fields.items() if name in TEMPLATE_FIELDS}}
    template = {name: value for name, value in template.items() if given(value)}
    description = _text("description", fields.get("description", ABSENT))
    kept = {name: value for name, value in template.items() if name != "description"}
    if not kept:
        raise missing_value(
            "A prompt needs at least one of 'instructions', 'input' and the other fields of a request.", "instructions"
        )
    body = encode(kept)
    names = variables_of(body)
    _check_declared(fields.get("variables", ABSENT), names)
    wanted = {"id": "pmpt_0", "variables": dict.fromkeys(names, "text")}
    used = read_request(
        encode({"model": "model", "input": "text", "prompt": wanted}),
        max_items=_MAX_ITEMS,
        max_tools=_MAX_TOOLS,
        hosted=_HOSTED,
        prompt=PromptTemplate(1, body),
        # The check is strict, because the author can correct the template now. A later user of the prompt cannot.
        strict=True,
    )
    for number, item in enumerate(used.prompt_messages):
        check_item(f"input[{number}]", item, used.unknown)
    if description is not None:
        kept["description"] = raw(description)
    elif "description" in before and "description" not in fields:
        kept["description"] = before["description"]
    return encode(kept)


def _check_declared(value: Raw, names: tuple[str, ...]) -> None:
    """Check that the field `variables` of a request, if present, names exactly the variables of the template."""
    if not given(value):
        return
    declared = try_decode(_STRINGS, value)
    if declared is None:
        raise invalid_type("variables", "expected a list of names")
    if different := sorted(set(declared) ^ set(names)):
        names_of = ", ".join(name[:64] for name in different)
        problem = (
            f"'variables' must list exactly the variables that the template uses as '{{{{name}}}}'. These names "
            f"differ: {names_of}"
        )
        raise invalid_parameter("variables", problem)


def _text(name: str, value: Raw) -> str | None:
    if not given(value):
        return None
    text = read_string(name, value)
    if len(text) > _MAX_LENGTH[name]:
        raise invalid_parameter(
            name, f"the value may have at most {_MAX_LENGTH[name]} characters", "string_above_max_length"
        )
    return text


def _read_metadata(value: Raw) -> bytes | None:
    """The metadata as stored JSON, or None if the client sent no metadata."""
    if value is ABSENT:
        return None
    try:
        metadata = _METADATA.decode(value)
    except msgspec.MsgspecError:
        raise invalid_type("metadata", "expected an object of strings") from None
    check_metadata(metadata or {})
    return encode(metadata or {})


def _read_flag(name: str, value: Raw) -> bool | None:
    if value is ABSENT:
        return None
    try:
        flag: bool | None = _FLAG.decode(value)
    except msgspec.MsgspecError:
        raise invalid_type(name, "expected a boolean") from None
    return flag


def _read_version(value: Raw) -> int | None:
    """The number of a version, which the client sends as a number or a string."""
    if not given(value):
        return None
    text = str(try_decode(_NUMBER, value))
    if not _VERSION.fullmatch(text):
        raise invalid_parameter("version", "versions are numbered from 1 on")
    return int(text)


def _is_llama_stack(request: ApiRequest) -> bool:
    """Whether the User-Agent is that of a Llama Stack client (llama-stack-client 0.7). These clients require another
    shape of a prompt, and read only the first page of a list."""
    return _LLAMA_STACK.match(request.header("user-agent") or "") is not None


def _page(request: ApiRequest) -> PageQuery:
    if not _is_llama_stack(request):
        return read_page(request)
    return PageQuery(limit=100, descending=query_choice(request, "order", ("asc", "desc"), "asc") == "desc")


def _resource(request: ApiRequest, prompt: StoredPrompt) -> bytes:
    """Return the JSON of a prompt's version, in the shape that the client of this request requires."""
    template = _TEMPLATE.decode(prompt.body)
    is_default = prompt.version == prompt.default_version
    if _is_llama_stack(request):
        return encode(
            {
                "prompt_id": prompt.id,
                # These clients support only text, so a template of items has an empty prompt.
                "prompt": template.get("instructions", ""),
                "version": prompt.version,
                "variables": variables_of(prompt.body),
                "is_default": is_default,
            }
        )
    description = template.pop("description", None)
    shown: dict[str, object] = {
        "id": prompt.id,
        "object": "prompt",
        "created_at": int(prompt.created_at),
        "updated_at": int(prompt.updated_at),
        "name": prompt.name,
        "description": description,
        "version": str(prompt.version),
        "default_version": str(prompt.default_version),
        "last_version": str(prompt.last_version),
        "is_default": is_default,
        "variables": variables_of(encode(template)),
        "metadata": Raw(prompt.metadata),
    }
    return encode({**shown, **template})


def _shown(request: ApiRequest, prompt: StoredPrompt) -> ApiResponse:
    return raw_response(_resource(request, prompt))
