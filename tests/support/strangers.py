"""Requests every route, and every id in a body, as an owner to whom the object does not belong.

Lives here: the values of each path's variables, the bodies, one object of each kind for an owner, and the comparison of
two answers. Not here: the servers.

For a stranger, another owner's object does not exist. The answer to its id must equal the answer to an id that does not
exist, byte for byte except for the id itself.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

# The kind of object that a path variable names, by the segment before the variable.
COLLECTIONS = {
    "responses": "response",
    "conversations": "conversation",
    "items": "item",
    "prompts": "prompt",
    "versions": "version",
    "files": "file",
    "vector_stores": "store",
    "file_batches": "batch",
    "containers": "container",
    "keys": "key",
}
NOBODYS = {"/v1/models/{*}": "models are everybody's", "/v1/models": "", "/v1/antiphon/capabilities": ""}
ADMIN_PATHS = "/v1/antiphon/admin/"

# Further kinds that a path accepts in place of another: a queued response in place of a stored one.
KINDS = {"response": ("response", "queued")}
MISSING = {
    "response": "resp_" + "0" * 48,
    "queued": "resp_" + "0" * 48,
    "conversation": "conv_" + "0" * 48,
    "item": "msg_" + "0" * 48,
    "prompt": "pmpt_" + "0" * 48,
    "version": "9",
    "file": "file-" + "0" * 32,
    "store": "vs_" + "0" * 48,
    "batch": "vsfb_" + "0" * 48,
    "approval": "mcpr_" + "0" * 48,
    "container": "cntr_" + "0" * 48,
    "cfile": "cfile_" + "0" * 48,
    "key": "key_" + "0" * 48,
}
QUERIES = {
    ("GET", "/v1/responses/{}"): ("", "?stream=true", "?stream=true&starting_after=0", "?include[]=x"),
    ("GET", "/v1/prompts/{}"): ("", "?version=1"),
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/conversations/{}"): {"metadata": {}},
    ("POST", "/v1/conversations/{}/items"): {"items": [{"role": "user", "content": "x"}]},
    ("POST", "/v1/prompts/{}"): {"instructions": "x"},
    ("PUT", "/v1/prompts/{}"): {"instructions": "x"},
    ("POST", "/v1/prompts/{}/default_version"): {"version": 1},
    ("PUT", "/v1/prompts/{}/default_version"): {"version": 1},
    ("POST", "/v1/prompts/{}/set-default-version"): {"version": 1},
    ("PUT", "/v1/prompts/{}/set-default-version"): {"version": 1},
    ("POST", "/v1/vector_stores/{}"): {"name": "x"},
    ("POST", "/v1/vector_stores/{}/search"): {"query": "x"},
    ("POST", "/v1/vector_stores/{}/files"): {"file_id": "{file}"},
    ("POST", "/v1/vector_stores/{}/files/{}"): {"attributes": {"a": "b"}},
    ("POST", "/v1/vector_stores/{}/file_batches"): {"file_ids": ["{file}"]},
    ("POST", "/v1/containers/{}/files"): {"file_id": "{file}"},
}
# Requests with ids in their bodies: the path, the body, and the kind of the tested id.
_ASK = {"model": "m", "input": "hi"}
FILE = {"role": "user", "content": [{"type": "input_file", "file_id": "{file}"}]}
APPROVAL = {"type": "mcp_approval_response", "approval_request_id": "{approval}", "approve": True}
IN_BODIES: tuple[tuple[str, Any, str], ...] = (
    ("/v1/responses", {**_ASK, "previous_response_id": "{response}"}, "response"),
    ("/v1/responses", {**_ASK, "previous_response_id": "{queued}"}, "queued"),
    ("/v1/responses", {**_ASK, "conversation": "{conversation}"}, "conversation"),
    ("/v1/responses", {**_ASK, "conversation": {"id": "{conversation}"}, "store": False}, "conversation"),
    ("/v1/responses", {**_ASK, "conversation": "{conversation}", "stream": True}, "conversation"),
    ("/v1/responses", {**_ASK, "prompt": {"id": "{prompt}"}}, "prompt"),
    ("/v1/responses", {**_ASK, "prompt": {"id": "{prompt}", "version": "1"}}, "prompt"),
    ("/v1/responses", {**_ASK, "input": [{"type": "item_reference", "id": "{item}"}]}, "item"),
    ("/v1/responses", {**_ASK, "input": [{"type": "item_reference", "id": "{output}"}]}, "output"),
    ("/v1/responses", {**_ASK, "input": [FILE]}, "file"),
    ("/v1/responses", {**_ASK, "input": [APPROVAL]}, "approval"),
    ("/v1/responses/input_tokens", {**_ASK, "previous_response_id": "{response}"}, "response"),
    ("/v1/responses/input_tokens", {**_ASK, "conversation": "{conversation}"}, "conversation"),
    ("/v1/responses/compact", {**_ASK, "previous_response_id": "{response}"}, "response"),
    ("/v1/conversations", {"items": [{"type": "item_reference", "id": "{item}"}]}, "item"),
    ("/v1/conversations", {"items": [{"type": "item_reference", "id": "{output}"}]}, "output"),
    ("/v1/vector_stores", {"file_ids": ["{file}"]}, "file"),
    ("/v1/vector_stores/{mine}/files", {"file_id": "{file}"}, "file"),
    ("/v1/vector_stores/{mine}/file_batches", {"file_ids": ["{file}"]}, "file"),
    ("/v1/responses", {**_ASK, "background": True, "previous_response_id": "{response}"}, "response"),
    ("/v1/responses", {**_ASK, "stream": True, "previous_response_id": "{response}"}, "response"),
    ("/v1/responses/input_tokens", {**_ASK, "input": [FILE]}, "file"),
    ("/v1/responses/input_tokens", {**_ASK, "prompt": {"id": "{prompt}"}}, "prompt"),
    ("/v1/responses/compact", {**_ASK, "input": [FILE]}, "file"),
    # This request must be the last one: no worker ends it, so the conversation stays locked.
    ("/v1/responses", {**_ASK, "conversation": "{conversation}", "background": True}, "conversation"),
)

SEARCH = {"type": "file_search", "vector_store_ids": ["{store}"]}
_SEARCH_ONE = {"type": "file_search", "vector_store_id": "{store}"}
_TOOLS = {"type": "additional_tools", "role": "developer", "tools": [SEARCH, _SEARCH_ONE]}
CODE = {"type": "code_interpreter", "container": "{container}"}
_NEW_CODE = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["{file}"]}}
_PICTURE = {"role": "user", "content": [{"type": "input_image", "file_id": "{file}"}]}
_REFERENCE = {"type": "item_reference", "id": "{item}"}
_COMPARED = {**_ASK, "prompt_cache_options": {"comparison_response_id": "{response}"}}
# Requests with ids in their bodies that need every area, or that only store an id.
MORE_BODIES: tuple[tuple[str, Any, str], ...] = (
    *(
        request
        for path in ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact")
        for request in (
            (path, {**_ASK, "tools": [SEARCH]}, "store"),
            (path, {**_ASK, "tools": [_SEARCH_ONE]}, "store"),
            (path, {**_ASK, "input": [_TOOLS, {"role": "user", "content": "x"}]}, "store"),
            (path, {**_ASK, "tools": [CODE]}, "container"),
            (path, {**_ASK, "tools": [_NEW_CODE]}, "file"),
            (path, {**_ASK, "input": [_PICTURE]}, "file"),
            (path, {**_ASK, "input": [_REFERENCE]}, "item"),
            (path, {**_ASK, "input": [APPROVAL]}, "approval"),
            (path, _COMPARED, "response"),
            (path, {**_COMPARED, "stream": True}, "response"),
        )
    ),
    ("/v1/responses", {**_ASK, "tools": [CODE], "background": True}, "container"),
    ("/v1/conversations", {"items": [FILE]}, "file"),
    ("/v1/conversations", {"items": [APPROVAL]}, "approval"),
    ("/v1/conversations", {"items": [_TOOLS]}, "store"),
    ("/v1/conversations/{mine}/items", {"items": [_TOOLS]}, "store"),
    ("/v1/conversations/{mine}/items", {"items": [FILE]}, "file"),
    ("/v1/conversations/{mine}/items", {"items": [APPROVAL]}, "approval"),
    ("/v1/conversations/{mine}/items", {"items": [_REFERENCE]}, "item"),
    ("/v1/prompts", {"instructions": "x", "tools": [SEARCH, _SEARCH_ONE]}, "store"),
    ("/v1/prompts", {"instructions": "x", "tools": [CODE]}, "container"),
    ("/v1/prompts/{mine}", {"instructions": "x", "tools": [SEARCH, _SEARCH_ONE]}, "store"),
    ("/v1/search", {"query": "x", "vector_store_ids": ["{store}"]}, "store"),
    ("/v1/search", {"query": "x", "vector_store_id": "{store}"}, "store"),
    ("/v1/search", {"query": "x", "vector_store_ids": ["{mine}", "{store}"]}, "store"),
    ("/v1/vector_stores/{mine}/file_batches", {"files": [{"file_id": "{file}"}]}, "file"),
    ("/v1/containers", {"name": "x", "file_ids": ["{file}"]}, "file"),
    ("/v1/containers/{mine}/files", {"file_id": "{file}"}, "file"),
)
# Fields of bodies whose names look like ids of stored objects, by path. The empty path stands for all paths.
NO_IDS: dict[str, frozenset[str]] = {
    "": frozenset(
        {
            "call_id",  # connects a call with its output inside the request
            "connector_id",  # names a setting
            "tunnel_id",  # refused
            "stop_token_ids",  # numbers of tokens
        }
    ),
    "/v1/alpha/search": frozenset({"id", "ref_id"}),  # pages of earlier searches, sealed for their owner
}


def ids_in_schema(value: Any, schemas: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The names of the fields that hold ids: in the properties of a JSON schema, and with `schemas` of those to which
    it refers, or else in a body."""
    found: set[str] = set()
    seen: set[str] = set()

    def walk(one: Any) -> None:
        if isinstance(one, list):
            for each in one:
                walk(each)
        elif isinstance(one, dict):
            name = str(one.get("$ref", "")).rpartition("/")[2]
            if schemas is not None and name and name not in seen:
                seen.add(name)
                walk(schemas[name])
            fields = one.get("properties", {}) if schemas is not None else one
            found.update(name for name in fields if name == "id" or name.endswith(("_id", "_ids")))
            for each in one.values():
                walk(each)

    walk(value)
    return frozenset(found)


def kinds_of(pattern: str) -> tuple[str, ...] | None:
    """The kinds of objects that the variables of a path name, in order. None if the path has a variable of an unknown
    kind."""
    segments = usual_spelling(pattern).split("/")
    kinds = [COLLECTIONS.get(before) for before, one in itertools.pairwise(segments) if "{" in one]
    found = tuple(kind for kind in kinds if kind is not None)
    if len(found) < len(kinds):
        return None
    # A file in a container has an id of another kind than an uploaded file.
    return ("container", "cfile") if found == ("container", "file") else found


def usual_spelling(pattern: str) -> str:
    """The usual spelling of a path pattern, because a different spelling is not another endpoint."""
    return pattern.replace("/v1/vector-stores", "/v1/vector_stores")


@dataclass
class Asked:
    """An answer, and the SQL statements that the server ran for it."""

    status: int
    headers: dict[str, str]
    body: bytes
    questions: list[str] = field(default_factory=list)


class Asks(Protocol):
    """A server that can be tested. `patterns` has the methods of each path."""

    @property
    def patterns(self) -> Mapping[str, Sequence[str]]: ...

    async def ask(self, owner: str, method: str, path: str, body: Any = None) -> Asked: ...


async def make(server: Asks, owner: str, method: str, path: str, body: Any = None) -> Any:
    """Create an object. Returns its id."""
    asked = await server.ask(owner, method, path, body)
    assert asked.status == 200, (path, asked.body)
    return json.loads(asked.body)


async def belongings(server: Asks, owner: str) -> dict[str, str]:
    """Create one object of every kind. Returns the ids by kind. Each object that can hold text contains its owner's
    name."""
    asking = {**_ASK, "input": f"{owner}'s question", "instructions": f"{owner}'s instructions"}
    response = await make(server, owner, "POST", "/v1/responses", asking)
    queued = await make(server, owner, "POST", "/v1/responses", {**asking, "background": True})
    request = {"type": "mcp_approval_request", "server_label": "s", "name": "f", "arguments": "{}"}
    items = {"items": [request, {"role": "user", "content": f"{owner}'s words"}]}
    conversation = (await make(server, owner, "POST", "/v1/conversations", items))["id"]
    listed = await make(server, owner, "GET", f"/v1/conversations/{conversation}/items")
    prompt = await make(server, owner, "POST", "/v1/prompts", {"instructions": f"{owner}'s prompt"})
    owned = {
        "response": response["id"],
        "output": response["output"][0]["id"],
        "queued": queued["id"],
        "conversation": conversation,
        "item": listed["data"][0]["id"],
        "approval": listed["data"][1]["id"],
        "prompt": prompt["id"],
        "version": "1",
    }
    if "/v1/files" in server.patterns:
        form = aiohttp.FormData()
        form.add_field("purpose", "user_data")
        form.add_field("file", f"{owner}'s file".encode(), filename="a.txt", content_type="text/plain")
        owned["file"] = (await make(server, owner, "POST", "/v1/files", form))["id"]
    if "/v1/vector_stores" in server.patterns:
        store = (await make(server, owner, "POST", "/v1/vector_stores", {"name": f"{owner}'s store"}))["id"]
        batch = {"file_ids": [owned["file"]]}
        owned["store"] = store
        owned["batch"] = (await make(server, owner, "POST", f"/v1/vector_stores/{store}/file_batches", batch))["id"]
    if "/v1/containers" in server.patterns:
        wanted = {"name": f"{owner}'s container", "file_ids": [owned["file"]]}
        owned["container"] = (await make(server, owner, "POST", "/v1/containers", wanted))["id"]
        inside = await make(server, owner, "GET", f"/v1/containers/{owned['container']}/files")
        owned["cfile"] = inside["data"][0]["id"]
    return owned


def filled(value: Any, ids: Mapping[str, str]) -> Any:
    """The body with ids in place of the names of their kinds."""
    text = json.dumps(value)
    for kind, found in ids.items():
        text = text.replace("{" + kind + "}", found)
    return json.loads(text)


def _ways(kinds: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The combinations of own and foreign ids: the first n ids are the stranger's own, and the others are another
    owner's."""
    for number in range(len(kinds)):
        for chosen in itertools.product(*(KINDS.get(kind, (kind,)) for kind in kinds)):
            yield tuple("own" if at < number else kind for at, kind in enumerate(chosen))


@dataclass(frozen=True)
class Attempt:
    """One request of a stranger, with ids of another owner, and the same request with ids that do not exist."""

    method: str
    path: str
    """The path, with `%s` for each id."""
    foreign: tuple[str, ...]
    missing: tuple[str, ...]
    body: Any


def attempts(server: Asks, alice: Mapping[str, str], bob: Mapping[str, str]) -> Iterator[Attempt]:
    """Every route with ids, requested by bob with alice's ids."""
    for pattern, methods in server.patterns.items():
        kinds = kinds_of(pattern)
        if not kinds or pattern in NOBODYS or pattern.startswith(ADMIN_PATHS):
            continue
        for method in methods:
            known = (method, usual_spelling(pattern))
            for way, query in itertools.product(_ways(kinds), QUERIES.get(known, ("",))):
                tried = tuple(zip(kinds, way, strict=True))
                foreign = tuple(bob[kind] if choice == "own" else alice[choice] for kind, choice in tried)
                missing = tuple(bob[kind] if choice == "own" else MISSING[choice] for kind, choice in tried)
                # A version is a number, so all owners have the same ones.
                if foreign != missing and way[-1] != "version":
                    path = pattern.replace("{}", "%s") + query
                    yield Attempt(method, path, foreign, missing, filled(BODIES.get(known), bob))


def same_answer(foreign: Asked, missing: Asked, tried: Sequence[str], absent: Sequence[str], what: object) -> None:
    assert foreign.status == missing.status >= 400, (what, foreign.body, missing.body)
    assert foreign.headers == missing.headers, what
    said = []
    for asked, ids in ((foreign, tried), (missing, absent)):
        # A search index's table contains the store's number in its name.
        text = "\n".join([asked.body.decode(), *asked.questions])
        for one in ids:
            text = text.replace(one, "<id>")
        said.append(text)
    assert said[0] == said[1], what
