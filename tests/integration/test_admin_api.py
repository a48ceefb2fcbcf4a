"""The admin API over HTTP: what an operator does with the admin token, and what no other client can do."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from antiphon.app.build import build
from antiphon.config.operators import AdminSettings
from antiphon.config.settings import Settings, load_settings
from antiphon.config.upstreams import AuthMode, PriceSettings
from antiphon.errors import ConfigError, StoreError
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.state import needs_sqlite

TOKEN = "the-token-of-the-operators-0123456789"
ON = AdminSettings(api=True, token=SecretStr(TOKEN))
ASK = {"model": "qwen3", "input": "Hi"}
PATHS = ("keys", "quotas", "usage", "audit")


@asynccontextmanager
async def gateway(data: Path, **changes: Any) -> AsyncIterator[tuple[Processes, BackgroundApp]]:
    async with processes(data) as made:
        yield made, await made.start(**{"managed_keys": True, "admin": ON, **changes})


async def admin(
    app: BackgroundApp, path: str, method: str = "GET", body: Any = None, token: str | None = TOKEN
) -> tuple[int, Any]:
    """The status and the answer of a request to the admin API."""
    headers = {"authorization": f"Bearer {token}"} if token is not None else {}
    url = f"{app.url}/antiphon/admin/{path}"
    async with app.session.request(method, url, json=body, headers=headers) as got:
        return got.status, await got.json()


async def created(app: BackgroundApp, **body: Any) -> dict[str, Any]:
    status, made = await admin(app, "keys", "POST", {"owner": "anna", **body})
    assert status == 200, made
    found: dict[str, Any] = made
    return found


async def asked(app: BackgroundApp, token: str, path: str = "/responses", body: Any = ASK) -> int:
    """The status of a client's request."""
    async with app.session.post(app.url + path, json=body, headers={"authorization": f"Bearer {token}"}) as got:
        await got.read()
        return got.status


async def becomes(expected: int, app: BackgroundApp, token: str) -> None:
    async with asyncio.timeout(60):
        while await asked(app, token) != expected:
            await asyncio.sleep(0.01)


async def test_a_key_is_made_rotated_and_revoked_for_every_process(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (made, first):
        second = await made.start(managed_keys=True)
        key = await created(first, name="laptop", team="lab", models=["qwen*"], tools=["function"], expires_in=3600)
        assert key["object"] == "client_key" and key["token"].startswith("ant_") and key["id"].startswith("key_")
        assert (key["owner"], key["name"], key["team"]) == ("anna", "laptop", "lab")
        assert (key["models"], key["tools"], key["prefix"]) == (["qwen*"], ["function"], key["token"][:8])
        assert key["expires_at"] - key["created_at"] in (3600, 3601) and key["revoked_at"] is None
        await becomes(200, second, key["token"])
        assert await asked(second, key["token"], body={**ASK, "model": "gpt-5"}) == 404
        status, after = await admin(first, f"keys/{key['id']}/rotate", "POST", {"overlap": 60})
        assert status == 200 and after["token"] != key["token"] and after["models"] == ["qwen*"]
        assert after["expires_at"] - after["created_at"] in (3600, 3601)
        await becomes(200, second, after["token"])
        assert await asked(second, key["token"]) == 200
        assert await admin(first, f"keys/{after['id']}", "DELETE") == (
            200,
            {"id": after["id"], "object": "client_key.deleted", "deleted": True},
        )
        await becomes(401, second, after["token"])


async def test_a_list_shows_no_token_and_has_cursors(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        keys = [await created(app, owner=owner) for owner in ("anna", "bo", "anna")]
        status, page = await admin(app, "keys?order=asc&limit=2")
        assert status == 200 and page["object"] == "list" and page["has_more"]
        assert [one["id"] for one in page["data"]] == [keys[0]["id"], keys[1]["id"]]
        assert (page["first_id"], page["last_id"]) == (keys[0]["id"], keys[1]["id"])
        assert not any(key["token"] in str(page) for key in keys) and "token" not in page["data"][0]
        _, rest = await admin(app, f"keys?order=asc&after={page['last_id']}")
        assert [one["id"] for one in rest["data"]] == [keys[2]["id"]] and not rest["has_more"]
        _, annas = await admin(app, "keys?owner=anna")
        assert [one["id"] for one in annas["data"]] == [keys[2]["id"], keys[0]["id"]]
        await admin(app, f"keys/{keys[0]['id']}", "DELETE")
        assert len((await admin(app, "keys?owner=anna"))[1]["data"]) == 1
        _, every = await admin(app, "keys?owner=anna&all=true&order=asc")
        assert [one["revoked_at"] is None for one in every["data"]] == [False, True]


async def test_the_audit_names_the_api_and_no_token(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        with capture_logs() as lines:
            key = await created(app, name="laptop", expires_in=3600)
            _, after = await admin(app, f"keys/{key['id']}/rotate", "POST", {"overlap": 60})
            await admin(app, f"keys/{after['id']}", "DELETE")
        status, audit = await admin(app, "audit?owner=anna&since=2020-01-01&changes=true")
        assert status == 200 and not audit["has_more"]
        assert [(one["actor"], one["action"], one["target"], one["owner"]) for one in audit["data"]] == [
            ("admin-api", "keys revoke", after["id"], "n:anna"),
            ("admin-api", "keys rotate", key["id"], "n:anna"),
            ("admin-api", "keys create", key["id"], "n:anna"),
        ]
        made = audit["data"][2]["detail"]
        assert (made["name"], made["expires_in"]) == ("laptop", 3600)
        assert audit["data"][1]["detail"] == {"successor": after["id"], "expires_in": 3600, "overlap": 60}
        assert not any(secret in f"{audit}{lines}" for secret in (key["token"], after["token"], TOKEN))
        _, newest = await admin(app, "audit?limit=1")
        assert newest["has_more"] and len(newest["data"]) == 1


async def test_a_key_in_place_of_an_id_is_in_no_log_line_error_or_row(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        with capture_logs() as lines:
            token = (await created(app))["token"]
            told = [await admin(app, f"keys/{token}", "DELETE"), await admin(app, f"keys/{token}/rotate", "POST")]
            told += [await admin(app, f"keys?after={token}"), await admin(app, f"keys?owner={token}")]
            told += [await admin(app, f"usage?owner=n:{token}"), await admin(app, f"quotas?subject=owner:n:{token}")]
            told += [await admin(app, f"audit?owner={token}"), await admin(app, "audit")]
        assert [status for status, _ in told] == [404, 404, 400, 200, 200, 200, 200, 200]
        assert "'[redacted]' not found" in told[0][1]["error"]["message"]
        assert "this id: '[redacted]'" in told[2][1]["error"]["message"]
        owners = {one["owner"] for one in told[-1][1]["data"]}
        assert owners == {"", "n:anna", "[redacted]", "n:[redacted]"}
        assert token not in f"{told}{[line for line in lines if line['event'] == 'audit']}"


async def test_a_cursor_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        _, refused = await admin(app, "keys?after=key_nope")
        assert refused["error"]["message"] == "There is no client key with this id: 'key_nope'."


async def test_each_read_leaves_a_row_with_whose_data_it_was(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        for path in (
            "keys",
            "keys?owner=anna",
            "quotas?subject=owner:n:anna",
            "usage?owner=n:bo",
            "usage?by=owner",
            "audit?owner=anna",
        ):
            assert (await admin(app, path))[0] == 200, path
        for path in ("keys?owner=not%20a%20name", "usage?by=nothing", "quotas?limit=0", "audit?since=2026-1-1"):
            assert (await admin(app, path))[0] == 400, path
        _, audit = await admin(app, "audit")
        rows = {(one["actor"], one["action"], one["target"], one["owner"]) for one in audit["data"]}
        assert rows == {
            ("admin-api", "read keys", "", ""),
            ("admin-api", "read keys", "", "n:anna"),
            ("admin-api", "read quotas", "owner:n:anna", "n:anna"),
            ("admin-api", "read usage", "", "n:bo"),
            ("admin-api", "read usage", "", ""),
            ("admin-api", "read audit", "", "anna"),
            ("admin-api", "read audit", "", ""),
        }
        assert (await admin(app, "audit?changes=true"))[1]["data"] == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_read_that_the_audit_cannot_record_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def fails(*_: object) -> bool:
        raise StoreError("the disk is full", reason="full")

    async with gateway(tmp_path) as (_, app):
        await created(app, name="laptop")
        monkeypatch.setattr(app.app.stores.audit, "note_read", fails)
        status, answer = await admin(app, path)
        assert status >= 500 and "laptop" not in str(answer) and answer["error"]["code"]


async def test_quotas_and_usage_are_read(tmp_path: Path) -> None:
    # Limits per month: no period ends during the test.
    quotas = {"each_owner": {"tokens_per_month": 100_000, "cost_per_month": 2.5}}
    prices = (PriceSettings(model="*", input=1.0, output=2.0),)
    async with gateway(tmp_path, quotas=quotas, prices=prices) as (_, app):
        key = await created(app, team="lab")
        await becomes(200, app, key["token"])
        status, used = await admin(app, "quotas?subject=owner:n:anna")
        assert status == 200 and not used["has_more"]
        by_limit = {one["limit"]: one for one in used["data"]}
        assert by_limit["tokens_per_month"]["maximum"] == 100_000 and by_limit["cost_per_month"]["maximum"] == 2.5
        assert by_limit["tokens_per_month"]["used"] + by_limit["tokens_per_month"]["held"] >= 1
        assert (await admin(app, "quotas?subject=owner:n:bo"))[1]["data"] == []
        async with asyncio.timeout(60):
            while not (sums := (await admin(app, "usage?by=owner,model&since=2020-01-01"))[1]["data"]):
                await asyncio.sleep(0.01)
        assert (sums[0]["owner"], sums[0]["model"], sums[0]["object"]) == ("n:anna", "qwen3", "usage_sum")
        assert (sums[0]["owner_name"], sums[0]["team"]) == ("anna", "lab")
        assert "owner_name" not in (await admin(app, "usage?by=model"))[1]["data"][0]
        assert sums[0]["calls"] + sums[0]["estimated_calls"] == 1 and "day" not in sums[0]
        assert (await admin(app, "usage?owner=n:bo"))[1]["data"] == []
        (by_team,) = (await admin(app, "usage?by=team,month"))[1]["data"]
        assert by_team["team"] == "lab" and len(by_team["month"]) == 7 and "owner" not in by_team
        # A plain name stands for the named owner.
        assert len((await admin(app, "usage?owner=anna"))[1]["data"]) == 1
        assert (await admin(app, "quotas?subject=owner:anna"))[1]["data"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "owner", "Missing required parameter"),
        ({"owner": None}, "owner", "expected a string"),
        ({"owner": "n:anna"}, "owner", "use 1 to 64 letters"),
        ({"owner": "anna", "name": "a\x1b[2J"}, "name", "at most 100 printable"),
        ({"owner": "anna", "team": "x" * 101}, "team", "at most 100 printable"),
        ({"owner": "anna", "models": "qwen*"}, "models", "expected an array"),
        ({"owner": "anna", "models": ["a", ""]}, "models[1]", "a glob has 1 to 100"),
        ({"owner": "anna", "tools": ["x"] * 101}, "tools", "at most 100 globs"),
        ({"owner": "anna", "models": []}, "models", "an empty list would allow all models"),
        ({"owner": "anna", "tools": []}, "tools", "an empty list would allow all tools"),
        ({"owner": "anna", "expires_in": 0}, "expires_in", ">= 1"),
        ({"owner": "anna", "expires_in": "90d"}, "expires_in", "expected an integer"),
        ({"owner": "anna", "model": ["qwen*"]}, "model", "The allowed fields are owner, name"),
    ],
)
async def test_a_wrong_field_is_named(tmp_path: Path, body: Any, param: str, message: str) -> None:
    async with gateway(tmp_path) as (_, app):
        status, refused = await admin(app, "keys", "POST", body)
        assert (status, refused["error"]["param"]) == (400, param), refused
        assert refused["error"]["type"] == "invalid_request_error" and message in refused["error"]["message"]
        assert (await admin(app, "keys"))[1]["data"] == []


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("keys?owner=n:anna", "owner"),
        ("keys?after=key_unknown", "after"),
        ("keys?all=maybe", "all"),
        ("usage?by=colour", "by"),
        ("usage?since=2026-13-01", "since"),
        ("usage?until=today", "until"),
        ("usage?owner=%00", "owner"),
        ("quotas?limit=10001", "limit"),
        ("quotas?subject=%1b", "subject"),
        ("audit?since=2026-1-1", "since"),
        ("audit?limit=0", "limit"),
    ],
)
async def test_a_wrong_query_parameter_is_named(tmp_path: Path, path: str, param: str) -> None:
    async with gateway(tmp_path) as (_, app):
        status, refused = await admin(app, path)
        assert (status, refused["error"]["param"]) == (400, param), refused


async def test_a_key_that_is_not_there_or_ended_cannot_be_changed(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        for path, method in (("keys/key_none", "DELETE"), ("keys/key_none/rotate", "POST"), ("keys/%1b", "DELETE")):
            assert (await admin(app, path, method))[0] == 404
        key = await created(app)
        await admin(app, f"keys/{key['id']}", "DELETE")
        for path, method in ((f"keys/{key['id']}", "DELETE"), (f"keys/{key['id']}/rotate", "POST")):
            status, refused = await admin(app, path, method)
            assert (status, refused["error"]["code"]) == (400, "key_not_valid")
            assert "already revoked" in refused["error"]["message"]


async def test_without_managed_keys_no_key_is_made(tmp_path: Path) -> None:
    async with gateway(tmp_path, managed_keys=False) as (_, app):
        status, refused = await admin(app, "keys", "POST", {"owner": "anna"})
        assert (status, refused["error"]["code"]) == (400, "managed_keys_off")
        assert (await admin(app, "keys"))[1]["data"] == []


async def test_nobody_without_the_admin_token_gets_in(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        key = await created(app)
        await becomes(200, app, key["token"])
        answers = []
        with capture_logs() as lines:
            for token, path, method in (
                (None, "keys", "GET"),
                ("", "keys", "GET"),
                (key["token"], "audit", "GET"),
                (TOKEN[:-1], "usage", "POST"),
                (TOKEN + "x", "keys", "OPTIONS"),
                ("\u00e9" * 40, "quotas", "GET"),
            ):
                status, refused = await admin(app, path, method, token=token)
                answers.append((status, {name: refused["error"][name] for name in ("message", "type", "code")}))
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] == 401 and answers[0][1]["code"] == "invalid_admin_token"
        assert [line["event"] for line in lines].count("admin_token_refused") == 1
        assert TOKEN not in str(lines) and key["token"] not in str(lines)


async def test_after_ten_failed_attempts_there_is_a_limit_that_never_locks_the_operator_out(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, app):
        got = [await admin(app, "keys", token="wrong") for _ in range(11)]
        assert [status for status, _ in got] == [401] * 10 + [429]
        headers = {"authorization": "Bearer wrong"}
        async with app.session.get(f"{app.url}/antiphon/admin/audit", headers=headers) as limited:
            assert limited.status == 429 and 1 <= int(limited.headers["retry-after"]) <= 60
            assert (await limited.json())["error"]["code"] == "too_many_attempts"
        assert (await admin(app, "keys"))[0] == 200


@pytest.mark.parametrize("path", PATHS)
async def test_without_the_setting_there_is_no_such_path(tmp_path: Path, path: str) -> None:
    async with gateway(tmp_path, managed_keys=False, admin=AdminSettings()) as (_, app):
        status, refused = await admin(app, path, token="another-token")
        _, unknown = await admin(app, "nothing-here", token="another-token")
        assert (status, refused["error"]["code"]) == (404, "unknown_url")
        for answer in (refused, unknown):
            del answer["error"]["request_id"]
        assert str(refused).replace(path, "X") == str(unknown).replace("nothing-here", "X")


@pytest.mark.parametrize("auth", [AuthMode.PASSTHROUGH, AuthMode.NONE])
@pytest.mark.parametrize("owner", ["bearer", "single"])
async def test_the_admin_token_is_no_client_key_and_reaches_no_upstream(
    tmp_path: Path, auth: AuthMode, owner: str
) -> None:
    async with gateway(tmp_path, managed_keys=False, auth=auth, owner=owner) as (made, app):
        for path in ("/responses", "/chat/completions", "/embeddings", "/responses/input_tokens", "/conversations"):
            assert await asked(app, TOKEN, path) == 401
        for value in (TOKEN, f"Token {TOKEN}", f"Bearer other,Bearer {TOKEN}"):
            async with app.session.get(app.url + "/models", headers={"authorization": value}) as got:
                assert got.status == 401 and (await got.json())["error"]["code"] == "invalid_api_key"
        assert made.chat.requests == []
        assert await asked(app, "another-token") == 200


async def test_the_token_is_made_once_in_the_data_folder(tmp_path: Path) -> None:
    needs_sqlite()
    async with processes(tmp_path) as made:
        apps = [await made.start(admin=AdminSettings(api=True)) for _ in range(2)]
        file = tmp_path / "admin.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = file.read_text()
        assert len(token) == 64
        for app in apps:
            assert (await admin(app, "audit", token=token))[0] == 200
            assert await asked(app, token) == 401
    assert token not in "".join(str(path) for path in tmp_path.rglob("*"))


async def test_a_token_file_that_is_no_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("a token with blanks in it, which no header can carry")
    settings = load_settings({"data": tmp_path, "admin": {"api": True}})
    with pytest.raises(ConfigError, match=r"admin\.token must contain an admin token"):
        await build(settings, door="http")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"admin": {"api": True, "token": "x" * 31}}, "a token has 32 to 512 ASCII characters"),
        ({"admin": {"token": "x" * 31 + " x"}}, "a token has 32 to 512 ASCII characters"),
        (
            {
                "admin": {"api": True},
                "state": {"url": "postgresql://x/antiphon"},
                "owner": {"key": "k" * 32},
                "sealing": {"keys": ["k" * 32]},
            },
            "admin.token is not set: set the same token on all machines that share the database",
        ),
        (
            {"admin": {"token": TOKEN}, "owner": {"api_keys": [TOKEN]}, "upstream": {"auth": "none"}},
            "admin.token is also a client's key",
        ),
        (
            {"admin": {"token": TOKEN}, "owner": {"keys": {"anna": [TOKEN]}}, "upstream": {"auth": "none"}},
            "admin.token is also a client's key",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        load_settings(settings)
    assert TOKEN not in str(refused.value)


def test_with_an_admin_token_envoy_sends_chat_to_the_sidecar_and_the_token_is_redacted() -> None:
    """Otherwise Envoy would pass the admin token on to an upstream with `passthrough`."""
    for admin_settings in ({"api": True}, {"token": TOKEN}):
        settings = Settings.model_validate({"admin": admin_settings})
        assert settings.decides_chat and settings.decides_embeddings
    assert TOKEN in settings.secrets() and TOKEN not in str(settings.redacted()) + repr(settings)
