"""The objects of the container API.

Lives here: JSON shapes, as OpenAI's API has them. Not here: what is checked of them, the endpoints (`containers.py`).

Invariant: the bounds here are for the API's document; `containers.py` refuses what is outside them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from antiphon.api.described import Bytes

MAX_NAME = 256
MAX_FILES = 100


class ContainerExpiry(Struct):
    anchor: Annotated[str, Meta(extra_json_schema={"const": "last_active_at"})] | None = None
    minutes: Annotated[int, Meta(extra_json_schema={"minimum": 1})] | None = None


class NetworkPolicy(Struct):
    """Code has no network: `disabled` is all there is."""

    type: Annotated[str, Meta(extra_json_schema={"const": "disabled"})] | None = None


class CreateContainer(Struct):
    name: Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_NAME})] | None = None
    expires_after: ContainerExpiry | None = None
    file_ids: Annotated[list[str], Meta(extra_json_schema={"maxItems": MAX_FILES})] | None = None
    memory_limit: str | None = None
    network_policy: NetworkPolicy | None = None
    skills: Annotated[list[Any], Meta(extra_json_schema={"maxItems": 0})] | None = None


class CopyFile(Struct):
    """An uploaded file, by its id."""

    file_id: str | None = None


class ContainerFileForm(Struct):
    """A file, or the id of one."""

    file: Bytes | UnsetType = UNSET
    file_id: str | UnsetType = UNSET


class IdleMinutes(Struct):
    anchor: Literal["last_active_at"]
    minutes: int


class NoNetwork(Struct):
    type: Literal["disabled"] = "disabled"


class ContainerObject(Struct, kw_only=True):
    id: str
    object: Literal["container"] = "container"
    created_at: int
    status: Literal["running"] = "running"
    expires_after: IdleMinutes
    last_active_at: int
    memory_limit: str
    name: str
    network_policy: NoNetwork


class ContainerFileObject(Struct, kw_only=True):
    id: str
    object: Literal["container.file"] = "container.file"
    created_at: int
    bytes: int
    container_id: str
    path: str
    source: str
