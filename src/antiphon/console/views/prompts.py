"""Shows the prompts of an owner: the list, and the versions of one prompt, two of them side by side.

Lives here: the pages of prompts, and a version as lines of text. Not here: storing prompts (`api/prompts.py`), the
comparison of lines (`console/line_diff.py`), running a prompt (the playground).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final
from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.line_diff import MOST_LINES, compare
from antiphon.console.lists import part_of
from antiphon.console.owners import check_owner, choose_owner
from antiphon.console.reading import Reading
from antiphon.console.site import Call, Page, redirect
from antiphon.errors import NotFound

_PROMPTS: Final = "/v1/prompts"
_MOST_VERSIONS: Final = 500
_ABOUT: Final = frozenset(
    {
        *("id", "object", "created_at", "updated_at", "name", "version", "default_version", "last_version"),
        *("is_default", "variables", "metadata"),
    }
)
"""The fields of a version that are not part of its template."""


class Prompts:
    """The pages of prompts."""

    nav = (("Prompts", "/prompts"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @Page("GET", "/prompts")
    async def show_all(self, call: Call) -> ApiResponse:
        """A page of the prompts, newest first."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Prompts")
        prompts, more = await self._reading.every(_PROMPTS, call.caller)
        name = call.query("name").strip()[:200]
        sought = name.casefold()
        prompts = [one for one in prompts if sought in (one["name"] or "").casefold() or name == one["id"]]
        return call.show("prompts.html", part=part_of(call, prompts, more=more), name=name)

    @Page("GET", "/prompts/{}")
    async def show(self, call: Call, prompt_id: str) -> ApiResponse:
        """The versions of a prompt, and the comparison of the versions `a` and `b`."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Prompts")
        path = f"{_PROMPTS}/{quote(prompt_id, safe='')}/versions"
        versions, more = await self._reading.every(path, call.caller, most=_MOST_VERSIONS)
        by_number = {one["version"]: one for one in versions}
        numbers = list(by_number)
        new = call.query("b") or numbers[0]
        old = call.query("a") or next((one for one in numbers if int(one) < _number(new)), new)
        for one in (old, new):
            if one not in by_number:
                raise NotFound(f"This prompt has no version {one[:20]!r}.", code="not_found")
        before, after = template_lines(by_number[old]), template_lines(by_number[new])
        # In another thread, because the comparison of long texts would delay other requests.
        rows = await asyncio.to_thread(compare, before, after)
        return call.show(
            "prompt.html",
            prompt=by_number[new],
            part=part_of(call, versions, more=more),
            numbers=numbers,
            old=old,
            new=new,
            rows=rows,
            added=sum(row.kind in ("added", "changed") for row in rows),
            removed=sum(row.kind in ("removed", "changed") for row in rows),
            cut=max(len(before), len(after)) > MOST_LINES,
            most=MOST_LINES,
        )

    @Page("POST", "/prompts/{}/default", changes=True)
    async def set_default(self, call: Call, prompt_id: str) -> ApiResponse:
        """Choose the default version."""
        check_owner(call)
        place = quote(prompt_id, safe="")
        body = {"version": call.form.get("version", "")}
        await self._reading.raw("POST", f"{_PROMPTS}/{place}/default_version", call.caller, body=body)
        return redirect(call.link(f"/prompts/{place}"))

    @Page("POST", "/prompts/{}/delete", changes=True)
    async def delete(self, call: Call, prompt_id: str) -> ApiResponse:
        """Delete a prompt with all its versions."""
        check_owner(call)
        await self._reading.raw("DELETE", f"{_PROMPTS}/{quote(prompt_id, safe='')}", call.caller)
        return redirect(call.link("/prompts"))


def template_lines(version: dict[str, Any]) -> list[str]:
    """The template of a version as lines: its instructions first, then each other field."""
    fields = {name: value for name, value in version.items() if name not in _ABOUT and value is not None}
    lines: list[str] = []
    for name in sorted(fields, key=lambda each: (each != "description", each != "instructions", each != "input", each)):
        value = fields[name]
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        several = "\n" in text or len(text) > 100
        lines += [f"{name}:", *(f"  {line}" for line in text.split("\n"))] if several else [f"{name}: {text}"]
    return lines


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
