"""Client keys that an operator creates while processes serve: by the command line, and what each process accepts."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.config.owners import OwnerSettings
from antiphon.config.settings import Settings
from antiphon.entry import main
from tests.support.background_app import BackgroundApp, processes
from tests.support.state import needs_sqlite
from tests.support.waiting import until

ASK = {"model": "qwen3", "input": "Hi"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    # The command line finds the state by its folder.
    needs_sqlite()
    return tmp_path / "data"


class Keys:
    """`antiphon admin keys` on a data folder."""

    def __init__(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._data, self._capsys = data, capsys
        self.errors = ""
        self.apart = False
        """Whether commands run in a process of their own. A command in this process would set the log's format for the
        loggers of a server that the test runs."""

    async def run(self, *words: str, status: int = 0) -> str:
        command = ["admin", "keys", *words, "--data", str(self._data)]
        if self.apart:
            ran = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "antiphon", *command),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, errors = map(bytes.decode, await ran.communicate())
            self.errors = errors
            assert ran.returncode == status
            return out
        assert await asyncio.to_thread(main, command) == status
        out, self.errors = self._capsys.readouterr()
        return out

    async def create(self, *words: str) -> dict[str, Any]:
        return await self.json("create", *words)

    async def json(self, *words: str) -> dict[str, Any]:
        # The processes of the test write their lines there too.
        lines = (await self.run(*words, "--json")).splitlines()
        made: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("{")))
        return made


@pytest.fixture
def keys(data: Path, capsys: pytest.CaptureFixture[str]) -> Keys:
    return Keys(data, capsys)


async def status(app: BackgroundApp, token: str, path: str = "/responses", body: Any = None) -> int:
    headers = {"authorization": f"Bearer {token}"}
    method = "GET" if body is None else "POST"
    async with app.session.request(method, app.url + path, json=body, headers=headers) as got:
        await got.read()
        return got.status


async def becomes(expected: int, app: BackgroundApp, token: str) -> None:
    async with asyncio.timeout(60):
        while await status(app, token) != expected:
            await asyncio.sleep(0.01)


async def test_every_process_accepts_a_new_key_and_refuses_a_revoked_one(data: Path, keys: Keys) -> None:
    keys.apart = True
    async with processes(data) as made:
        apps = [await made.start(managed_keys=True) for _ in range(2)]
        assert [await status(app, "a-token-of-nobody-here") for app in apps] == [401, 401]
        anna = await keys.create("--owner", "anna", "--model", "qwen*")
        for app in apps:
            await becomes(200, app, anna["token"])
        assert await status(apps[0], anna["token"], body=ASK) == 200
        assert await status(apps[1], anna["token"], body={**ASK, "model": "gpt-5"}) == 404
        # The successor sees the stored responses of its owner.
        after = await keys.json("rotate", anna["id"], "--overlap", "1h")
        await becomes(200, apps[1], after["token"])
        assert await status(apps[0], anna["token"]) == 200
        headers = {"authorization": f"Bearer {after['token']}"}
        async with apps[1].session.get(apps[1].url + "/responses", headers=headers) as got:
            assert len((await got.json())["data"]) == 1
        await keys.run("revoke", anna["id"])
        for app in apps:
            await becomes(401, app, anna["token"])
            assert await status(app, after["token"]) == 200


async def test_the_log_names_the_key_and_the_team_of_each_request(data: Path, keys: Keys) -> None:
    keys.apart = True
    anna = await keys.create("--owner", "anna", "--team", "lab")
    with capture_logs() as lines:
        async with processes(data) as made:
            app = await made.start(managed_keys=True)
            assert await status(app, "a-token-of-nobody-here") == 401
            await becomes(200, app, anna["token"])
            assert await status(app, anna["token"], body=ASK) == 200
            assert await status(app, anna["token"], body={**ASK, "background": True}) == 200
            await until(lambda: any(line.get("door") == "background" for line in lines))
    (later,) = [line for line in lines if line.get("door") == "background"]
    assert (later["owner"], later["key"], later["team"]) == ("n:anna", anna["id"], "lab")
    named = [(line["event"], line.get("owner"), line["key"], line["team"]) for line in lines if "key" in line]
    assert set(named) == {("request", None, anna["id"], "lab"), ("response", "n:anna", anna["id"], "lab")}
    assert any(line["event"] == "request" and line["status"] == 401 for line in lines)
    assert anna["token"] not in str(lines)


async def test_an_open_websocket_serves_no_turn_with_a_revoked_key(data: Path, keys: Keys) -> None:
    keys.apart = True
    async with processes(data) as made:
        app = await made.start(managed_keys=True)
        anna = await keys.create("--owner", "anna")
        await becomes(200, app, anna["token"])
        headers = {"authorization": f"Bearer {anna['token']}"}
        async with app.session.ws_connect(app.url + "/responses", headers=headers) as socket:
            await socket.send_json({"type": "response.create", **ASK})
            while (await socket.receive_json())["type"] != "response.completed":
                pass
            await keys.run("revoke", anna["id"])
            await becomes(401, app, anna["token"])
            await socket.send_json({"type": "response.create", **ASK})
            refused = await socket.receive_json()
            assert (refused["type"], refused["error"]["code"]) == ("error", "invalid_api_key")
        assert len(made.chat.requests) == 1


async def test_a_token_keeps_its_history_when_its_owner_gets_a_name(
    data: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "a-token-from-before-there-were-names"
    monkeypatch.setenv("ANNAS_TOKEN", token)
    monkeypatch.setenv("SHORT_TOKEN", "short")
    monkeypatch.setenv("ADMIN", "the-admin-token-of-this-data-folder")
    keys.apart = True
    async with processes(data) as made:
        before = await made.start()
        status_before, first = await ask(before, token)
        assert status_before == 200
        after = await made.start(managed_keys=True)
        assert await status(after, token) == 401
        await keys.run("create", "--owner", "anna", "--from-env", "SHORT_TOKEN", status=2)
        assert "--from-env SHORT_TOKEN: a key needs at least 16" in keys.errors
        (data / "admin.token").write_text("the-admin-token-of-this-data-folder\n")
        await keys.run("create", "--owner", "anna", "--from-env", "ADMIN", status=2)
        assert "--from-env ADMIN: this is the admin token" in keys.errors
        (data / "admin.token").unlink()
        out = await keys.run("create", "--owner", "anna", "--from-env", "ANNAS_TOKEN")
        assert token not in out + keys.errors and "admin move-owner --from b:" in keys.errors
        await becomes(200, after, token)
        assert (await ask(after, token, first))[0] == 400
        await keys.run("create", "--owner", "bo", "--from-env", "ANNAS_TOKEN", status=2)
        assert "a key with this token already exists" in keys.errors
        move = ["admin", "move-owner", "--token-env", "ANNAS_TOKEN", "--to", "anna", "--yes", "--data", str(data)]
        moving = await asyncio.create_subprocess_exec(sys.executable, "-m", "antiphon", *move)
        assert await moving.wait() == 0
        # The chain continues for the named owner, and the owner of the hash sees nothing of it.
        continued, second = await ask(after, token, first)
        assert continued == 200
        assert (await ask(after, token, second))[0] == 200
        assert (await ask(before, token, first))[0] == 400


async def ask(app: BackgroundApp, token: str, previous: str | None = None) -> tuple[int, str]:
    """The status and the id of a response that continues `previous`."""
    body = {**ASK, "previous_response_id": previous}
    headers = {"authorization": f"Bearer {token}"}
    async with app.session.post(app.url + "/responses", json=body, headers=headers) as got:
        return got.status, str((await got.json()).get("id"))


async def test_no_token_is_stored_or_listed(data: Path, keys: Keys) -> None:
    made = await keys.create("--owner", "anna", "--name", "laptop", "--team", "lab", "--expires", "90d")
    assert made["token"].startswith("ant_") and len(made["token"]) == 47 and made["prefix"] == made["token"][:8]
    assert made["expires_at"] - made["created_at"] == pytest.approx(90 * 86_400, abs=1)
    assert "managed_keys is false" in keys.errors
    listed = await keys.run("list")
    assert all(word in listed for word in (made["id"], "anna", "laptop", "lab", made["token"][:8]))
    assert made["token"] not in listed + await keys.run("list", "--json", "--all")
    assert all(made["token"].encode() not in file.read_bytes() for file in data.rglob("*") if file.is_file())


async def test_the_audit_lists_each_change_of_a_key(data: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    made = await keys.create("--owner", "anna", "--name", "laptop")
    assert '"message":"audit"' in keys.errors and made["token"] not in keys.errors
    after = await keys.json("rotate", made["id"])
    await keys.run("revoke", after["id"])
    await keys.run("revoke", "key_unknown", status=1)
    assert await asyncio.to_thread(main, ["admin", "purge", "--data", str(data)]) == 0
    capsys.readouterr()
    assert await asyncio.to_thread(main, ["admin", "audit", "--json", "--data", str(data)]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["action"], row["object"], row["owner"]) for row in rows] == [
        ("purge", "", ""),
        ("keys revoke", after["id"], "n:anna"),
        ("keys rotate", made["id"], "n:anna"),
        ("keys create", made["id"], "n:anna"),
    ]
    assert rows[3]["detail"]["name"] == "laptop"
    assert rows[2]["detail"] == {"successor": after["id"], "expires_in": None, "overlap": 86_400}
    assert all(row["actor"] == f"cli:{pwd.getpwuid(os.getuid()).pw_name}" for row in rows)
    assert made["token"] not in out and after["token"] not in out
    words = ["admin", "audit", "--owner", "anna", "--limit", "1", "--since", "2020-01-01", "--data", str(data)]
    assert await asyncio.to_thread(main, words) == 0
    out = capsys.readouterr().out
    assert "keys revoke" in out and "keys rotate" not in out
    for wrong in (["--limit", "0"], ["--since", "2026-13-01"], ["--since", "today"]):
        assert await asyncio.to_thread(main, ["admin", "audit", *wrong, "--data", str(data)]) == 2


@pytest.mark.parametrize(
    ("quotas", "told"),
    [
        ({"teams": {"support": {"tokens_per_month": 9}}}, ["labb", "suport"]),
        ({"teams": {"support": {}}, "each_team": {"tokens_per_month": 9}}, []),
        ({}, []),
    ],
)
async def test_a_team_that_no_limit_names_is_told(
    data: Path, capsys: pytest.CaptureFixture[str], quotas: Any, told: list[str]
) -> None:
    settings: dict[str, Any] = {"door": "http", "data": str(data), "quotas": quotas}
    settings["owner"] = {"managed_keys": True, "keys": {"bo": {"keys": ["sha256:" + "ab" * 32], "team": "labb"}}}
    settings["upstream"] = {"url": "http://127.0.0.1:1/v1", "auth": "none"}
    file = data.parent / "settings.yaml"
    file.write_text(json.dumps(settings))
    notes = []
    for team in ("support", "suport"):
        words = ["admin", "keys", "create", "--owner", "anna", "--team", team, "--config", str(file)]
        assert await asyncio.to_thread(main, words) == 0
        notes.append("No limit in 'quotas' names the team" in capsys.readouterr().err)
    assert notes == [False, "suport" in told]
    await asyncio.to_thread(main, ["doctor", "--json", "--config", str(file)])
    found = [one["what"] for one in json.loads(capsys.readouterr().out) if "names the team" in one["what"]]
    assert [what.split("'")[1] for what in found] == told


async def test_a_list_marks_expired_keys_and_tells_what_it_lacks(
    data: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await keys.create("--owner", "anna", "--expires", "1s")
    async with asyncio.timeout(30):
        while made["id"] in (listed := await keys.run("list")):
            assert "expired" not in listed
            await asyncio.sleep(0.1)
    assert "of the settings" not in keys.errors
    expired = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(made["expires_at"]))
    assert f"  expired {expired}  " in await keys.run("list", "--all")
    settings: dict[str, Any] = {"door": "http", "data": str(data), "owner": {"keys": {"bo": ["sha256:" + "ab" * 32]}}}
    settings["upstream"] = {"url": "http://127.0.0.1:1/v1", "auth": "none"}
    file = data.parent / "settings.yaml"
    file.write_text(json.dumps(settings))
    assert await asyncio.to_thread(main, ["admin", "keys", "list", "--config", str(file)]) == 0
    assert (
        "The keys in 'owner.keys' and 'owner.api_keys' of the settings are not in this list" in capsys.readouterr().err
    )


async def test_an_owner_that_no_key_has_is_told(data: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"door": "http", "data": str(data), "owner": {"managed_keys": True}}
    settings["quotas"] = {"owners": {"carla": {"tokens_per_month": 9}, "carrla": {"tokens_per_month": 9}, "b:x": {}}}
    settings["upstream"] = {"url": "http://127.0.0.1:1/v1", "auth": "none"}
    file = data.parent / "settings.yaml"
    file.write_text(json.dumps(settings))

    async def doctor() -> list[str]:
        capsys.readouterr()
        await asyncio.to_thread(main, ["doctor", "--json", "--config", str(file)])
        told = [one["what"] for one in json.loads(capsys.readouterr().out)]
        return [what for what in told if "limits nothing" in what or "no client keys" in what]

    assert (await doctor())[0] == "no client keys exist yet: every request gets 401"
    notes = []
    for owner in ("carla", "corla"):
        words = ["admin", "keys", "create", "--owner", owner, "--config", str(file)]
        assert await asyncio.to_thread(main, words) == 0
        notes.append("No limit in 'quotas' names the owner" in capsys.readouterr().err)
    assert notes == [False, True]
    (told,) = await doctor()
    assert told.startswith("quotas.owners.carrla limits nothing: no managed key and no key of 'owner.keys'")


async def test_a_rotation_tells_that_limits_of_the_key_stay_behind(
    data: Path, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = await keys.create("--owner", "anna"), await keys.create("--owner", "bo")
    settings: dict[str, Any] = {"door": "http", "data": str(data), "owner": {"managed_keys": True}}
    settings |= {"quotas": {"keys": {first["id"]: {"requests_per_minute": 2}}}}
    settings["upstream"] = {"url": "http://127.0.0.1:1/v1", "auth": "none"}
    file = data.parent / "settings.yaml"
    file.write_text(json.dumps(settings))
    notes = []
    for key in (first, second):
        capsys.readouterr()
        assert await asyncio.to_thread(main, ["admin", "keys", "rotate", key["id"], "--config", str(file)]) == 0
        notes.append(f"The limits of {key['id']} in 'quotas.keys' do not apply to key_" in capsys.readouterr().err)
    assert notes == [True, False]


async def test_a_managed_key_names_its_owner_for_the_commands(
    data: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = await keys.create("--owner", "anna")
    monkeypatch.setenv("ANNAS_TOKEN", made["token"])
    settings: dict[str, Any] = {"door": "http", "data": str(data), "owner": {"managed_keys": True}}
    settings["upstream"] = {"url": "http://127.0.0.1:1/v1", "auth": "none"}
    file = data.parent / "settings.yaml"
    file.write_text(json.dumps(settings))
    words = ["admin", "delete-owner", "--token-env", "ANNAS_TOKEN", "--config", str(file)]
    # The data of a revoked key's owner still exists.
    for revoked in (False, True):
        if revoked:
            await keys.run("revoke", made["id"])
        assert await asyncio.to_thread(main, words) == 1
        assert "The owner n:anna has no stored data." in capsys.readouterr().out


async def test_a_revoked_key_is_listed_with_all_and_ends_once(keys: Keys) -> None:
    made = await keys.create("--owner", "anna")
    other = await keys.create("--owner", "bo")
    await keys.run("revoke", made["id"])
    assert [json.loads(line)["id"] for line in (await keys.run("list", "--json")).splitlines()] == [other["id"]]
    assert "revoked" in await keys.run("list", "--all", "--owner", "anna")
    for words in (("revoke", made["id"]), ("rotate", made["id"])):
        await keys.run(*words, status=1)
        assert "it is already revoked" in keys.errors
    await keys.run("revoke", "key_unknown", status=1)
    assert "there is no such key; 'antiphon admin keys list --all' lists the ids" in keys.errors
    for verb in ("revoke", "rotate"):
        await keys.run(verb, "anna/1", status=1)
        assert "anna/1: keys with such an id are in the settings: remove or replace the key" in keys.errors


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("create", "--owner", "n:anna"), "--owner n:anna: use 1 to 64"),
        (("create", "--owner", "anna", "--expires", "soon"), "--expires soon: write a number"),
        (("create", "--owner", "anna", "--name", "a\x1b[2J"), "--name: use at most 100 printable"),
        (("create", "--owner", "anna", "--model", ""), "a glob has 1 to 100"),
        (("create", "--owner", "anna", "--model", "\udcff"), "a glob has 1 to 100 printable"),
        (("create", "--owner", "anna", "--tool", "a\x1b[2J"), "a glob has 1 to 100 printable"),
        (("list", "--owner", "\udcff"), "use 1 to 64"),
        (("revoke", "\udcff"), "a key's id has printable characters"),
        (("rotate", "\udcff"), "a key's id has printable characters"),
        (("rotate", "key_x", "--overlap", "1w"), "--overlap 1w: write a number"),
    ],
)
async def test_bad_flags_are_explained(keys: Keys, words: tuple[str, ...], problem: str) -> None:
    await keys.run(*words, status=2)
    assert problem in keys.errors


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"state": {"url": "memory:"}}, "owner.managed_keys: with state.url 'memory:'"),
        ({"owner": {"managed_keys": True, "source": "header"}}, "set source to bearer, or managed_keys to false"),
        (
            {"upstream": {"auth": "passthrough"}},
            "owner.managed_keys: clients' keys are only for this",
        ),
    ],
)
def test_settings_that_contradict_managed_keys_are_refused(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Settings(**{"owner": {"managed_keys": True}, "upstream": {"auth": "none"}, **wrong})


@pytest.mark.parametrize(
    "owner",
    [
        {"api_keys": ["0123456789abcdef"]},
        {"keys": {"anna": ["0123456789abcdef"]}},
        {"managed_keys": True},
        {"source": "jwt", "jwt": {"issuer": "https://issuer.test", "audience": ["antiphon"]}},
    ],
)
def test_with_client_keys_of_any_kind_envoy_sends_chat_to_the_sidecar(owner: dict[str, Any]) -> None:
    """The sidecar checks the key there too, and Envoy does not send it to the upstream."""
    settings = Settings.model_validate({"owner": owner, "upstream": {"auth": "none"}})
    assert OwnerSettings.model_validate(owner).has_client_keys and settings.decides_chat and settings.decides_embeddings
    assert not Settings.model_validate({"upstream": {"auth": "none"}}).decides_chat


async def test_a_named_owner_takes_over_what_its_token_stored_before(
    data: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.apart = True
    token = "a-token-that-was-an-owner"
    headers = {"authorization": f"Bearer {token}"}

    async def stored(app: BackgroundApp) -> list[str]:
        async with app.session.get(app.url + "/responses", headers=headers) as got:
            return [one["id"] for one in (await got.json())["data"]]

    async with processes(data) as made:
        app = await made.start()
        assert await status(app, token, body=ASK) == 200
        before = await stored(app)
        assert len(before) == 1
    monkeypatch.setenv("OLD_TOKEN", token)
    async with processes(data) as made:
        apps = [await made.start(managed_keys=True) for _ in range(2)]
        await keys.create("--owner", "anna", "--from-env", "OLD_TOKEN")
        for app in apps:
            await becomes(200, app, token)
        async with asyncio.timeout(60):
            while await stored(apps[1]) != before:
                await asyncio.sleep(0.01)
        # The audit names both owners.
        noted = [one for one in await apps[0].app.stores.audit.list() if one.action == "adopt-owner"]
        assert noted and noted[0].owner == "n:anna" and noted[0].object.startswith("b:")
