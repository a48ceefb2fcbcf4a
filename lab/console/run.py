"""`scripts/lab console`: drives every view of the console in a real browser, in front of a real gateway with data.

Lives here: the course of the check. Not here: the processes (`place.py`), the traffic (`traffic.py`), the browser
(`browser.py`), what an attacker tries (`attacks.py`).

The check opens every view by its URL, in light and dark and on a phone. It goes through them with the keyboard alone,
and opens them as another owner, who must see nothing. It tries what an attacker would: forged forms, old cookies,
hostile texts. It measures the list. With `--screenshots` it writes the pictures of the documentation. With `--quick` it
measures nothing, and an owner opens the views on a dark phone only.

Invariant: a run ends by itself. Every problem is a line of its report and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from playwright.async_api import Page
from pydantic import SecretStr

from antiphon.config.state import StateSettings
from antiphon.stores import open_stores
from lab.console import traffic
from lab.console.attacks import attacks, strangers
from lab.console.browser import CHROMIUM, Scheme, Visitor, chromium, visitor
from lab.console.place import ADMIN, Place, database, place, server, views_of
from lab.console.traffic import Made
from lab.report import Report

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
_VARIANTS: tuple[tuple[bool, Scheme], ...] = ((True, "dark"), (True, "light"), (False, "dark"))
"""On a phone or not, and the colours. A quick check has the first one only."""
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


async def run(arguments: argparse.Namespace, report: Report) -> None:
    axe = Path(arguments.axe).read_text()
    with tempfile.TemporaryDirectory(prefix="antiphon-console-") as scratch:
        async with (
            server("-m", "antiphon", "demo-upstream", "--listen", "127.0.0.1:0") as url,
            server("scripts/lib/demo_mcp_server.py") as trains,
            database(arguments.postgresql) as state,
            place(Path(scratch), url, trains, state, arguments.door, arguments.replicas) as there,
            chromium() as browser,
        ):
            report.say(f"the console is at {there.origin}")
            await journal_is_written(there)

            async def operator() -> None:
                async with visitor(browser, there.origin, axe) as who:
                    await who.sign_in(ADMIN)
                    await every_view(report, who, there.anna, "operator")
                    if arguments.screenshots:
                        await pictures(who, there, Path(arguments.screenshots))
                    await keyboard(report, who)
                    await live(report, who, there, measured=not arguments.quick)
                    if arguments.rows:
                        await fill(there, state, arguments.rows)
                    if not arguments.quick:
                        await list_speed(report, who, arguments.rows)

            async def player() -> None:
                async with visitor(browser, there.origin, axe) as who:
                    await who.sign_in(ADMIN)
                    await playground(report, who)

            async def operator_with_a_phone() -> None:
                async with visitor(browser, there.origin, axe, phone=True, scheme="dark") as who:
                    await who.sign_in(ADMIN)
                    await every_view(report, who, there.anna, "operator phone dark")

            async def owners() -> None:
                for phone, scheme in _VARIANTS[:1] if arguments.quick else _VARIANTS:
                    async with visitor(browser, there.origin, axe, phone=phone, scheme=scheme) as anna:
                        await anna.sign_in(there.anna.key)
                        await every_view(report, anna, there.anna, f"{'phone' if phone else 'desktop'} {scheme}")
                async with visitor(browser, there.origin, axe) as bo:
                    await bo.sign_in(there.bo.key)
                    await strangers(report, bo, there.anna)

            if arguments.quick:
                # The pages wait more than they compute. Only a measurement needs a browser without other visitors.
                async with asyncio.TaskGroup() as tasks:
                    for course in (operator, player, owners):
                        tasks.create_task(course())
            else:
                for course in (operator, operator_with_a_phone, player, owners):
                    await course()
            # The last check: its wrong tokens lock the address out.
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
        await who.page.wait_for_selector("#findings [role=status]", timeout=50_000)
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
    streams = asyncio.create_task(traffic.keep_streaming(there.client(made), made.mark, 3))
    try:
        for name in _PICTURES:
            await who.open(views[name])
            if name == "playground":
                await _run_request(who.page)
            await who.page.wait_for_timeout(1200)
            await who.shoot(folder / f"console-{name}.png")
    finally:
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
    if await page.locator("tr.here").count() != 1:
        wrong.append("Esc does not go back to the row")
    await page.keyboard.press("/")
    if not await page.evaluate("document.activeElement.matches('[data-filter]')"):
        wrong.append("/ does not reach the filter")
    await page.keyboard.press("Escape")
    await page.keyboard.press("g")
    await page.keyboard.press("l")
    await page.wait_for_url("**/console/live**")
    await page.wait_for_load_state()
    for letter, view in (("p", "playground"), ("o", "prompts"), ("c", "prompt-cache")):
        await page.keyboard.press("g")
        await page.keyboard.press(letter)
        await page.wait_for_url(f"**/console/{view}**")
        await page.wait_for_load_state()
    await page.keyboard.press("?")
    if not await page.locator("dialog[open]").count():
        wrong.append("? opens no help")
    report.check("keyboard alone", wrong)


async def playground(report: Report, who: Visitor) -> None:
    """Run requests from the form and from JSON, and continue them, also after function calls."""
    page, wrong = who.page, []
    await who.open("/playground?owner=n:bo")
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


async def live(report: Report, who: Visitor, there: Place, *, measured: bool) -> None:
    """Watch streams in flight, and cancel one. `measured`: also count the frames that three views draw."""
    streams = asyncio.create_task(traffic.keep_streaming(there.client(there.anna), "MARK-ANNA", 3))
    wrong = []
    try:
        # Requests of the playground may run at the same time, as another owner.
        await who.open("/live?owner=n:anna")
        await who.page.wait_for_selector("#live form button", timeout=15_000)
        if measured:
            wrong += await frames_of_live_views(report, who)
        async with asyncio.timeout(60):
            while "cancelled_by_operator" not in await who.text():
                await who.open("/live?owner=n:anna")
                await who.page.click("#live form button")
                await who.page.wait_for_url("**/console/live**")
                await who.page.wait_for_timeout(2000)
        # A request may end before the click reaches the server.
        who.problems[:] = [one for one in who.problems if "404" not in one]
    except TimeoutError:
        wrong.append("a cancelled request did not end")
    finally:
        streams.cancel()
        await asyncio.wait({streams}, timeout=60)
    report.check("live view and cancel", [*wrong, *await who.judge()])


async def frames_of_live_views(report: Report, who: Visitor) -> list[str]:
    """Which of three live views, that of `who` among them, are not smooth."""
    wrong = []
    others = [await who.context.new_page() for _ in range(_VIEWS - 1)]
    for page in others:
        await page.goto(f"{who.origin}/console/live")
        await page.wait_for_selector("#live form button", timeout=15_000)
    for number, page in enumerate([*others, who.page], 1):
        # A browser draws only the page in front, while the other views go on receiving.
        await page.bring_to_front()
        frames = sorted(await page.evaluate(_FRAMES))
        late = frames[len(frames) * 19 // 20]
        report.say(f"live view {number} of {_VIEWS}: 95 % of frames last {late:.0f} ms, the longest {frames[-1]:.0f}")
        if late > _SMOOTH:
            wrong.append(f"live view {number} is not smooth: frames of {late:.0f} ms")
    for page in others:
        await page.close()
    return wrong


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/lab console", description=__doc__.partition("\n")[0])
    parser.add_argument("--axe", required=True, help="axe.min.js of axe-core")
    parser.add_argument("--postgresql", action="store_true", help="keep the state in a new PostgreSQL server")
    parser.add_argument("--replicas", type=int, default=1, help="gateways on one state, more than 1 with --postgresql")
    parser.add_argument("--door", choices=("envoy", "http"), default="envoy", help="the server for clients")
    parser.add_argument("--rows", type=int, default=0, help="further rows of the journal before lists are measured")
    parser.add_argument("--quick", action="store_true", help="measure nothing, and open fewer variants of the views")
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
