"""Reads and writes ext_proc messages independently: with Envoy's whole API and another protobuf library.

Lives here: `judge` and `compose`, and the separate process that they call. The library takes a second to import and
prints warnings. Not here: the expected content of messages.

`envoy-data-plane` (betterproto2) is about 200 times slower per message than the code of the ext_proc server, so only
tests use it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def judge(kind: str, messages: Sequence[bytes]) -> list[dict[str, Any]]:
    """Decode messages to plain values, without defaults, with bytes in base64. `kind` is ProcessingRequest or
    ProcessingResponse.

    Each result also has `reencoded`: whether encoding it again gives the same number of bytes. The value is false if
    the message has an unknown field.
    """
    answer: list[dict[str, Any]] = json.loads(_ask("judge", kind, [message.hex() for message in messages]))
    return answer


def compose(kind: str, values: Sequence[dict[str, Any]]) -> list[bytes]:
    """Encode messages with these values (bytes in base64, names in camelCase)."""
    return [bytes.fromhex(text) for text in json.loads(_ask("compose", kind, values))]


def _ask(task: str, kind: str, values: Sequence[Any]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, task, kind],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _main(task: str, name: str) -> None:
    import betterproto2
    from envoy_data_plane.envoy.service.ext_proc import v3

    kind = getattr(v3, name)
    answers: list[Any] = []
    for value in json.load(sys.stdin):
        if task == "compose":
            answers.append(bytes(kind.from_dict(value)).hex())
            continue
        data = bytes.fromhex(value)
        message = kind.parse(data)
        plain = message.to_dict(output_format=betterproto2.OutputFormat.PROTO_JSON, casing=betterproto2.Casing.SNAKE)
        # Maps are encoded in any order, so the check compares lengths instead of bytes.
        answers.append({**plain, "reencoded": len(bytes(message)) == len(data)})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
