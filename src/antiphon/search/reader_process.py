"""The document reader process: `python -m antiphon.search.reader_process`.

Lives here: its limits and its loop. Not here: the messages it exchanges (`read_messages.py`), how it is started,
watched and ended (`readers.py`), and how a format is read (`extract.py`).

It reads a `ReadRequest` per line from standard input and answers with `ReadAnswer`s on standard output, each behind its
length in four bytes; the last one of a file has `end`.

Invariant: whatever a file does to its reader (crash, endless work, memory), it does to this process only. It starts no
others, can write no files, and was given no secret.
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
    """Read files until standard input ends. The first argument is the most memory to use, in bytes."""
    memory = int(sys.argv[1])
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),  # for everybody but root
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    decoder = msgspec.json.Decoder(ReadRequest)
    answers = sys.stdout.buffer
    for line in sys.stdin.buffer:
        request = decoder.decode(line)
        # Processor time counts from the process's start; going past the soft limit ends it.
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + request.seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
        if not _serve(request, answers):
            return


def _serve(request: ReadRequest, answers: BinaryIO) -> bool:
    """Whether the process can go on."""
    try:
        document = extract(Path(request.path), request.name, request.max_bytes)
        answer = ReadAnswer(title=document.title[:512])
        tokens = 0
        for chunk, count in cut(document.text, request.size, request.overlap):
            answer.chunks.append((_clean(chunk), count))
            tokens += count
            # Overlap counts once for the limit: it is about the file.
            if tokens * (request.size - request.overlap) // request.size > request.max_tokens:
                raise Unreadable(f"The file holds more than {request.max_tokens} tokens.")
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
    # Lone surrogates (from PDF and JSON) cannot be stored as UTF-8; NUL ends a text for some of its readers.
    return text.encode("utf-8", "replace").decode().replace("\x00", " ")


def _send(answer: ReadAnswer, answers: BinaryIO) -> None:
    data = msgspec.msgpack.encode(answer)
    answers.write(LENGTH.pack(len(data)) + data)
    answers.flush()


if __name__ == "__main__":
    main()
