"""Runs a program that ends when its parent ends, even if the parent is killed.

Lives here: the few lines between `fork` and `exec`. Run as a file: `python parent_guard.py PIPE SECONDS PROGRAM ARGS…`.

PIPE is the reading end of a pipe; only the parent holds its writing end. This process becomes PROGRAM (same process id,
output and exit status). A small fork watches the pipe. It sees the parent's end, even by SIGKILL, and kills the program
SECONDS later, whatever the program is doing. On Linux the program also gets a signal at once: SIGTERM, or SIGKILL if
SECONDS is 0. A program with SECONDS keeps the pipe; one without has SIGTERM blocked. This file uses only the standard
library.
"""

import os
import select
import signal
import sys
import time
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
# The polling interval for systems that do not notify the fork of the program's end.
_LOOK_SECONDS = 10.0


def main() -> NoReturn:
    pipe, seconds, program = int(sys.argv[1]), float(sys.argv[2]), os.getpid()
    if os.fork() == 0:
        tell_at_the_parents_end(signal.SIGKILL)
        watch(pipe, seconds, program)
    tell_at_the_parents_end(signal.SIGTERM if seconds else signal.SIGKILL)
    if not seconds:
        os.close(pipe)
        # The next Envoy sends SIGTERM to the former one while that still drains.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execv(sys.argv[3], sys.argv[3:])


def tell_at_the_parents_end(number: int) -> None:
    """Request this signal at the parent's end. The fork covers systems without this feature, and a parent that has
    already ended."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def watch(pipe: int, seconds: float, program: int) -> NoReturn:
    """Kill the program `seconds` after the end of the pipe; end when the program ends."""
    # The program's output must end with the program: a copy here would keep its reader waiting.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    # The same for its listening sockets: after its end, clients must get an error.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    last = None
    # While it is the parent of this fork, the process id belongs to the program.
    while os.getppid() == program:
        if last is not None and time.monotonic() >= last:
            os.kill(program, signal.SIGKILL)
            break
        if last is not None:
            time.sleep(0.05)
        # The pipe has no writer, so readable means ended. (A read could fail: event loops of siblings make their ends
        # non-blocking, and the pipe is shared.)
        elif select.select([pipe], [], [], _LOOK_SECONDS)[0]:
            last = time.monotonic() + seconds
    os._exit(0)


if __name__ == "__main__":
    main()
