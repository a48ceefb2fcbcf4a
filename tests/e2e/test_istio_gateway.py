"""What is printed for Istio, in the Envoy of a Gateway: a real Envoy with what Istio sends it, patched as Istio does.

Lives here: what must then work. Not here: Istio's configuration (`istio_gateway.yaml`), the patches' meaning
(`tests/support/istio_patches.py`), whether their schema allows them (`tests/unit/envoy/test_istio.py`).
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from antiphon.entry import main
from tests.support.beside_envoy import envoy_and_sidecar
from tests.support.chat_server import ChatServer, Wait, answer, completion, json_answer, text_stream
from tests.support.envoy_binary import envoy_version
from tests.support.istio_patches import applied
from tests.support.tokens import jwks, token

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 60.0
TEXT: dict[str, Any] = {"model": "demo-model", "input": "Hello there"}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _printed(
    capsys: pytest.CaptureFixture[str], folder: Path, port: int, upstream: str, *, own: bool
) -> dict[str, Any]:
    """The objects, with folders of this machine. `own`: of a Gateway that nobody else uses."""
    arguments = ["--for", "istio", "--gateway-port", str(port), "--upstream", upstream, "--auth", "none"]
    arguments += ["--own-gateway"] if own else []
    assert main(["envoy-config", *arguments, "--envoy-version", str(envoy_version())]) == 0
    text = capsys.readouterr().out.replace("/run/antiphon", str(folder)).replace("/var/lib/antiphon", str(folder))
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text) if one}


@pytest.mark.parametrize("own", [True, False])
async def test_all_that_a_gateway_does_goes_through_istios_envoy(
    own: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = _free_port()
    text = (Path(__file__).parent / "istio_gateway.yaml").read_text().replace("FOLDER", str(folder))
    theirs = yaml.safe_load(text.replace("GATEWAY_NUMBER", str(port)).replace("JWKS", json.dumps(jwks())))
    async with ChatServer() as chat:
        objects = _printed(capsys, folder, port, chat.base_url, own=own)
        files = objects["ConfigMap/antiphon"]["data"]
        limits = json.dumps(yaml.safe_load(files.get("envoy-bootstrap.yaml", "{}")))
        patched = applied(theirs, objects["EnvoyFilter/antiphon"])
        settings = {**yaml.safe_load(files["antiphon.yaml"]), "metrics": {"listen": "127.0.0.1:0"}}
        async with (
            # Istio's agent hands the file over like this.
            envoy_and_sidecar(folder, patched, settings, "--config-yaml", limits) as alive,
            aiohttp.ClientSession(
                f"http://127.0.0.1:{port}",
                timeout=aiohttp.ClientTimeout(total=SECONDS),
                headers={"authorization": f"Bearer {token('user')}"},
            ) as session,
        ):

            async def ready() -> bool:
                alive()
                try:
                    async with session.get("/ready") as got, session.post("/v1/responses", json={}) as refused:
                        return (got.status, refused.status) == (200, 400)
                except (OSError, aiohttp.ClientError):
                    return False

            async with asyncio.timeout(SECONDS):
                while not await ready():
                    await asyncio.sleep(0.05)
            await _answers(session, chat)
            await _turns_away(session, chat)
            for path in ("/v1/nothing", "/metrics"):
                got, said = await _asked(session, "GET", path)
                # On a Gateway of others it is for them to say.
                assert (got, bool(said)) == (404, own), said


async def _asked(session: aiohttp.ClientSession, method: str, path: str, **more: Any) -> tuple[int, Any]:
    """Status, and JSON (or text)."""
    async with session.request(method, path, **more) as got:
        return got.status, await (got.json() if got.content_type == "application/json" else got.text())


async def _answers(session: aiohttp.ClientSession, chat: ChatServer) -> None:
    # Theirs goes on.
    assert await _asked(session, "GET", "/app/page") == (200, "theirs")
    # JSON, and a chain with a tool that the client runs.
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    chat.script(json_answer(completion("", tool_calls=[call])))
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}]
    status, first = await _asked(session, "POST", "/v1/responses", json={**TEXT, "tools": tools})
    assert (status, [one["type"] for one in first["output"]]) == (200, ["function_call"])
    seen = {"type": "function_call_output", "call_id": "call_1", "output": "a door"}
    turn = {"model": TEXT["model"], "input": [seen], "previous_response_id": first["id"]}
    status, second = await _asked(session, "POST", "/v1/responses", json=turn)
    assert (status, second["status"]) == (200, "completed")
    assert [one["role"] for one in chat.requests[-1].json["messages"]] == ["user", "assistant", "tool"]
    # A stream, as it comes.
    gate = asyncio.Event()
    parts = text_stream("a", "b")
    chat.script(answer(parts=[*parts[:2], Wait(gate), *parts[2:]]))
    async with session.post("/v1/responses", json={**TEXT, "stream": True}) as got:
        assert (await got.content.readline()).startswith(b"event: response.created")
        gate.set()
        assert b"data: [DONE]" in await got.content.read()
    # What the sidecar asks by itself goes through the model door.
    status, begun = await _asked(session, "POST", "/v1/responses", json={**TEXT, "background": True})
    assert status == 200
    async with asyncio.timeout(SECONDS):
        while (await _asked(session, "GET", f"/v1/responses/{begun['id']}"))[1]["status"] != "completed":
            await asyncio.sleep(0.01)
    # Files, models, Chat Completions.
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", io.BytesIO(b"x" * (2 << 20)), filename="x.txt")
    status, file = await _asked(session, "POST", "/v1/files", data=form)
    assert (status, file["bytes"]) == (200, 2 << 20)
    assert (await _asked(session, "GET", "/v1/models"))[0] == 200
    messages = [{"role": "user", "content": "x"}]
    chosen = {"model": TEXT["model"], "messages": messages}
    assert (await _asked(session, "POST", "/v1/chat/completions", json=chosen))[1]["object"] == "chat.completion"
    async with session.ws_connect("/v1/responses") as talk:
        await talk.send_json({"type": "response.create", **TEXT})
        assert (await talk.receive_json(timeout=SECONDS))["type"] == "response.created"


async def _turns_away(session: aiohttp.ClientSession, chat: ChatServer) -> None:
    """Errors in OpenAI's shape, and nobody passes Istio's own filters."""
    # The header that leads out of the dead end is the sidecar's alone.
    forged = {"x-antiphon-backend": "default"}
    assert (await _asked(session, "POST", "/v1/responses", json=TEXT, headers=forged))[1]["object"] == "response"
    got, said = await _asked(session, "GET", "/v1/files/no")
    assert (got, said["error"]["type"], said["error"]["param"]) == (404, "invalid_request_error", "id")
    got, said = await _asked(session, "POST", "/v1/responses", json={"input": "x"})
    assert (got, said["error"]["param"]) == (400, "model")
    before = len(chat.requests)
    for bearer, status, code in (("", 403, "permission_denied"), ("Bearer forged", 401, "invalid_api_key")):
        got, said = await _asked(session, "POST", "/v1/responses", json=TEXT, headers={"authorization": bearer})
        assert (got, said["error"]["code"]) == (status, code)
        for path in ("/v1/models", "/v1/files", "/v1/responses/resp_1"):
            assert (await _asked(session, "GET", path, headers={"authorization": bearer}))[0] == status
    assert len(chat.requests) == before
