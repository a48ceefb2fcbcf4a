"""Runs a program that ends when its parent ends, even if the parent is killed.

Lives here: the few lines between `fork` and `exec`. Run as a file: `python parent_guard.py PIPE SECONDS PROGRAM ARGS…`.

PIPE is the reading end of a pipe whose writing end only the parent holds. This process becomes PROGRAM (its process id,
output and exit status are the program's own); a small fork of it watches the pipe, sees its end when the parent is
gone, even by SIGKILL, and kills the program SECONDS later, whatever the program is doing then. Where the system can
(Linux), the program itself is told at once, too: by SIGTERM, or with no SECONDS by SIGKILL. A program that gets SECONDS
keeps the pipe; for one that gets none SIGTERM is blocked. Only the standard library is used.
"""

import os
import select
import signal
import sys
import time
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
# Where nothing tells the fork of the program's end, it looks.
_LOOK_SECONDS = 10.0


def main() -> NoReturn:
    pipe, seconds, program = int(sys.argv[1]), float(sys.argv[2]), os.getpid()
    if os.fork() == 0:
        tell_at_the_parents_end(signal.SIGKILL)
        watch(pipe, seconds, program)
    tell_at_the_parents_end(signal.SIGTERM if seconds else signal.SIGKILL)
    if not seconds:
        os.close(pipe)
        # The next Envoy tells the former to end by it, while that still drains.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execv(sys.argv[3], sys.argv[3:])


def tell_at_the_parents_end(number: int) -> None:
    """Have the system send this signal then. Where there is no such thing, the fork is what helps; and where the parent
    is gone already, too."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def watch(pipe: int, seconds: float, program: int) -> NoReturn:
    """Kill the program so many seconds after the end of the pipe; end when it ends."""
    # The program's output ends with the program: a copy held here would keep its reader waiting.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    # The same for the sockets at which it accepts: who connects when it is gone must be told.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    last = None
    # While it is our parent, the number means the program.
    while os.getppid() == program:
        if last is not None and time.monotonic() >= last:
            os.kill(program, signal.SIGKILL)
            break
        if last is not None:
            time.sleep(0.05)
        # Nobody writes, so readable means ended. (A read could fail: event loops of siblings make their ends
        # non-blocking, and this is the same one.)
        elif select.select([pipe], [], [], _LOOK_SECONDS)[0]:
            last = time.monotonic() + seconds
    os._exit(0)


if __name__ == "__main__":
    main()
