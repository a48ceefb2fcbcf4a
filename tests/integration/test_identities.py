"""Owners from the tokens of an issuer: through the HTTP server of several processes, with a real issuer."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from antiphon.config.owners import JwtSettings
from antiphon.errors import ConfigError
from antiphon.upstream.issuer import MOST_BYTES, IssuerUnread, read_discovered, read_file, read_url
from tests.support.background_app import BackgroundApp, processes
from tests.support.certificates import Authority
from tests.support.issuer import AUDIENCE, Issuer, Key, key_set
from tests.support.waiting import until

ASK = {"model": "qwen3", "input": "Hi"}


async def asked(app: BackgroundApp, token: str, body: Any = None) -> tuple[int, Any, Any]:
    """The status, the headers and the decoded answer."""
    method, headers = "GET" if body is None else "POST", {"authorization": f"Bearer {token}"} if token else {}
    async with app.session.request(method, f"{app.url}/responses", json=body, headers=headers) as got:
        return got.status, got.headers, await got.json()


async def stored(app: BackgroundApp, token: str) -> int:
    status, _, found = await asked(app, token)
    assert status == 200, found
    return len(found["data"])


async def test_a_token_names_the_owner_in_every_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Issuer(Key("one"), Key("two", "RS256")) as issuer, processes(tmp_path / "data") as made:
        jwt = JwtSettings(issuer=issuer.url, audience=(AUDIENCE,))
        apps = [await made.start(owner="jwt", jwt=jwt) for _ in range(2)]
        anna, bo = issuer.token("anna-of-the-test"), issuer.token("bo-of-the-test", issuer.keys[1])
        assert (await asked(apps[0], anna, ASK))[0] == 200
        # Another token of the same person, at the other process.
        assert await stored(apps[1], issuer.token("anna-of-the-test", issuer.keys[1])) == 1
        assert await stored(apps[1], bo) == 0
        status, headers, said = await asked(apps[1], "")
        assert (status, said["error"]["code"], headers["www-authenticate"]) == (401, "missing_api_key", "Bearer")
        for wrong in (
            issuer.token("anna-of-the-test", Key("one")),
            issuer.token("anna-of-the-test", aud="other"),
            issuer.token("anna-of-the-test", exp=1),
        ):
            status, headers, said = await asked(apps[1], wrong)
            assert (status, said["error"]["code"]) == (401, "invalid_token")
            assert headers["www-authenticate"] == 'Bearer error="invalid_token"'
            assert "of-the-test" not in str(said)
        # Each process read the keys once, whatever was asked.
        assert issuer.reads == 2
    out = "".join(capsys.readouterr())
    assert anna not in out and bo not in out


async def test_log_lines_have_the_name_and_not_the_beginning_of_a_subject(tmp_path: Path) -> None:
    async with Issuer(Key("one")) as issuer, processes(tmp_path / "data") as made:
        jwt = JwtSettings(issuer=issuer.url, audience=(AUDIENCE,), name_claim="name", team_claim="team")
        tokens = [
            issuer.token("company|0000000000000001", name="Anna A.", team="lab"),
            issuer.token("company|0000000000000002"),
        ]
        with capture_logs() as lines:
            app = await made.start(owner="jwt", jwt=jwt)
            for token in tokens:
                assert (await asked(app, token, ASK))[0] == 200
                assert await stored(app, token) == 1
            found = await asked(app, tokens[1], {**ASK, "background": True})
            await until(lambda: any(line.get("door") == "background" for line in lines))
    assert found[0] == 200
    named = {(line["event"], line["owner_name"], line.get("team")) for line in lines if "owner_name" in line}
    assert named == {
        (event, name, team)
        for event in ("request", "response")
        for name, team in (("Anna A.", "lab"), ("company|0000000000000002", None))
    }
    assert all("owner_name" in line for line in lines if line["event"] in ("request", "response"))
    assert not any(token in str(lines) for token in tokens)


async def test_a_process_that_has_no_keys_says_so(tmp_path: Path) -> None:
    async with Issuer(Key("one")) as issuer, processes(tmp_path / "data") as made:
        issuer.status = 500
        app = await made.start(owner="jwt", jwt=JwtSettings(issuer=issuer.url, audience=(AUDIENCE,)))
        status, headers, said = await asked(app, issuer.token("anna"))
        assert (status, said["error"]["code"]) == (503, "keys_unavailable")
        # The next download begins ten seconds after the first.
        assert 2 <= int(headers["retry-after"]) <= 10
        async with app.session.get(app.url.removesuffix("/v1") + "/ready") as got:
            assert (got.status, (await got.json())["reason"]) == (503, "keys_unavailable")


async def test_an_issuer_over_https_is_verified_with_the_authority_of_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    files = authority.sign("issuer")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(files.cert, files.key)
    async with Issuer(Key("one"), tls=tls) as issuer, processes(tmp_path / "data") as made:

        async def status(ca_file: Path | None) -> int:
            jwt = JwtSettings(issuer=issuer.url, audience=(AUDIENCE,), ca_file=ca_file)
            return (await asked(await made.start(owner="jwt", jwt=jwt), issuer.token("anna")))[0]

        assert issuer.url.startswith("https://")
        assert await status(authority.ca) == 200 and issuer.reads == 1
        # Neither the authorities of the system nor another one have signed the certificate.
        for wrong in (None, other.ca):
            assert await status(wrong) == 503
            assert "name its authorities with owner.jwt.ca_file" in "".join(capsys.readouterr())
        assert issuer.reads == 1
        with pytest.raises(ConfigError, match=r"owner\.jwt\.ca_file"):
            await status(tmp_path / "none.pem")


async def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    key, file = Key("one", "EdDSA"), tmp_path / "keys.json"
    file.write_bytes(key_set(key))
    async with Issuer(key) as issuer, processes(tmp_path / "data") as made:
        app = await made.start(owner="jwt", jwt=JwtSettings(issuer=issuer.url, audience=(AUDIENCE,), jwks=str(file)))
        assert (await asked(app, issuer.token("anna"), ASK))[0] == 200
        assert issuer.reads == 0


async def test_a_reading_is_bounded_and_follows_no_redirect(tmp_path: Path) -> None:
    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b" " * (MOST_BYTES + 1))

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPFound("/large")

    async with Issuer(Key("one")) as issuer:
        issuer.more = {"/large": large, "/elsewhere": elsewhere}
        with pytest.raises(IssuerUnread, match="more than"):
            await read_url(f"{issuer.url}/large")
        with pytest.raises(IssuerUnread, match="status 302"):
            await read_url(f"{issuer.url}/elsewhere")
        with pytest.raises(IssuerUnread, match="a different issuer"):
            await read_discovered(f"{issuer.url}/")
        url = issuer.url
    with pytest.raises(IssuerUnread, match="cannot be reached"):
        await read_url(url)
    with pytest.raises(IssuerUnread, match="file cannot be read"):
        await read_file(tmp_path / "none.json")
