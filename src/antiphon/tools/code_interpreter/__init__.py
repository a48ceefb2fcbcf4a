"""`code_interpreter`: the model writes Python, and a sandbox runs it.

This is the face that everything else sees: the rooms for code (`open_rooms`), the tool over them, whether code can be
held in here (`try_out` makes a `Trial`), and what an owner's containers hold (`OwnersContainers`). Behind it,
`local.py` is the sandbox, which needs nothing but Linux; `containers.py` keeps what belongs to whom; `tool.py` is what
the model sees. `interpreter.py` and `confinement.py` run inside the sandbox.
"""

from antiphon.tools.code_interpreter.containers import ContainerRooms, open_rooms
from antiphon.tools.code_interpreter.local import HOLDS, Trial, try_out
from antiphon.tools.code_interpreter.owners import OwnersContainers
from antiphon.tools.code_interpreter.tool import CodeInterpreter

__all__ = ["HOLDS", "CodeInterpreter", "ContainerRooms", "OwnersContainers", "Trial", "open_rooms", "try_out"]
