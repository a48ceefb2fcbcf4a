"""The page on keys and owners: an Envoy whose jwt_authn checks the tokens of an issuer, in front of Antiphon.

Lives here: who owns what, which tokens Envoy refuses, and what a client's own headers change. Not here: tokens that
Antiphon checks itself (`tests/integration/test_identities.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from antiphon.config.settings import Settings
from antiphon.envoy.merging import MergeTarget, merged
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.snippet import parts
from tests.support.beside_envoy import envoy_and_sidecar
from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer
from tests.support.envoy_binary import envoy_version
from tests.support.issuer import AUDIENCE, Issuer, Key, unsigned

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 60.0
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "keys-and-owners.md"
REALM = "https://login.example.com/realms/staff"
ASK: dict[str, Any] = {"model": "demo-model", "input": "Hello there"}
_ENVOY = """
admin: { address: { pipe: { path: "%s" } } }
static_resources:
  listeners:
  - name: http
    address: { socket_address: { address: 127.0.0.1, port_value: %d } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
          route_config:
            name: ingress
            virtual_hosts: [ { name: all, domains: ["*"], routes: [] } ]
  clusters: []
"""


def _example(marker: str) -> str:
    """The example of the page that contains `marker`."""
    (found,) = (block for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL) if marker in block)
    return str(found)


@dataclass
class Company:
    """The Envoy as clients see it, the issuer of their tokens, and the model server behind it."""

    url: str
    session: aiohttp.ClientSession
    issuer: Issuer
    chat: ChatServer
    folder: Path

    async def ask(
        self, token: str | None, body: Any = None, path: str = "/v1/responses", **headers: str
    ) -> tuple[int, Any]:
        """The status and the answer of a POST, or of a GET if there is no body."""
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        method = "GET" if body is None else "POST"
        async with self.session.request(method, self.url + path, json=body, headers=headers) as got:
            text = await got.text()
            return got.status, json.loads(text) if got.content_type == "application/json" else text

    async def both(self, token: str | None, **headers: str) -> tuple[int, int]:
        """The statuses by Antiphon's two servers: of a response by ext_proc, and of a list by HTTP."""
        return (await self.ask(token, ASK, **headers))[0], (await self.ask(token, **headers))[0]


@asynccontextmanager
async def _started(folder: Path, source: str, *, forward: bool = False, auth: str = "none") -> AsyncIterator[Company]:
    authority = Authority(folder)
    files = authority.sign("issuer")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files.cert, files.key)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    async with Issuer(Key("one"), tls=tls) as issuer, ChatServer() as chat:
        texts = [_example(marker) for marker in ("  remote_jwks:", "name: login\n")]
        if source == "header":
            (line,) = re.findall(r"`(claim_to_headers: [^`]+)`", PAGE.read_text())
            texts[0], changed = re.subn(r"payload_in_metadata: .*", line, texts[0])
            assert changed == 1
        places = {
            f"{REALM}/protocol/openid-connect/certs": f"{issuer.url}/keys",
            REALM: issuer.url,
            "address: login.example.com": "address: 127.0.0.1",
            "login.example.com": "localhost",
            "port_value: 443": f"port_value: {urlsplit(issuer.url).port}",
            "/etc/ssl/certs/ca-certificates.crt": str(authority.ca),
            "cache_duration: 300s": "cache_duration: 1s",
        }
        for old, new in places.items():
            assert any(old in text for text in texts), old
            texts = [text.replace(old, new) for text in texts]
        theirs = yaml.safe_load(_ENVOY % (folder / "their-admin.sock", port))
        static = theirs["static_resources"]
        manager = static["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        (checks,) = yaml.safe_load(texts[0])
        if forward:
            checks["typed_config"]["providers"]["staff"]["forward"] = True
        manager["http_filters"].insert(0, checks)
        static["clusters"] += yaml.safe_load(texts[1])
        given = yaml.safe_load(_example("source: metadata"))
        if source == "header":
            given["owner"] = {"source": "header"}
        given |= {"data": str(folder), "upstream": {"url": chat.base_url, "auth": auth}}
        settings = Settings.model_validate(given)
        ours = parts(settings, endpoints(settings), envoy_version())
        told: list[str] = []
        whole = merged(theirs, ours, MergeTarget(), told.append, by_token=False)
        assert told == []
        async with (
            envoy_and_sidecar(folder, whole, given) as alive,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
        ):
            made = Company(f"http://127.0.0.1:{port}", session, issuer, chat, folder)

            first = issuer.token("first")

            async def ready() -> bool:
                alive()
                try:
                    return await made.both(first) == (200, 200)
                except (OSError, aiohttp.ClientError):
                    return False

            await _until(ready)
            yield made


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.fixture(params=["metadata", "header"])
async def company(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Company]:
    async with _started(folder, request.param) as started:
        yield started


def _with_the_public_key(issuer: Issuer, claims: dict[str, Any]) -> str:
    """A token whose secret is the issuer's public key."""
    body = unsigned({"alg": "HS256", "kid": "one"}, claims).rpartition(".")[0]
    secret = json.dumps(issuer.keys[0].public).encode()
    return body + "." + unsigned({}, {}, hmac.new(secret, body.encode(), hashlib.sha256).digest()).rpartition(".")[2]


async def test_the_subject_of_a_token_is_the_owner(company: Company, request: pytest.FixtureRequest) -> None:
    issuer = company.issuer
    anna, again, bo = (issuer.token(name, name="Anna A.") for name in ("anna", "anna", "bo"))
    status, made = await company.ask(anna, ASK)
    assert status == 200, made
    place, next_turn = f"/v1/responses/{made['id']}", {**ASK, "previous_response_id": made["id"]}
    assert (await company.ask(again, path=place))[0] == 200
    assert (await company.ask(again, next_turn))[0] == 200
    # Another subject has nothing of it, whatever it says in headers of its own.
    named = {"x-antiphon-owner": "anna"}
    claimed = {"x-antiphon-owner": json.dumps({"sub": "anna"})}
    for headers in ({}, named, claimed, {"x-antiphon-secret": "guessed", **claimed}):
        assert (await company.ask(bo, path=place, **headers))[0] == 404
        assert (await company.ask(bo, next_turn, **headers))[0] == 400
        assert (await company.ask(bo, **headers))[1]["data"] == []
        assert await company.both(None, **headers) == (401, 401)
    async with company.session.ws_connect(
        company.url + "/v1/responses", headers={"authorization": f"Bearer {bo}"}
    ) as socket_:
        await socket_.send_json({"type": "response.create", **next_turn})
        said = await socket_.receive_json(timeout=SECONDS)
    assert said["error"]["code"] == "previous_response_not_found"
    # The model server sees neither tokens nor claims.
    seen = {name for asked in company.chat.requests for name, _ in asked.headers}
    assert not {name for name in seen if name == "authorization" or name.startswith("x-antiphon-")}
    log = (company.folder / "log").read_text()
    assert not any(token in log for token in (anna, again, bo))
    names = '"owner":"j:anna"' in log and '"owner_name":"Anna A."' in log
    assert names if request.node.callspec.params["company"] == "metadata" else '"owner":"h:anna"' in log


async def test_envoy_refuses_what_the_issuer_did_not_sign_for_this_gateway(company: Company) -> None:
    issuer = company.issuer
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": "first", "exp": time.time() + 3600}
    refused = {
        "expired": issuer.token("first", exp=time.time() - 3600),
        "never expires": issuer.keys[0].sign({name: one for name, one in claims.items() if name != "exp"}),
        "other audience": issuer.token("first", aud="other"),
        "other issuer": issuer.token("first", iss="https://other.example"),
        "unsigned": unsigned({"alg": "none"}, claims),
        "unsigned with a key": unsigned({"alg": "none", "kid": "one"}, claims),
        "public key as secret": _with_the_public_key(issuer, claims),
        "other key": issuer.token("first", Key("one")),
        "no token": "x",
    }
    before = len(company.chat.requests)
    # Envoy has a status of its own for a valid token of another service.
    statuses = dict.fromkeys(refused, (401, 401)) | {"other audience": (403, 403)}
    assert {why: await company.both(token) for why, token in refused.items()} == statuses
    assert len(company.chat.requests) == before
    # Envoy accepts a token without a usable subject, and Antiphon refuses it.
    assert await company.both(issuer.token("")) == (401, 401)


@pytest.mark.parametrize("source", ["metadata", "header"])
@pytest.mark.parametrize("auth", ["none", "passthrough"])
async def test_a_token_that_envoy_keeps_reaches_only_an_upstream_with_passthrough(
    folder: Path, source: str, auth: str
) -> None:
    """With `forward: true` in jwt_authn. Antiphon warns of `passthrough` at its start."""
    async with _started(folder, source, forward=True, auth=auth) as company:
        token = company.issuer.token("anna")
        company.chat.requests.clear()
        assert await company.both(token) == (200, 200)
        chat = {"model": "demo-model", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await company.ask(token, chat, "/v1/chat/completions"))[0] == 200
        # The sidecar's own requests for the list of models have no token.
        calls = [one for one in company.chat.requests if one.method == "POST"]
        seen = [dict(one.headers).get("authorization") for one in calls]
        assert seen == [None if auth == "none" else f"Bearer {token}"] * 2
        assert ("identity_token_passed_on" in (company.folder / "log").read_text()) == (auth == "passthrough")


async def test_new_keys_of_the_issuer_take_the_place_of_the_old(company: Company) -> None:
    issuer = company.issuer
    old = issuer.token("first")
    issuer.keys = [Key("two", "RS256")]
    new = issuer.token("first")

    async def changed() -> bool:
        return await company.both(new) == (200, 200) and await company.both(old) == (401, 401)

    await _until(changed)
