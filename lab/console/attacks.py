"""Tries what an attacker would: another owner's data, forged forms, old and made-up cookies, frames, wrong tokens.

Lives here: the checks that must find nothing. Not here: the views themselves (`run.py`), the processes (`place.py`).
"""

from __future__ import annotations

import aiohttp

from lab.console.browser import Visitor
from lab.console.place import ADMIN, KEYS, Place, views_of
from lab.console.traffic import Made
from lab.report import Report


async def strangers(report: Report, bo: Visitor, anna: Made) -> None:
    """No view of another owner's data shows anything of it, and every one answers as for an id that never was."""
    wrong = []
    for name, path in views_of(anna).items():
        for query in ("", "owner=n:anna"):
            status = await bo.open(path + (("&" if "?" in path else "?") + query if query else ""))
            if anna.mark in await bo.text() and name != "search":
                wrong.append(f"{name}: shows {anna.mark}")
            if any(one in path for one in (anna.responses[0], anna.conversation, anna.store)) and status == 200:
                wrong.append(f"{name}: status 200")
    for path in ("/keys", "/requests/req_none"):
        if await bo.open(path) != 404:
            wrong.append(f"{path} is not 404")
    report.check("another owner sees nothing", wrong)


async def attacks(report: Report, there: Place) -> None:
    """Forged forms, fixed sessions, frames and caches."""
    wrong: list[str] = []
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        base = f"{there.origin}/console"

        async def post(path: str, form: dict[str, str], **headers: str) -> int:
            async with session.post(base + path, data=form, headers=headers, allow_redirects=False) as got:
                return got.status

        async with session.get(base + "/requests", allow_redirects=False) as got:
            if got.status != 303:
                wrong.append(f"without a session /requests answers {got.status}")
        for name in ("htmx.min.js", "console.js", "../console.py", "..%2f..%2fpyproject.toml"):
            async with session.get(f"{base}/static/{name}", allow_redirects=False) as got:
                if got.status not in (303, 400, 404):
                    wrong.append(f"static/{name} answers {got.status} without a session")
        fixed = {"cookie": "antiphon_console=fixed"}
        form = {"token": ADMIN, "to": "//evil.example"}
        async with session.post(f"{base}/sign-in", data=form, headers=fixed, allow_redirects=False) as got:
            if got.status != 303 or got.headers["location"] != "/console":
                wrong.append(f"sign-in answers {got.status} and leads to {got.headers.get('location')}")
            cookie = got.headers.get("set-cookie", "=fixed")
            if "=fixed" in cookie:
                wrong.append("the session of before the sign-in stays")
            for attribute in ("HttpOnly", "SameSite=Strict", "Path=/console", "Max-Age="):
                if f"; {attribute}" not in cookie:
                    wrong.append(f"the cookie lacks {attribute}")
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as other,
            other.get(base + "/requests", headers=fixed, allow_redirects=False) as got,
        ):
            if got.status != 303:
                wrong.append("a made-up session is accepted")
        for form, headers in (
            ({}, {}),
            ({"csrf": "0" * 64}, {}),
            ({}, {"origin": "https://evil.example"}),
            ({}, {"sec-fetch-site": "cross-site"}),
        ):
            status = await post("/keys", {"owner": "mallory", **form}, **headers)
            if status != 403:
                wrong.append(f"a forged form ({form or headers}) answers {status}")
        async with session.get(base + "/requests") as got:
            for name, value in (
                ("x-frame-options", "DENY"),
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "same-origin"),
            ):
                if got.headers.get(name) != value:
                    wrong.append(f"{name} is {got.headers.get(name)}")
            if "frame-ancestors 'none'" not in got.headers.get("content-security-policy", ""):
                wrong.append("frames are not forbidden")
        for token in ("x" * 1_000_000, "\x00", "a, b"):
            status = await post("/sign-in", {"token": token})
            if status not in (400, 401, 413, 429):
                wrong.append(f"a token of {len(token)} characters answers {status}")
        # Each of the two processes counts its own failures.
        statuses = [await post("/sign-in", {"token": "wrong"}) for _ in range(30)]
        if 429 not in statuses:
            wrong.append("thirty wrong tokens are not limited")
    if any(secret in line for line in there.gateway.log for secret in (ADMIN, *KEYS.values())):
        wrong.append("the log holds a token")
    report.check("attacks", wrong)
