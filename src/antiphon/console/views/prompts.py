"""Shows the prompts of an owner: the list, the versions of one prompt, and a comparison of two versions side by side.

This module converts a version to lines of text, and compares two versions line by line. `api/prompts.py` stores
prompts, and the playground runs a prompt.

Invariant: a comparison shows the old version on the left, and the new version on the right.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from antiphon.api.http import ApiResponse
from antiphon.console.owner_lists import check_owner, choose_owner, part_of
from antiphon.console.reading import Reading
from antiphon.console.site import PageCall, PageRoute, redirect
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


MOST_LINES: Final = 1000
"""The maximum number of lines of a text. The limit exists because the time of a comparison grows faster than the square
of the number of lines."""
_MOST_PAIRED: Final = 2000
"""One comparison computes the similarity of at most this number of pairs of lines."""
_ALIKE: Final = 0.6
_LONGEST: Final = 300


class DiffRow(NamedTuple):
    """One row of a comparison. If one version has no line in this row, the line number on that version's side is 0, and
    the text is empty."""

    kind: Literal["same", "changed", "removed", "added"]
    left: int
    left_text: str
    right: int
    right_text: str


class PromptsView:
    """The pages of prompts."""

    nav = (("Prompts", "/prompts"),)

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @PageRoute("GET", "/prompts")
    async def show_all(self, call: PageCall) -> ApiResponse:
        """Show a page of the list of prompts, newest first."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Prompts")
        prompts, more = await self._reading.every(_PROMPTS, call.caller)
        name = call.query("name").strip()[:200]
        sought = name.casefold()
        prompts = [one for one in prompts if sought in (one["name"] or "").casefold() or name == one["id"]]
        return call.show("prompts.html", part=part_of(call, prompts, more=more), name=name)

    @PageRoute("GET", "/prompts/{}")
    async def show(self, call: PageCall, prompt_id: str) -> ApiResponse:
        """Show the versions of a prompt, and the comparison of the versions `a` and `b`."""
        if not call.owner:
            return await choose_owner(call, self._reading, "Prompts")
        await self._reading.note_read(call.session, "read prompt", prompt_id, call.owner)
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
        # The comparison runs in another thread, because long texts would delay other requests.
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

    @PageRoute("POST", "/prompts/{}/default", changes=True)
    async def set_default(self, call: PageCall, prompt_id: str) -> ApiResponse:
        """Choose the default version."""
        check_owner(call)
        await self._reading.note(call.session, "prompt set-default", prompt_id, call.owner)
        place = quote(prompt_id, safe="")
        body = {"version": call.form.get("version", "")}
        await self._reading.raw("POST", f"{_PROMPTS}/{place}/default_version", call.caller, body=body)
        return redirect(call.link(f"/prompts/{place}"))

    @PageRoute("POST", "/prompts/{}/delete", changes=True)
    async def delete(self, call: PageCall, prompt_id: str) -> ApiResponse:
        """Delete a prompt with all its versions."""
        check_owner(call)
        await self._reading.note(call.session, "prompt delete", prompt_id, call.owner)
        await self._reading.raw("DELETE", f"{_PROMPTS}/{quote(prompt_id, safe='')}", call.caller)
        return redirect(call.link("/prompts"))


def template_lines(version: Mapping[str, object]) -> list[str]:
    """Return the template of a version as lines: the instructions first, then each other field."""
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


def compare(old: Sequence[str], new: Sequence[str]) -> list[DiffRow]:
    """Compare two texts line by line, and return the rows of the comparison. The function leaves out lines beyond
    `MOST_LINES`."""
    old, new = old[:MOST_LINES], new[:MOST_LINES]
    rows: list[DiffRow] = []
    left_over = _MOST_PAIRED
    for tag, start, end, begin, finish in SequenceMatcher(None, old, new).get_opcodes():
        if tag == "equal":
            rows += [
                DiffRow("same", left + 1, old[left], right + 1, new[right])
                for left, right in zip(range(start, end), range(begin, finish), strict=True)
            ]
            continue
        size = (end - start) * (finish - begin)
        paired = _pairs(old[start:end], new[begin:finish], alike=size <= left_over)
        left_over -= size if size <= left_over else 0
        for first, second in paired:
            if second is None and first is not None:
                rows.append(DiffRow("removed", start + first + 1, old[start + first], 0, ""))
            elif first is None and second is not None:
                rows.append(DiffRow("added", 0, "", begin + second + 1, new[begin + second]))
            elif first is not None and second is not None:
                left, right = start + first, begin + second
                rows.append(DiffRow("changed", left + 1, old[left], right + 1, new[right]))
    return rows


def _pairs(old: Sequence[str], new: Sequence[str], *, alike: bool) -> Iterator[tuple[int | None, int | None]]:
    """Pair similar lines of two blocks, so that the sum of the similarities is as large as possible. The pairs keep the
    order of the lines. If `alike` is False, the blocks are too large for a comparison, and the function pairs no
    lines."""
    if not alike:
        yield from ((each, None) for each in range(len(old)))
        yield from ((None, each) for each in range(len(new)))
        return
    best = [[0.0] * (len(new) + 1) for _ in range(len(old) + 1)]
    likeness = [[_likeness(one, other) for other in new] for one in old]
    for i in range(len(old) - 1, -1, -1):
        for j in range(len(new) - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + likeness[i][j])
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and likeness[i][j] and best[i][j] == best[i + 1][j + 1] + likeness[i][j]:
            yield i, j
            i, j = i + 1, j + 1
        elif j == len(new) or (i < len(old) and best[i][j] == best[i + 1][j]):
            yield i, None
            i += 1
        else:
            yield None, j
            j += 1


def _likeness(one: str, other: str) -> float:
    found = SequenceMatcher(None, one[:_LONGEST], other[:_LONGEST]).quick_ratio()
    return found if found >= _ALIKE else 0.0
