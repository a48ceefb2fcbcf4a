"""The API's own document: all routes and nothing else, proper schemas, everything that a request can hold. What is
served while areas are switched off is what the generator makes of the other routes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator, meta
from msgspec import Struct

from antiphon import __version__
from antiphon.api.containers import ContainerApi
from antiphon.api.endpoint import document
from antiphon.api.files import Files
from antiphon.api.vector_stores import VectorStoreApi
from antiphon.engine.exchange.phase import EXCHANGE_PATHS
from antiphon.translation.item_kinds import ITEMS
from antiphon.translation.request.field_support import GROUPS
from antiphon.translation.request.fields import REQUEST_FIELDS
from antiphon.types.items import InputItem
from antiphon.types.json import encode
from tests.schemas import api_document
from tests.schemas.json_schema import Schemas
from tests.support.whole_api import router, whole_document, whole_router

DOCUMENT = whole_document()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
RECORDED = Path(__file__).parent.parent / "client_requests"


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _titles(name: str) -> set[str]:
    return {one["title"] for one in SCHEMAS[name]["anyOf"] if "title" in one}


def test_every_route_has_an_operation_and_every_operation_a_route() -> None:
    routes = {("POST", path) for path in EXCHANGE_PATHS}
    routes |= {
        (method, re.sub(r"\{\*?\}", "{}", endpoint.pattern))
        for endpoint in whole_router().endpoints
        for method in endpoint.methods
    }
    assert {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path, _ in _operations()} == routes
    assert all(whole_router().is_exchange("POST", path) for path in EXCHANGE_PATHS)


@pytest.mark.parametrize("extra", [(), ("/rerank", "/audio/the-voice", "/Rerank")], ids=["", "paths of the operator"])
@pytest.mark.parametrize(
    "without",
    [(), (ContainerApi,), (VectorStoreApi,), (VectorStoreApi, ContainerApi), (Files, VectorStoreApi, ContainerApi)],
    ids=lambda without: "without " + ", ".join(one.__name__ for one in without),
)
def test_what_is_served_is_what_the_routes_make(without: tuple[type, ...], extra: tuple[str, ...]) -> None:
    endpoints = router(without=without, extra=extra).endpoints
    made = api_document.document(endpoints)
    made["info"]["version"] = __version__
    # In this order too, that of the routes.
    assert document(endpoints) == encode(made)


def test_an_operation_is_the_same_whatever_is_switched_off() -> None:
    served = json.loads(document(router(without=(Files, VectorStoreApi)).endpoints))
    assert served["paths"] == {path: DOCUMENT["paths"][path] for path in served["paths"]}
    assert "/v1/containers" in served["paths"] and "/v1/files" not in served["paths"]


def test_only_a_new_response_can_fail_because_of_an_mcp_server() -> None:
    assert [path for _, path, operation in _operations() if "424" in operation["responses"]] == ["/v1/responses"]


def test_a_path_of_the_operator_that_is_an_own_one_is_described_as_what_answers() -> None:
    extra = ("/files", "/search")
    assert json.loads(document(router(extra=extra).endpoints)) == DOCUMENT
    served = json.loads(document(router(without=(Files, VectorStoreApi), extra=extra).endpoints))
    assert served["paths"]["/v1/files"].keys() == {"post"}
    summaries = [served["paths"][f"/v1{path}"]["post"]["summary"] for path in extra]
    assert summaries == ["Forward files to the upstream", "Forward search to the upstream"]


def test_an_operation_leads_to_its_route() -> None:
    for method, path, operation in _operations():
        asked = re.sub(r"\{(\w+)\}", r"x-\1", path)
        names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"]
        assert re.findall(r"\{(\w+)\}", path) == names, path
        if (method, path) in [("POST", known) for known in EXCHANGE_PATHS]:
            continue
        [found] = [one for one in whole_router().endpoints if one.match(asked) is not None and method in one.methods]
        assert found.match(asked) == tuple(f"x-{name}" for name in names)


def test_what_is_made_says_who_can_be_asked_for_it() -> None:
    links = DOCUMENT["paths"]["/v1/vector_stores/{store_id}/files"]["post"]["responses"]["200"]["links"]
    assert links["getFileOfVectorStore"] == {
        "operationId": "getFileOfVectorStore",
        "parameters": {"store_id": "$request.path.store_id", "file_id": "$response.body#/id"},
    }
    items = DOCUMENT["paths"]["/v1/conversations/{conversation_id}/items"]["post"]["responses"]["200"]["links"]
    assert items["getItemOfConversation"]["parameters"]["item_id"] == "$response.body#/data/0/id"
    ids = {operation["operationId"] for _, _, operation in _operations()}
    for _, _, operation in _operations():
        assert set(operation["responses"]["200"].get("links", {})) <= ids


def test_ids_are_unique_and_words() -> None:
    ids = [operation["operationId"] for _, _, operation in _operations()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][A-Za-z]+[0-9]?", one) for one in ids)
    assert [one for one in ids if len(one) > 40] == []
    assert {"getHealth", "getReadiness", "getMetrics"} <= set(ids)


def test_schemas_are_schemas_and_references_lead_somewhere() -> None:
    for schema in SCHEMAS.values():
        meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(DOCUMENT))):
        value: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            value = value[step]
        assert value


def test_no_schema_is_without_use() -> None:
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert set(SCHEMAS) == used


def test_every_body_and_answer_is_described() -> None:
    for method, path, operation in _operations():
        [content] = [operation["responses"]["200"]["content"]]
        assert content, path
        if method == "POST" and not path.endswith("/cancel"):
            assert operation["requestBody"]["content"], path
        assert operation["responses"]["default"] == {"$ref": "#/components/responses/Error"}


def test_what_needs_no_identity_says_so() -> None:
    free = {path for _, path, operation in _operations() if operation.get("security") == []}
    assert free == {endpoint.pattern for endpoint in whole_router().endpoints if endpoint.open}
    assert "/openapi.json" in free


def test_a_request_has_all_its_fields() -> None:
    fields = SCHEMAS["CreateResponse"]["properties"]
    in_chat = {name for name in REQUEST_FIELDS if "Chat Completions" in _how(name)}
    assert REQUEST_FIELDS - in_chat <= set(fields)
    assert not in_chat & set(fields)
    assert set(GROUPS["Sampling, templates, guided decoding"]) <= set(fields)


def _how(name: str) -> str:
    from antiphon.translation.profiles import PROFILES
    from antiphon.translation.request.field_support import support_of

    return support_of(PROFILES["generic"], name).note if name in GROUPS["Fields"] else ""


def test_a_request_has_everything_that_the_table_of_fates_names() -> None:
    include = set(SCHEMAS["CreateResponse"]["properties"]["include"]["items"]["anyOf"][0]["enum"])
    named = {name.removeprefix("include:") for name in GROUPS["Values of `include`"] if " " not in name}
    assert include == named
    items = {name.removeprefix("input.") for name in GROUPS["Items of `input`"] if " " not in name}
    assert items <= _titles("InputItem") == set(ITEMS)
    tools = {name.split(".")[1] for name in GROUPS["Tools"] if " " not in name}
    assert tools == _titles("Tool")
    parts = {name.split(".")[1] for name in GROUPS["Content parts"] if " " not in name}
    assert parts == _titles("ContentPart")


def test_members_of_items_are_those_that_are_read() -> None:
    """Others are only in items that are read from their source, each by a reader of its own."""
    elsewhere = {"additional_tools", "agent_message", "agent_reasoning", "configuration_update"}
    for one in SCHEMAS["InputItem"]["anyOf"]:
        if one.get("title") not in elsewhere:
            assert set(one.get("properties", ())) <= set(InputItem.__struct_fields__), one["title"]


@pytest.mark.parametrize("recorded", sorted(RECORDED.glob("*.json")), ids=lambda path: path.stem)
def test_what_clients_send_is_in_the_document(recorded: Path) -> None:
    validator = Draft202012Validator(
        {"$ref": "#/components/schemas/CreateResponse", "components": DOCUMENT["components"]}
    )
    for request in json.loads(recorded.read_text())["requests"]:
        body = request.get("json")
        asked = (request["method"], request["path"]) == ("POST", "/v1/responses")
        if asked and isinstance(body, dict) and request["status"] < 400:
            validator.validate(body)


class _Inner(Struct):
    a: int
    b: str = ""


class _Outer(Struct):
    inner: _Inner


def test_an_answer_has_its_defaults_and_a_request_may_leave_them_out() -> None:
    schemas = Schemas()
    schemas.of(_Outer, answers=False)
    assert schemas.named["_Inner"]["required"] == ["a"]
    assert schemas.of(_Inner, answers=True) == {"$ref": "#/components/schemas/_InnerAnswer"}
    assert schemas.named["_InnerAnswer"]["required"] == ["a", "b"]


def test_one_name_is_one_type() -> None:
    schemas = Schemas()
    schemas.of(_Inner, answers=False)
    other = type("_Inner", (Struct,), {"__annotations__": {"c": int}})
    with pytest.raises(ValueError, match="two types of the name _Inner"):
        schemas.of(other, answers=False)


def test_a_path_takes_its_variables_in_their_order() -> None:
    assert api_document.path_of("/v1/a/{}/b/{*}", ("one", "two")) == "/v1/a/{one}/b/{two}"
