"""Runs a program that ends when the parent process ends, even if the parent process is killed.

The parent process starts a program through this file: `python parent_guard.py PIPE SECONDS PROGRAM ARGS…`.

PIPE is the reading end of a pipe. Only the parent process has the writing end, so the pipe closes when the parent
process ends, even by SIGKILL. This process first forks, and then executes PROGRAM, which keeps the process id, output
and exit status. The fork watches the pipe, and kills PROGRAM SECONDS after the pipe has closed. On Linux the kernel
also sends PROGRAM a signal as soon as the parent process ends: SIGTERM, or SIGKILL if SECONDS is 0. SECONDS is 0 for
Envoy, which does not inherit the pipe and runs with SIGTERM blocked. This file uses only the standard library, so that
it starts fast.
"""

import os
import select
import signal
import sys
import time
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
# The polling interval in seconds. The interval matters on systems that do not notify the fork of the program's end.
_LOOK_SECONDS = 10.0


def main() -> NoReturn:
    pipe, seconds, program = int(sys.argv[1]), float(sys.argv[2]), os.getpid()
    if os.fork() == 0:
        tell_at_the_parents_end(signal.SIGKILL)
        watch(pipe, seconds, program)
    tell_at_the_parents_end(signal.SIGTERM if seconds else signal.SIGKILL)
    if not seconds:
        os.close(pipe)
        # In a hot restart, the next Envoy sends SIGTERM to the former one, which must continue to drain.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.execv(sys.argv[3], sys.argv[3:])


def tell_at_the_parents_end(number: int) -> None:
    """Ask the kernel to send this process a signal when the parent process ends. Only Linux supports this. On other
    systems, or if the parent process has already ended, the fork ends the program."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def watch(pipe: int, seconds: float, program: int) -> NoReturn:
    """Kill the program `seconds` after the pipe has closed. Exit when the program has ended."""
    # The fork closes its copy of the program's output. With that copy open, the reader of the output would wait after
    # the program's end.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    # The fork also closes the program's listening sockets. Clients would otherwise connect to these sockets after the
    # program's end and wait.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    last = None
    # While the fork's parent is the program, the process id belongs to the program.
    while os.getppid() == program:
        if last is not None and time.monotonic() >= last:
            os.kill(program, signal.SIGKILL)
            break
        if last is not None:
            time.sleep(0.05)
        # The pipe never has data, so "readable" means that its writing end is closed. A read could fail, because event
        # loops of siblings make the shared pipe non-blocking.
        elif select.select([pipe], [], [], _LOOK_SECONDS)[0]:
            last = time.monotonic() + seconds
    os._exit(0)


if __name__ == "__main__":
    main()
