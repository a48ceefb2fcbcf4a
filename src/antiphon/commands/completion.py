"""`antiphon completion SHELL`: prints a script that completes commands, actions and flags in bash, zsh or tcsh.

The library shtab generates the script from the parser of `command_line.py`, so the script always matches the commands.
Not here: installing the script. The help of the command names the usual path for bash.

Invariant: the command reads no settings and starts no process, so a shell may run it at each start:

    source <(antiphon completion bash)

For zsh, write the output to a file `_antiphon` in a folder of `fpath`.
"""

from __future__ import annotations

import argparse

import shtab

from antiphon.commands.command_line import make_parser


def run(arguments: argparse.Namespace) -> int:
    """Print the script. `arguments.shell` is `bash`, `zsh` or `tcsh`."""
    print(shtab.complete(make_parser(), shell=arguments.shell))
    return 0
