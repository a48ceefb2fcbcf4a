"""Run a foreign program that ends when its parent does, however that ends.

Lives here: the few lines between `fork` and `exec`. Run as a file, not imported: `python guard.py PIPE PROGRAM ARGS…`.

PIPE is the reading end of a pipe whose writing end only the parent holds. This process becomes PROGRAM (its process id,
output and exit status are the program's own); a small fork of it watches the pipe, sees its end when the parent is
gone, even by SIGKILL, and kills the program. Only the standard library's portable parts are used.
"""

import os
import select
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    pipe, program = int(sys.argv[1]), os.getpid()
    if os.fork() == 0:
        _watch(pipe, program)
    os.close(pipe)
    os.execv(sys.argv[2], sys.argv[2:])


def _watch(pipe: int, program: int) -> NoReturn:
    # The program's output ends with the program: a copy held here would keep its reader waiting.
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    # Nobody writes, so readable means ended. (A read could fail: event loops of siblings make their ends non-blocking,
    # and this is the same one.)
    select.select([pipe], [], [])
    # Still our parent, so the number still means the program.
    if os.getppid() == program:
        os.kill(program, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
