"""Runs the checks of `antiphon doctor` in this process, and shows their findings on the page of models.

The package `commands/doctor` has the checks. `models.py` shows the page, and this module renders the part with the
findings.

Invariants: only operators see findings, because findings describe the whole installation. The console starts the checks
only when an operator requests them. A finding is text that may come from an upstream, so templates escape it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from antiphon.api.http import ApiResponse
from antiphon.console.reading import Reading
from antiphon.console.site import ROOT, PageCall, PageRoute
from antiphon.engine.ports.findings import Finding, Verdict
from antiphon.errors import NotFound

_FLAG: Final = re.compile(r"--(model|key-env|images)\b")
_PATH: Final = "/models"


class DoctorView:
    """The findings of the doctor. Another view links to them, so the navigation has no entry for them."""

    nav: Sequence[tuple[str, str]] = ()

    def __init__(self, reading: Reading, page: Callable[[PageCall], Awaitable[ApiResponse]]) -> None:
        """`page`: the handler of the page of models."""
        self._reading = reading
        self._page = page

    @PageRoute("POST", "/models/checks", operators=True)
    async def check(self, call: PageCall) -> ApiResponse:
        """Run the checks, and return the part of the page with the findings. A browser without scripts gets the whole
        page. A redirect to the page could reach another process, which does not have these findings."""
        doctor = self._reading.doctor
        if doctor is None:
            raise NotFound("This process cannot run the checks. Run 'antiphon doctor' on the server's machine.")
        await doctor.run()
        if not call.fragment:
            query = tuple([(name, value) for name, value in call.request.query if name != "whole"])
            request = replace(call.request, method="GET", path=ROOT + _PATH, query=(*query, ("whole", "1")))
            return await self._page(replace(call, request=request))
        return call.show("findings.html", doctor_values(self._reading))


def doctor_values(reading: Reading) -> dict[str, object]:
    """Return the variables of the template `findings.html`."""
    report = reading.doctor.latest if reading.doctor is not None else None
    found = report.findings if report is not None else ()
    kept: dict[Verdict, list[Finding]] = {"problem": [], "note": [], "ok": []}
    for finding in found:
        kept[finding.verdict].append(finding)
    flags = any(_FLAG.search(finding.advice) for finding in found)
    return {
        "doctor": reading.doctor,
        "report": report,
        "findings": kept,
        "flags": flags,
        "process": reading.process,
    }
