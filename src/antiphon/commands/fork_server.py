"""The process that imports once what all workers need, and forks them.

Lives here: its side, and a worker's between the fork and its command. Not here: the side of `antiphon up`, which starts
it and orders workers (`forked_workers.py`); what a worker does (`extproc.py`, `serve.py`).

Run as a program, with the socket of orders as its standard input. An order brings three descriptors (a worker's
standard input, its output, the pipe by which it learns of the end of `antiphon up`) and, as JSON, its arguments and
environment. The answer is the worker's process id.

A worker is forked twice, and what is between ends at once. So the worker becomes a child of `antiphon up`, which has
said that it takes orphans in (`PR_SET_CHILD_SUBREAPER`): it watches the worker, signals it and learns its status as if
it had started it itself.

Invariants: whatever is forked was forked by a process without an event loop, a second thread, an open database or
connection, and without a secret: all that is made in the worker, and the secrets come with the order. Nothing of an
order stays here. A worker has what an executed one has: its own session, environment and guard, no descriptor more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, cast

from antiphon.commands import guard
from antiphon.commands.process_title import set_title

TITLE_ROOM = 1024
"""How long the title of a worker may be: so long is one of the arguments of the fork server."""
_LENGTH_BYTES = 4
_DESCRIPTORS = 3
_ADOPTED_SECONDS = 10.0
_TITLE = ("antiphon", "fork", "server")


class _Order(NamedTuple):
    """`parent`: the process id of `antiphon up`; `seconds`: how long a worker outlives that at most."""

    stdin: int
    output: int
    pipe: int
    arguments: list[str]
    environ: dict[str, str]
    parent: int
    seconds: float


def serve(
    words: Sequence[str],
    import_command: Callable[[str], object],
    make_parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[Sequence[str], argparse.ArgumentParser], int],
) -> int:
    """Serve orders till their end; in a worker that was forked, its exit status.

    `words`: those behind the program in `program`; `import_command`, `make_parser`, `run`: how a command
    is imported, its line read, and it run.
    """
    orders = socket.socket(fileno=os.dup(0))
    _put(os.open(os.devnull, os.O_RDONLY), 0)
    set_title(_TITLE)
    command, state, transport = words[:3]
    gc.disable()
    import_command(command)
    _import_parts(command, state, transport)
    parser = make_parser()
    assert threading.active_count() == 1, "forked with threads, a worker could wait for a lock for ever"
    # What there is, is never looked at again: the pages that hold it stay shared. The little garbage in it is not freed
    # either: each worker would fill those holes, all over the shared pages.
    gc.freeze()
    gc.enable()
    while (order := _receive(orders)) is not None:
        try:
            pid = _fork(order, orders)
        except OSError as error:
            answer: dict[str, Any] = {"problem": error.strerror or type(error).__name__}
        else:
            if pid is None:
                return run(_begin(order), parser)
            answer = {"pid": pid}
        for descriptor in (order.stdin, order.output, order.pipe):
            os.close(descriptor)
        del order
        orders.sendall(json.dumps(answer).encode() + b"\n")
    return 0


def _import_parts(command: str, state: str, transport: str) -> None:
    """What a worker of this command imports further, and reads of the machine, until it serves; what cannot be
    imported, the worker tells."""
    from antiphon.app.extensions import installed
    from antiphon.config.state_url import Kind
    from antiphon.errors import ConfigError
    from antiphon.stores import kind_of_backend

    installed()

    wanted: list[Callable[[], object]] = [lambda: kind_of_backend(cast(Kind, state)), lambda: import_module("uvloop")]
    # A process by itself may do without these. A worker reads its settings from variables and is asked for metrics.
    further = ("antiphon.config.yaml_text", "antiphon.observability.exposition")
    wanted += [partial(import_module, module) for module in further]
    if command == "extproc":
        from antiphon.doors.extproc.server import TransportName, import_transport

        wanted.append(lambda: import_transport(cast(TransportName, transport)))
    for load in wanted:
        with contextlib.suppress(ImportError, ConfigError):
            load()


def _receive(orders: socket.socket) -> _Order | None:
    """The next order; None when `antiphon up` is gone."""
    head, descriptors, _, _ = socket.recv_fds(orders, _LENGTH_BYTES, _DESCRIPTORS)
    if len(head) < _LENGTH_BYTES:
        return None
    left, parts = int.from_bytes(head, "big"), []
    while left:
        part = orders.recv(min(left, 65536))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    stdin, output, pipe = descriptors
    return _Order(stdin, output, pipe, **json.loads(b"".join(parts)))


def _fork(order: _Order, orders: socket.socket) -> int | None:
    """The id of a new process that is no child of this one; None in that process."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            worker = os.fork()
        except OSError:
            os._exit(1)
        if worker == 0:
            for descriptor in (reading, writing):
                os.close(descriptor)
            orders.close()
            return None
        os.write(writing, str(worker).encode())
        os._exit(0)
    os.close(writing)
    try:
        os.waitpid(between, 0)
        told = os.read(reading, 32)
    finally:
        os.close(reading)
    if not told:
        raise BlockingIOError(0, "it could not be forked twice")
    return int(told)


def _begin(order: _Order) -> list[str]:
    """Be the worker, in all that is not its command; the arguments of that."""
    os.setsid()
    last = time.monotonic() + _ADOPTED_SECONDS
    while os.getppid() != order.parent:
        # What is between ends now. Nobody else may have this one: it would never be asked to end.
        if time.monotonic() > last:
            raise SystemExit(1)
        time.sleep(0.0005)
    _put(order.stdin, 0)
    _put(os.dup(order.output), 1)
    _put(order.output, 2)
    arguments = [*order.arguments, "--parent-pipe", str(order.pipe)]
    os.environ.clear()
    os.environ.update(order.environ)
    sys.argv = ["antiphon", *arguments]
    _guard(order)
    set_title([sys.executable, "-m", "antiphon", *arguments])
    return arguments


def _guard(order: _Order) -> None:
    program = os.getpid()
    if os.fork() == 0:
        set_title([sys.executable, guard.__file__, str(order.pipe), f"{order.seconds:g}", str(program)])
        guard.tell_at_the_parents_end(signal.SIGKILL)
        guard.watch(order.pipe, order.seconds, program)
    guard.tell_at_the_parents_end(signal.SIGTERM)


def _put(descriptor: int, number: int) -> None:
    os.dup2(descriptor, number)
    os.close(descriptor)


def program(command: str, state: str, transport: str) -> Sequence[str]:
    """The command line of a fork server for workers of this command, this kind of state and this transport."""
    code = "from antiphon.cli import serve_forks; raise SystemExit(serve_forks())"
    return (sys.executable, "-c", code, command, state, transport, " " * TITLE_ROOM)
