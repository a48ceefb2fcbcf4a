"""`code_interpreter`: the model writes Python, and a sandbox runs it.

This is the package's public face:
- `open_rooms`: the rooms for code, and `CodeInterpreter`, the tool over them.
- `try_out` makes a `Trial`: whether this machine can confine code.
- `OwnersContainers`: what an owner's containers hold.

Behind it, `local.py` is the sandbox, which needs nothing but Linux. `containers.py` keeps each owner's containers.
`tool.py` is what the model sees. `interpreter.py` and `confinement.py` run inside the sandbox.
"""

from antiphon.tools.code_interpreter.containers import ContainerRooms, open_rooms
from antiphon.tools.code_interpreter.local import HOLDS, Trial, try_out
from antiphon.tools.code_interpreter.owners import OwnersContainers
from antiphon.tools.code_interpreter.tool import CodeInterpreter

__all__ = ["HOLDS", "CodeInterpreter", "ContainerRooms", "OwnersContainers", "Trial", "open_rooms", "try_out"]
