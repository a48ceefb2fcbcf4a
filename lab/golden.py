"""`scripts/lab golden`: writes the goldens, names the changed ones, and lists outcomes that need a manual check."""

from __future__ import annotations

import sys

from tests.support.goldens import expected_path, render
from tests.support.recordings import all_recordings

_ODD = {
    "<think>": "a thinking tag in the output",
    "</think>": "a thinking tag in the output",
    "response.output_text.delta x0": "a delta without text",
}


def main() -> int:
    changed = odd = 0
    for recording in all_recordings():
        text, path = render(recording), expected_path(recording)
        before = path.read_text() if path.exists() else ""
        if text != before:
            changed += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"changed  {recording.name}")
        remarks = {remark for mark, remark in _ODD.items() if mark in text}
        if recording.status == 200 and ("response.failed" in text or text.startswith("HTTP 5")):
            remarks.add("failed although the server said 200")
        if "response.completed" in text and "output_item" not in text:
            remarks.add("completed without output")
        if (
            '"usage":{' in recording.body.decode().replace(" ", "")
            and "response.completed" in text
            and '"usage"' not in text
        ):
            remarks.add("usage was lost")
        for remark in sorted(remarks):
            odd += 1
            print(f"look at  {recording.name}: {remark}")
    print(f"{changed} changed, {odd} to look at; see the change with: git diff tests/golden/expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
