"""Implements the hosted tool `code_interpreter`: the model writes Python code, and a sandbox runs the code.

Other packages use only these names:
- `open_rooms` returns `ContainerRooms`, which manages all containers. `CodeInterpreter` is the tool.
- `try_out` tests whether this machine can confine code, and returns a `Trial`.
- `OwnersContainers` counts, exports, moves and deletes an owner's containers.

`local.py` is the sandbox, which needs only Linux with Landlock. `containers.py` manages the containers. `tool.py`
defines the function that the model sees. `interpreter.py`, `confinement.py` and `space.py` run inside the sandbox's
process.
"""

from antiphon.tools.code_interpreter.containers import ContainerRooms, open_rooms
from antiphon.tools.code_interpreter.local import HOLDS, Trial, try_out
from antiphon.tools.code_interpreter.owners import OwnersContainers
from antiphon.tools.code_interpreter.tool import CodeInterpreter

__all__ = ["HOLDS", "CodeInterpreter", "ContainerRooms", "OwnersContainers", "Trial", "open_rooms", "try_out"]
