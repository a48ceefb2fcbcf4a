"""The admin API: operators manage client keys over HTTP, and read quotas, usage and the audit log.

This module defines the JSON objects, and reads fields and query parameters. `engine/running/client_keys.py` checks a
change, `credential_checks.py` checks the admin token, and `commands/admin/` has the command line.

Invariants: every endpoint has the guard, which checks the admin token. An answer contains a key's token only if it
reports the creation of that key. Every list has a maximum length. Before Antiphon answers a read, the audit log has a
row for this read. Equal reads within `LIST_SECONDS` share one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from antiphon.api.endpoint import Area, Endpoint, Guard, Route, listing, rows_of
from antiphon.api.http import (
    ApiRequest,
    ApiResponse,
    Deleted,
    ListOf,
    Parameter,
    json_response,
    limit_parameter,
    list_response,
    query_flag,
    query_number,
    query_value,
    read_known,
    read_page,
)
from antiphon.engine.ports.callers import NAMED, ClientKey, owner_id
from antiphon.engine.ports.quotas import QuotaRules
from antiphon.engine.ports.usage_sums import GROUPS, FindNames, day_start, read_by
from antiphon.engine.running.client_keys import KeyManager, WantedKey
from antiphon.engine.running.quota_use import quota_use
from antiphon.engine.running.usage_report import usage_report
from antiphon.errors import InvalidRequest, invalid_value, unknown_parameter
from antiphon.stores.audit import LIST_SECONDS, AuditEntry, AuditStore, ReadAction, note_operator_read
from antiphon.stores.owner_usage import UsageStore
from antiphon.stores.quotas import QuotaStore
from antiphon.types.json import encode

ACTOR: Final = "admin-api"
"""The name of the actor in the audit rows of requests to the admin API."""
_KEYS = "/v1/antiphon/admin/keys"
_NO_STORE = (("cache-control", "no-store"),)
_LONGEST_LIST, _USUAL_LIST = 10_000, 1_000
_MOST_AUDIT, _USUAL_AUDIT = 1_000, 100
_LONGEST_TEXT = 300
_DAY_SECONDS = 86_400
_MOST_SECONDS = 3_650 * _DAY_SECONDS

_Body = TypeVar("_Body", bound=Struct)
_Globs = Annotated[list[str], Meta(extra_json_schema={"minItems": 1, "maxItems": 100})]
_Seconds = Annotated[int, Meta(ge=1, le=_MOST_SECONDS)]


class CreateClientKey(Struct):
    """A new client key. `owner` is the name of the owner to whom the key's data belongs, such as `anna`. `models` and
    `tools` are glob patterns for the names of the models and tools that the key may use. Without these patterns, the
    key may use all models and tools. The key expires after `expires_in` seconds. Without `expires_in`, the key never
    expires."""

    owner: Annotated[str, Meta(extra_json_schema={"maxLength": 64})]
    name: Annotated[str, Meta(extra_json_schema={"maxLength": 100})] | None = None
    team: Annotated[str, Meta(extra_json_schema={"maxLength": 100})] | None = None
    models: _Globs | None = None
    tools: _Globs | None = None
    expires_in: _Seconds | None = None


class RotateClientKey(Struct):
    """How long a client key and its successor stay valid. The successor expires after `expires_in` seconds. Without
    this field, the successor gets the lifetime of the old key, or never expires if the old key never expires. The old
    key stays valid for at most `overlap` seconds. The default of `overlap` is one day."""

    expires_in: _Seconds | None = None
    overlap: Annotated[int, Meta(ge=0, le=_MOST_SECONDS)] | None = None


class ClientKeyObject(Struct, kw_only=True):
    """A client key (`key_…`). `prefix` is the first characters of its token. `token` is present only in the answer to
    the request that created the key. Times are seconds since the epoch. A key whose `expires_at` is null never
    expires."""

    id: str
    object: Literal["client_key"] = "client_key"
    owner: str
    name: str
    team: str
    models: list[str]
    tools: list[str]
    prefix: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    token: str | UnsetType = UNSET


class QuotaUseObject(Struct, kw_only=True):
    """How much of a quota one subject has used in the current period. An example of `subject` is `owner:n:anna`, and an
    example of `limit` is `tokens_per_month`. `period` is the start of the period in UTC (`2026-01-31T09:30Z`). `held`
    is the amount that processes have reserved for running requests. `maximum` is null if the settings have no such
    limit. Costs are in the currency of the setting `prices`."""

    object: Literal["quota_use"] = "quota_use"
    subject: str
    limit: str
    period: str | None
    used: float
    held: float
    maximum: float | None


class UsageSumObject(Struct, kw_only=True):
    """The usage of model calls. The object has a member `day`, `month`, `owner`, `model` or `upstream` only if the
    query parameter `by` names that member. `cost` is in the currency of the setting `prices`. An object with `owner`
    also has the owner's readable name and team, if Antiphon knows them."""

    object: Literal["usage_sum"] = "usage_sum"
    day: str | UnsetType = UNSET
    month: str | UnsetType = UNSET
    owner: str | UnsetType = UNSET
    owner_name: str | UnsetType = UNSET
    team: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    upstream: str | UnsetType = UNSET
    calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated_calls: int
    estimated_input_tokens: int
    estimated_output_tokens: int
    cost: float


class AuditEntryObject(Struct, kw_only=True):
    """One action of an operator: a change, or a read. `at` is in seconds since the epoch. `target` identifies the
    object of the action, for example by the id of a key. The `action` of a read begins with `read `."""

    object: Literal["audit_entry"] = "audit_entry"
    at: float
    actor: str
    action: str
    target: str
    owner: str
    detail: dict[str, Any]


class AdminList(Struct, kw_only=True):
    """A list that has no cursors. `has_more` is true if there are more objects than the parameter `limit` allows."""

    object: Literal["list"] = "list"
    data: list[Any]
    has_more: bool


class QuotaUseList(AdminList):
    """How much of each quota is used, sorted by `subject`."""

    data: list[QuotaUseObject]


class UsageSumList(AdminList):
    """Usage sums, sorted by the fields in `by`."""

    data: list[UsageSumObject]


class AuditList(AdminList):
    """The changes and the reads of operators, newest first."""

    data: list[AuditEntryObject]


_OWNER = Parameter("owner", str, "List only the keys of the owner with this name.")
_ALL = Parameter("all", bool, "Whether to list expired and revoked keys too.")
_SINCE = Parameter("since", str, "The first day (UTC), as `YYYY-MM-DD`.")
_UNTIL = Parameter("until", str, "The last day (UTC), as `YYYY-MM-DD`.")


@dataclass(frozen=True, slots=True)
class Administration(Area):
    """Serves `/v1/antiphon/admin`. `guard` checks the admin token of each request.

    `accepts_keys`: whether the process accepts client keys that operators create at run time. `names` looks up the
    readable names of owners. `source` is the setting `owner.source`, which decides the owner id of a plain name.
    """

    guard: Guard
    keys: KeyManager
    quotas: QuotaStore
    rules: QuotaRules
    usage: UsageStore
    audit: AuditStore
    accepts_keys: bool = True
    names: FindNames | None = None
    source: str = "bearer"

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints of the admin API, each with the guard that checks the admin token."""
        return tuple(replace(one, guard=self.guard) for one in rows_of(self))

    @listing(_KEYS, "List client keys", ListOf[ClientKeyObject], _OWNER, _ALL)
    async def list_keys(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/antiphon/admin/keys`: list the valid client keys without their tokens, newest first unless the
        request sets `order`."""
        owner, all_keys = query_value(request, "owner") or "", query_flag(request, "all")
        found = await self.keys.page(read_page(request), owner, all_keys=all_keys)
        await self._note("read keys", owner=NAMED + owner if owner else "")
        return list_response(found, lambda one: encode(_shown(one)), headers=_NO_STORE)

    @Route("POST", _KEYS, "Create a client key", ClientKeyObject, body=CreateClientKey, body_needed=True)
    async def create_key(self, request: ApiRequest) -> ApiResponse:
        """`POST /v1/antiphon/admin/keys`: create a client key for a named owner. Only the answer to this request
        contains the key's token. Raises `InvalidRequest` with one of the codes `invalid_value`, `unknown_parameter`,
        `too_many_keys` or `managed_keys_off`.
        """
        body = _read(request, CreateClientKey)
        for field, given in (("models", body.models), ("tools", body.tools)):
            if given == []:
                raise invalid_value(field, f"an empty list would allow all {field}: leave the field out, or name some")
        self._check_accepted()
        globs = (tuple(body.models or ()), tuple(body.tools or ()))
        made, token = await self.keys.create(
            WantedKey(body.owner, body.name or "", body.team or "", *globs, body.expires_in)
        )
        return json_response(_shown(made, token), headers=_NO_STORE)

    @Route("POST", f"{_KEYS}/{{}}/rotate", "Rotate a client key", ClientKeyObject, body=RotateClientKey)
    async def rotate_key(self, request: ApiRequest, key_id: str) -> ApiResponse:
        """`POST /v1/antiphon/admin/keys/{id}/rotate`: create the successor of a client key. Only the answer to this
        request contains the successor's token.

        Raises `NotFound`, and `InvalidRequest` (`key_not_valid`) for an expired or revoked key.
        """
        body = _read(request, RotateClientKey)
        self._check_accepted()
        overlap = _DAY_SECONDS if body.overlap is None else body.overlap
        made, token = await self.keys.rotate(key_id, lifetime=body.expires_in, overlap=overlap)
        return json_response(_shown(made, token), headers=_NO_STORE)

    @Route("DELETE", f"{_KEYS}/{{}}", "Revoke a client key", Deleted[Literal["client_key.deleted"]], errors=(400,))
    async def revoke_key(self, _request: ApiRequest, key_id: str) -> ApiResponse:
        """`DELETE /v1/antiphon/admin/keys/{id}`: revoke a key. `GET /v1/antiphon/admin/keys?all=true` still lists the
        revoked key.

        Raises `NotFound`, and `InvalidRequest` (`key_not_valid`) for a key that is expired or already revoked.
        """
        await self.keys.revoke(key_id)
        return json_response({"id": key_id, "object": "client_key.deleted", "deleted": True}, headers=_NO_STORE)

    @Route(
        "GET",
        "/v1/antiphon/admin/quotas",
        "List the use of quotas",
        QuotaUseList,
        parameters=(
            Parameter("subject", str, "List only the quotas of this subject, such as `owner:anna` or `owner:n:anna`."),
            limit_parameter(_LONGEST_LIST, _USUAL_LIST),
        ),
        errors=(400,),
    )
    async def list_quotas(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/antiphon/admin/quotas`: list how much of each quota is used, sorted by subject."""
        limit = query_number(request, "limit", least=1, limit=_LONGEST_LIST, default=_USUAL_LIST)
        kind, colon, name = _text(request, "subject").partition(":")
        name = owner_id(name, self.source) if kind == "owner" else name
        subject = kind + colon + name
        await self._note("read quotas", subject, owner=name if kind == "owner" else "")
        found = await quota_use(self.quotas, self.rules, subject, most=limit + 1)
        return _listed([QuotaUseObject(**structs.asdict(one)) for one in found], limit)

    @Route(
        "GET",
        "/v1/antiphon/admin/usage",
        "List sums of tokens and cost",
        UsageSumList,
        parameters=(
            Parameter(
                "by",
                str,
                "The fields that group the sums, separated by commas: day, month, owner, team, model, upstream. "
                "The default is `model`. A team is the team that the owner has now.",
            ),
            _SINCE,
            _UNTIL,
            Parameter(
                "owner", str, "List only the usage of the owner with this name or id, such as `anna` or `n:anna`."
            ),
            limit_parameter(_LONGEST_LIST, _USUAL_LIST),
        ),
        errors=(400,),
    )
    async def list_usage(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/antiphon/admin/usage`: list the tokens and the cost of model calls."""
        limit = query_number(request, "limit", least=1, limit=_LONGEST_LIST, default=_USUAL_LIST)
        try:
            by = read_by(_text(request, "by") or "model")
        except ValueError:
            raise invalid_value("by", f"use one or more of {', '.join(GROUPS)}, separated by commas") from None
        days = {name: _day(request, name) for name in ("since", "until")}
        owner = owner_id(_text(request, "owner"), self.source)
        await self._note("read usage", owner=owner)
        sums, names = await usage_report(self.usage, by, self.names, **days, owner=owner, most=limit + 1)
        return _listed([UsageSumObject(**one.shown(by, names)) for one in sums], limit)  # type: ignore[arg-type]

    @Route(
        "GET",
        "/v1/antiphon/admin/audit",
        "List the audit log",
        AuditList,
        parameters=(
            _SINCE,
            Parameter("owner", str, "List only the audit rows about the owner with this id or name."),
            Parameter("changes", bool, "Whether to list only changes, without reads."),
            limit_parameter(_MOST_AUDIT, _USUAL_AUDIT),
        ),
        errors=(400,),
    )
    async def list_audit(self, request: ApiRequest) -> ApiResponse:
        """`GET /v1/antiphon/admin/audit`: list the changes and the reads of operators, newest first."""
        limit = query_number(request, "limit", least=1, limit=_MOST_AUDIT, default=_USUAL_AUDIT)
        since = day_start(_day(request, "since")) or 0.0
        owner, changes = _text(request, "owner"), query_flag(request, "changes")
        await self._note("read audit", owner=owner)
        found = await self.audit.list(since=since, owner=owner, limit=limit + 1, changes=changes)
        entries = [
            AuditEntryObject(
                at=one.at,
                actor=one.actor,
                action=one.action,
                target=one.object,
                owner=one.owner,
                detail=dict(one.detail),
            )
            for one in found
        ]
        return _listed(entries, limit)

    async def _note(self, action: ReadAction, object: str = "", *, owner: str) -> None:
        """Store the audit row of an operator's read. `owner` is the owner in the request's query parameters, or
        empty."""
        await note_operator_read(self.audit, AuditEntry(ACTOR, action, object, owner), LIST_SECONDS)

    def _check_accepted(self) -> None:
        if not self.accepts_keys:
            raise InvalidRequest(
                "owner.managed_keys is false, so no process would accept this key. Set owner.managed_keys to true.",
                code="managed_keys_off",
            )


def _read(request: ApiRequest, kind: type[_Body]) -> _Body:
    """Decode the body. An unknown field is an error. Otherwise a misspelt limit would have no effect, and the key would
    have more access than intended."""
    body, unknown = read_known(request, kind)
    if unknown:
        raise unknown_parameter(unknown[0][:64], f"The allowed fields are {', '.join(kind.__struct_fields__)}.")
    return body


def _shown(key: ClientKey, token: str | UnsetType = UNSET) -> ClientKeyObject:
    def seconds(at: float | None) -> int | None:
        return None if at is None else int(at)

    return ClientKeyObject(
        id=key.id,
        owner=key.owner.removeprefix(NAMED),
        name=key.name,
        team=key.team,
        models=list(key.access.models),
        tools=list(key.access.tools),
        prefix=key.prefix,
        created_at=int(key.created_at),
        expires_at=seconds(key.expires_at),
        revoked_at=seconds(key.revoked_at),
        token=token,
    )


def _listed(found: Sequence[Struct], limit: int) -> ApiResponse:
    """Return an answer with the first `limit` objects. `has_more` is true if `found` has more than `limit` objects."""
    return json_response(AdminList(data=list(found[:limit]), has_more=len(found) > limit), headers=_NO_STORE)


def _text(request: ApiRequest, name: str) -> str:
    """Return the text of a query parameter, or an empty text if the request lacks the parameter. A text with a control
    character is an error."""
    text = query_value(request, name) or ""
    if len(text) > _LONGEST_TEXT or not text.isprintable():
        raise invalid_value(name, f"use at most {_LONGEST_TEXT} printable characters")
    return text


def _day(request: ApiRequest, name: str) -> str:
    text = query_value(request, name) or ""
    if text and day_start(text) is None:
        raise invalid_value(name, "write the day as YYYY-MM-DD")
    return text
