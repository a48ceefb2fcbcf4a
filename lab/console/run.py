"""`scripts/lab console`: drives every view of the console in a real browser, in front of a real gateway with data.

Lives here: the gateway and the course of the check. Not here: the traffic (`traffic.py`), the browser
(`browser.py`).

The check opens every view by its URL, in light and dark and on a phone. It goes through them with the keyboard alone,
and opens them as another owner, who must see nothing. It tries what an attacker would: forged forms, old cookies,
hostile texts. It measures the list. With `--screenshots` it writes the pictures of the documentation.

Invariant: a run ends by itself. Every problem is a line of its report and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from playwright.async_api import Page
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.stores import open_stores
from lab.console import traffic
from lab.console.browser import CHROMIUM, Scheme, Visitor, chromium, visitor
from lab.console.traffic import Client, Made
from lab.report import Report
from tests.support.gateway import Gateway, start_gateway
from tests.support.postgres import PostgresServer

ADMIN = "the-token-of-the-operators-0123456789"
KEYS = {"anna": "ant_key-of-anna-0123456789", "bo": "ant_key-of-bo-0123456789"}
_PICTURES = ("requests", "request", "live", "threads", "playground", "prompt-cache", "system", "keys")
_SLOWEST = 0.2
_LISTS = (
    *("/requests", "/requests?failed=1", "/requests?owner=n:anna", "/requests?model=demo", "/live", "/threads"),
    *("/background", "/prompt-cache", "/models", "/system", "/system?span=7d", "/system/processes"),
)
_SLOW_PARTS = ("/prompt-cache/figures?span=7d", "/models/upstreams", "/system/figures?span=7d")
_UNIT = 1000
_SMOOTH = 50.0
"""The milliseconds that 19 of 20 frames of a live view may last at most."""
_VIEWS = 3
_FRAMES = """() => new Promise((done) => {
  const frames = [];
  let last = performance.now();
  const ends = last + 3000;
  function tick(now) {
    frames.push(now - last);
    last = now;
    if (now < ends) requestAnimationFrame(tick); else done(frames);
  }
  requestAnimationFrame(tick);
})"""


@dataclass
class Place:
    """A running gateway with a console and data of two owners."""

    gateway: Gateway
    origin: str
    anna: Made
    bo: Made
    session: aiohttp.ClientSession

    def client(self, made: Made) -> Client:
        return Client(self.session, self.gateway.base_url, made.key)


@asynccontextmanager
async def place(folder: Path, upstream: str, trains: str, state: str, door: str, replicas: int) -> AsyncIterator[Place]:
    """Start the gateways on one state, and send the traffic of both owners to the first. The browser reaches the
    console of the last one. `trains` is the URL of an MCP server."""
    environ = {
        "ANTIPHON_ADMIN__TOKEN": ADMIN,
        "ANTIPHON_CONSOLE__RECORD": "all",
        "ANTIPHON_CONSOLE__RECORD_UNSTORED": "true",
        "ANTIPHON_CONSOLE__LISTEN": "127.0.0.1:0",
        "ANTIPHON_OWNER__MANAGED_KEYS": "true",
    }
    if state:
        environ |= {
            "ANTIPHON_STATE__URL": state,
            "ANTIPHON_OWNER__KEY": "o" * 32,
            "ANTIPHON_SEALING__KEYS": '["sealing-key-of-the-check"]',
        }
    config = folder / "antiphon.yaml"
    named = "".join(f"    {name}: {{keys: [{key}], team: lab}}\n" for name, key in KEYS.items())
    config.write_text(
        "upstream: {auth: none}\nquotas: {each_owner: {requests_per_minute: 100000}}\n"
        f'mcp: {{connectors: {{trains: {{url: "{trains}"}}}}}}\nowner:\n  keys:\n' + named
    )
    flags = ("--console", "--console-act", "--door", door, "--config", str(config), "--workers", "2")
    gateways: list[Gateway] = []
    try:
        for number in range(replicas):
            gateways.append(await start_gateway(upstream, folder / f"data{number}", *flags, environ=environ))
        first, last = gateways[0], gateways[-1]
        line = await last.log_line("/console")
        origin = "http://" + line.partition("http://")[2].partition("/")[0]
        async with aiohttp.ClientSession() as session:
            made = [
                await traffic.make(Client(session, first.base_url, key), name, key, f"MARK-{name.upper()}")
                for name, key in KEYS.items()
            ]
            yield Place(first, origin, made[0], made[1], session)
    finally:
        for gateway in gateways:
            await gateway.stop()


def views_of(made: Made) -> dict[str, str]:
    """The paths of every view of one owner, by name."""
    return {
        "live": "/live",
        "requests": "/requests",
        "failed": "/requests?failed=1",
        "search": f"/requests?text={made.mark}",
        "request": f"/requests/{made.responses[0]}",
        "streamed": f"/requests/{made.responses[3]}",
        "threads": "/threads",
        "chain": f"/threads/{made.responses[1]}",
        "conversation": f"/threads/{made.conversation}",
        "playground": "/playground",
        "again": f"/playground?request={made.responses[3]}",
        "background": "/background",
        "prompt-cache": "/prompt-cache",
        "files": "/files",
        "vector-stores": "/vector-stores",
        "store": f"/vector-stores/{made.store}",
        "prompts": "/prompts",
        "prompt": f"/prompts/{made.prompt}",
        "models": "/models",
        "system": "/system",
    }


async def run(arguments: argparse.Namespace, report: Report) -> None:
    axe = Path(arguments.axe).read_text()
    with tempfile.TemporaryDirectory(prefix="antiphon-console-") as scratch:
        async with (
            _server("-m", "antiphon", "demo-upstream", "--listen", "127.0.0.1:0") as url,
            _server("scripts/lib/demo_mcp_server.py") as trains,
            database(arguments.postgresql) as state,
            place(Path(scratch), url, trains, state, arguments.door, arguments.replicas) as there,
            chromium() as browser,
        ):
            report.say(f"the console is at {there.origin}")
            await journal_is_written(there)
            async with visitor(browser, there.origin, axe) as operator:
                await operator.sign_in(ADMIN)
                await every_view(report, operator, there.anna, "operator")
                if arguments.screenshots:
                    await pictures(operator, there, Path(arguments.screenshots))
                await keyboard(report, operator)
                await playground(report, operator)
                await live(report, operator, there)
                if arguments.rows:
                    await fill(there, state, arguments.rows)
                await list_speed(report, operator, arguments.rows)
            async with visitor(browser, there.origin, axe, phone=True, scheme="dark") as phone_operator:
                await phone_operator.sign_in(ADMIN)
                await every_view(report, phone_operator, there.anna, "operator phone dark")
            variants: tuple[tuple[bool, Scheme], ...] = ((True, "light"), (True, "dark"), (False, "dark"))
            for phone, scheme in variants:
                async with visitor(browser, there.origin, axe, phone=phone, scheme=scheme) as other:
                    await other.sign_in(there.anna.key)
                    await every_view(report, other, there.anna, f"{'phone' if phone else 'desktop'} {scheme}")
            async with visitor(browser, there.origin, axe) as bo:
                await bo.sign_in(there.bo.key)
                await strangers(report, bo, there.anna)
            await attacks(report, there)


async def journal_is_written(there: Place) -> None:
    """Wait until the journal has the requests of both owners, which the gateway writes once a second."""
    await asyncio.sleep(2.5)


async def every_view(report: Report, who: Visitor, made: Made, as_whom: str) -> None:
    """Open each view by its URL."""
    for name, path in views_of(made).items():
        query = ("&" if "?" in path else "?") + f"owner=n:{made.owner}" if as_whom.startswith("operator") else ""
        status = await who.open(path + query)
        problems = [f"status {status}"] if status != 200 else []
        problems += await who.judge()
        report.check(f"{as_whom}: {name}", problems)
    if as_whom.startswith("operator"):
        status = await who.open("/keys")
        report.check(f"{as_whom}: keys", [*([f"status {status}"] if status != 200 else []), *await who.judge()])
        await who.open("/models")
        await who.page.click("#doctor button")
        await who.page.wait_for_selector("#doctor [role=status]", timeout=50_000)
        wrong = [] if "Problems and notes" in await who.page.inner_html("#doctor") else ["no finding"]
        report.check(f"{as_whom}: checks", [*wrong, *await who.judge()])


async def pictures(who: Visitor, there: Place, folder: Path) -> None:
    """Write the pictures of the documentation."""
    made = there.anna
    searched, then = await traffic.search_files(there.client(made))
    await journal_is_written(there)
    views = views_of(made) | {
        "keys": "/keys",
        "threads": f"/threads/{then}",
        "request": f"/requests/{searched}",
    }
    stop = asyncio.Event()
    streams = asyncio.create_task(traffic.keep_streaming(there.client(made), made.mark, 3, stop))
    try:
        for name in _PICTURES:
            await who.open(views[name])
            if name == "playground":
                await _run_request(who.page)
            await who.page.wait_for_timeout(1200)
            await who.shoot(folder / f"console-{name}.png")
    finally:
        stop.set()
        streams.cancel()
        await asyncio.wait({streams}, timeout=60)


async def _run_request(page: Page) -> None:
    """Run a request in the playground, up to its end."""
    await page.fill("#model", "demo")
    await page.fill("#input", "count to 20")
    await page.click("button[type=submit].primary")
    await page.wait_for_selector("[data-footer] a")


async def keyboard(report: Report, who: Visitor) -> None:
    """Find a failed request and its cause without a mouse."""
    page, wrong = who.page, []
    await who.open("/requests?failed=1")
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    marked = await page.locator("tr.here").count()
    if marked != 1:
        wrong.append(f"{marked} rows are marked after j j")
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile("/console/requests/"))
    await page.wait_for_load_state()
    if "Why it failed" not in await who.text():
        wrong.append("the page of a failed request does not say why")
    await page.keyboard.press("j")
    await page.wait_for_timeout(500)
    await page.wait_for_load_state()
    await page.keyboard.press("Escape")
    await page.wait_for_url(re.compile(r"/console/requests\?failed=1$"))
    await page.wait_for_load_state()
    await page.keyboard.press("/")
    if not await page.evaluate("document.activeElement.matches('[data-filter]')"):
        wrong.append("/ does not reach the filter")
    await page.keyboard.press("Escape")
    await page.keyboard.press("g")
    await page.keyboard.press("l")
    await page.wait_for_url("**/console/live**")
    await page.wait_for_load_state()
    for view in ("playground", "prompts", "prompt-cache"):
        await page.keyboard.press("g")
        await page.keyboard.press("p")
        await page.wait_for_url(f"**/console/{view}**")
        await page.wait_for_load_state()
    await page.keyboard.press("?")
    if not await page.locator("dialog[open]").count():
        wrong.append("? opens no help")
    report.check("keyboard alone", wrong)


async def playground(report: Report, who: Visitor) -> None:
    """Run requests from the form and from JSON, and continue them, also after function calls."""
    page, wrong = who.page, []
    await who.open("/playground?owner=n:anna")
    await _run_request(page)
    if "20" not in await page.inner_text("[data-answer]"):
        wrong.append(f"the answer is {await page.inner_text('[data-answer]')!r}")
    if not await page.locator("[data-events] .type").count():
        wrong.append("no events are listed")
    await page.locator("[data-events] summary").last.click()
    if '"response"' not in await page.locator("[data-events] pre").inner_text():
        wrong.append("an event does not show its data")
    await page.click("[data-footer] button")
    if not (await page.input_value("#previous")).startswith("resp_"):
        wrong.append("the thread is not continued")
    await page.click("#tab-json")
    await page.fill("#body", '{"model": "demo", "input": "from JSON", "temperature": 0.3}')
    await page.click("#tab-form")
    if await page.input_value("#input") != "from JSON":
        wrong.append("the form does not have the input of the JSON")
    await page.fill("#input", "weather in Paris and Rome")
    await page.fill("#tools", '[{"type": "function", "name": "weather", "parameters": {"type": "object"}}]')
    await page.click("#tab-json")
    if '"temperature": 0.3' not in await page.input_value("#body"):
        wrong.append("the form drops a field of the JSON")
    await page.click("button[type=submit].primary")
    await page.wait_for_selector("[data-footer] a")
    await page.click("[data-footer] button")
    if await page.locator("[data-outputs] textarea").count() != 2:
        wrong.append("the page has no field for the output of each call")
    await page.fill("#output-0", "sunny")
    await page.click("button[type=submit].primary")
    await page.wait_for_selector("[data-footer] a")
    if "sunny" not in await page.inner_text("[data-answer]"):
        wrong.append("the model does not get the output of a call")
    await approvals(page, wrong)
    report.check("playground", [*wrong, *await who.judge()])


async def approvals(page: Page, wrong: list[str]) -> None:
    """Deny and then approve the call of an MCP tool."""
    trains = {"type": "mcp", "server_label": "trains", "connector_id": "trains", "require_approval": "always"}
    body = json.dumps({"model": "demo", "input": "departures in Rome", "tools": [trains]})
    for said, expected in (("no", False), ("yes", True)):
        await page.click("#tab-json")
        await page.fill("#body", body)
        await page.click("button[type=submit].primary")
        await page.wait_for_selector("[data-footer] a")
        await page.click("[data-footer] button")
        if "departures" not in await page.inner_text("[data-outputs] label"):
            wrong.append("the page does not ask for the approval of a call")
            return
        await page.fill("#output-0", said)
        await page.click("button[type=submit].primary")
        await page.wait_for_selector("[data-footer] a")
        if ("platform 2" in await page.inner_text("[data-answer]")) != expected:
            wrong.append(f"after '{said}' the answer is {await page.inner_text('[data-answer]')!r}")


async def live(report: Report, who: Visitor, there: Place) -> None:
    """Watch streams in flight, and cancel one."""
    stop = asyncio.Event()
    streams = asyncio.create_task(traffic.keep_streaming(there.client(there.anna), "MARK-ANNA", 3, stop))
    wrong = []
    try:
        await who.open("/live")
        await who.page.wait_for_selector("#live form button", timeout=15_000)
        others = [await who.context.new_page() for _ in range(_VIEWS - 1)]
        for page in others:
            await page.goto(f"{who.origin}/console/live")
            await page.wait_for_selector("#live form button", timeout=15_000)
        for number, page in enumerate([*others, who.page], 1):
            # A browser draws only the page in front, while the other views go on receiving.
            await page.bring_to_front()
            frames = sorted(await page.evaluate(_FRAMES))
            late = frames[len(frames) * 19 // 20]
            report.say(
                f"live view {number} of {_VIEWS}: 95 % of frames last {late:.0f} ms, the longest {frames[-1]:.0f}"
            )
            if late > _SMOOTH:
                wrong.append(f"live view {number} is not smooth: frames of {late:.0f} ms")
        for page in others:
            await page.close()
        async with asyncio.timeout(60):
            while "cancelled_by_operator" not in await who.text():
                await who.open("/live")
                await who.page.click("#live form button")
                await who.page.wait_for_url("**/console/live**")
                await who.page.wait_for_timeout(2000)
        # A request may end before the click reaches the server.
        who.problems[:] = [one for one in who.problems if "404" not in one]
    except TimeoutError:
        wrong.append("a cancelled request did not end")
    finally:
        stop.set()
        await asyncio.wait({streams}, timeout=60)
        streams.cancel()
    report.check("live view and cancel", [*wrong, *await who.judge()])


async def list_speed(report: Report, who: Visitor, rows: int) -> None:
    """The time of the answers of lists, and of the parts that a page loads later."""
    for path in (*_LISTS, *_SLOW_PARTS):
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            answer = await who.context.request.get(f"{who.origin}/console{path}")
            await answer.body()
            seconds.append(time.perf_counter() - began)
        middle = statistics.median(seconds)
        slow = path in _LISTS and middle >= _SLOWEST
        what = f"{path} answers in {middle * 1000:.0f} ms, at most {max(seconds) * 1000:.0f} ms, at {rows:,} more rows"
        report.check(what, ["slower than 200 ms"] if slow else [])


async def fill(there: Place, state: str, rows: int) -> None:
    """Add rows of finished requests to the journal, as the gateway's processes do."""
    settings = StateSettings(url=SecretStr(state)) if state else StateSettings()
    async with aclosing(await open_stores(settings, there.gateway.data, chain_items=100)) as stores:
        for first in range(0, rows, _UNIT):
            await stores.journal.add([traffic.made_up(number) for number in range(first, min(first + _UNIT, rows))])


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
            if "=fixed" in got.headers.get("set-cookie", "=fixed"):
                wrong.append("the session of before the sign-in stays")
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


@asynccontextmanager
async def database(wanted: bool) -> AsyncIterator[str]:
    """The URL of a new database on a PostgreSQL server of its run; empty if SQLite is wanted."""
    if not wanted:
        yield ""
        return
    server = PostgresServer()
    try:
        yield await server.new_database()
    finally:
        server.close()


@asynccontextmanager
async def _server(*command: str) -> AsyncIterator[str]:
    """A server that this Python runs, such as the scripted model server. Yields its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ},
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        yield "http://" + line.split("http://")[1].split()[0]
    finally:
        process.terminate()
        await process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/lab console", description=__doc__.partition("\n")[0])
    parser.add_argument("--axe", required=True, help="axe.min.js of axe-core")
    parser.add_argument("--postgresql", action="store_true", help="keep the state in a new PostgreSQL server")
    parser.add_argument("--replicas", type=int, default=1, help="gateways on one state, more than 1 with --postgresql")
    parser.add_argument("--door", choices=("envoy", "http"), default="envoy", help="the server for clients")
    parser.add_argument("--rows", type=int, default=0, help="further rows of the journal before lists are measured")
    parser.add_argument("--screenshots", help="folder for the pictures of the documentation")
    given = parser.parse_args(arguments)
    if given.replicas > 1 and not given.postgresql:
        parser.error("--replicas needs --postgresql")
    if not Path(CHROMIUM).exists():
        print(f"console: {CHROMIUM} is missing (Debian: apt install chromium)", file=sys.stderr)
        return 2
    report = Report()
    asyncio.run(run(given, report))
    print(f"{len(report.wrong)} problems")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
