"""Runs the document reader process: `python -m antiphon.search.reader_process`.

Lives here: the process's resource limits, and the loop that handles requests. Not here: the messages
(`read_messages.py`), starting, watching and ending the process (`readers.py`), reading a file format (`extract.py`).

The process reads one `ReadRequest` per line (JSON) from standard input, and writes `ReadAnswer`s (MessagePack) to
standard output. Four bytes with the length precede each answer. In the last answer of a file, `end` is True.

Invariant: a malicious file that causes a crash, an endless loop or high memory use affects only this process. The
process cannot start processes or write files, and it has no secrets.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from antiphon.search.chunking import cut
from antiphon.search.extract import Unreadable, extract
from antiphon.search.read_messages import LENGTH, ReadAnswer, ReadRequest

_CHUNKS_PER_ANSWER = 64


def main() -> None:
    """Read files until standard input ends. The first argument is the memory limit in bytes."""
    memory = int(sys.argv[1])
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),  # no effect for root
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    decoder = msgspec.json.Decoder(ReadRequest)
    answers = sys.stdout.buffer
    for line in sys.stdin.buffer:
        request = decoder.decode(line)
        # RLIMIT_CPU counts CPU time since the process's start, so the new limit includes the time used so far. The
        # kernel ends a process that exceeds the soft limit.
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + request.seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        if not _serve(request, answers):
            return


def _serve(request: ReadRequest, answers: BinaryIO) -> bool:
    """Handle one request and write its answers. Returns False when the process must exit, because it ran out of
    memory."""
    try:
        document = extract(Path(request.path), request.name, request.max_bytes)
        answer = ReadAnswer(title=document.title[:512])
        tokens = 0
        for chunk, count in cut(document.text, request.size, request.overlap):
            answer.chunks.append((_clean(chunk), count))
            tokens += count
            # The limit applies to the file's text, so the overlap of chunks does not count.
            if tokens * (request.size - request.overlap) // request.size > request.max_tokens:
                raise Unreadable(f"The file has more than {request.max_tokens} tokens.")
            if len(answer.chunks) == _CHUNKS_PER_ANSWER:
                _send(answer, answers)
                answer = ReadAnswer(title=document.title[:512])
        answer.end = True
    except Unreadable as error:
        answer = ReadAnswer(end=True, code=error.code, message=error.message)
    except (MemoryError, RecursionError):
        message = "The file needs too much memory to be read."
        _send(ReadAnswer(end=True, code="invalid_file", message=message, dying=True), answers)
        return False
    except OSError:
        answer = ReadAnswer(end=True, code="server_error", message="The file could not be opened.")
    except Exception:
        answer = ReadAnswer(end=True, code="invalid_file", message="The file could not be read.")
    _send(answer, answers)
    return True


def _clean(text: str) -> str:
    # Replace lone surrogates (from PDF and JSON), which UTF-8 cannot encode, and NUL, which some programs treat as the
    # end of a text.
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")


def _send(answer: ReadAnswer, answers: BinaryIO) -> None:
    data = msgspec.msgpack.encode(answer)
    answers.write(LENGTH.pack(len(data)) + data)
    answers.flush()


if __name__ == "__main__":
    main()
