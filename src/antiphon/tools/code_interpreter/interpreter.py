"""Runs inside the sandboxed process, executes Python code, and keeps the code's variables between runs.

The main function first confines its own process and then runs the code that it receives. `confinement.py` and
`space.py` confine the process. `machine.py` starts the process, applies timeouts and copies files. The Python that the
operator configured (setting `code_interpreter.python`) runs this file as a script.

The process reads lines of JSON from standard input: `{"code": …, "mark": …}`. For each request, the process writes one
line of JSON to standard output. The code's output goes to standard error. After the output, the process writes the
request's `mark`, so that the parent sees the end of this run's output.

Invariant: the process runs no code of the model before `confine` has returned. After the first run, the parent must not
trust any message of this process, because the code may have changed the interpreter.
"""

from __future__ import annotations

import _socket
import ast
import json
import linecache
import os
import signal
import struct
import sys
import traceback
import types
import warnings
from typing import IO, Any

_FOLDER = "/mnt/data"
"""The path at which models expect their files, as in OpenAI's containers."""

_MAX_PICTURES = 10


class Interpreter:
    """Runs the code of each request in one namespace, so that variables persist. `files`: the working folder.
    `pictures`: the folder for PNG files of figures."""

    def __init__(self, files: str, pictures: str) -> None:
        self._files = files
        self._pictures = pictures
        self._module = types.ModuleType("__main__")
        sys.modules["__main__"] = self._module
        self._count = 0
        self.running = False
        libraries = {os.path.dirname(os.__file__), *(path for path in sys.path if os.path.isabs(path))}
        self._shorter = [(files, _FOLDER), (pictures, "/tmp")]
        self._shorter += [(path + "/", "") for path in sorted(libraries, key=len, reverse=True)]

    def run(self, code: str) -> dict[str, object]:
        """Run code like a notebook: print the value of a final expression, or save its picture. Print errors to
        standard error. Returns whether the code failed, and the names of new pictures."""
        self._count += 1
        name = f"<code {self._count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        pictures: list[str] = []
        failed = False
        try:
            tree = _Places(self._files).visit(ast.parse(code, name))
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            body = compile(tree, name, "exec")
            shown = compile(ast.Expression(last.value), name, "eval") if last is not None else None
            self.running = True
            exec(body, self._module.__dict__)
            if shown is not None:
                value = eval(shown, self._module.__dict__)
                self._show(value, pictures)
        except BaseException as error:
            self.running = False
            failed = True
            self._explain(error)
        finally:
            self.running = False
        try:
            self._draw(pictures)
        except Exception as error:
            self._explain(error)
        return {"failed": failed, "pictures": pictures[:_MAX_PICTURES]}

    def _show(self, value: object, pictures: list[str]) -> None:
        self._module.__dict__["_"] = value
        if value is None:
            return
        draw = getattr(value, "_repr_png_", None)
        png = draw() if callable(draw) else None
        if isinstance(png, bytes):
            self._keep(png, pictures)
        else:
            print(repr(value))

    def _draw(self, pictures: list[str]) -> None:
        """Save all open matplotlib figures as PNG files, then close the figures."""
        pyplot: Any = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        for number in pyplot.get_fignums()[:_MAX_PICTURES]:
            path = self._path(pictures)
            pyplot.figure(number).savefig(path, format="png", bbox_inches="tight")
            pictures.append(os.path.basename(path))
        pyplot.close("all")

    def _keep(self, png: bytes, pictures: list[str]) -> None:
        path = self._path(pictures)
        with open(path, "wb") as file:
            file.write(png)
        pictures.append(os.path.basename(path))

    def _path(self, pictures: list[str]) -> str:
        return os.path.join(self._pictures, f"picture-{self._count}-{len(pictures)}.png")

    def _explain(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            if error.code not in (None, 0):
                print(f"SystemExit: {error.code}", file=sys.stderr)
            return
        told = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        # Remove this file's frames from the traceback, because they only reveal its path.
        told.stack = traceback.StackSummary.from_list([one for one in told.stack if one.filename != __file__][-20:])
        text = "".join(told.format())
        # Replace paths of this machine, which do not help the model and must not reach clients.
        for path, shown in self._shorter:
            text = text.replace(path, shown)
        print(text, end="", file=sys.stderr)


class _Places(ast.NodeTransformer):
    """Replaces `/mnt/data` at the beginning of string constants by the path of the working folder."""

    def __init__(self, files: str) -> None:
        self._files = files

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        value = node.value
        if isinstance(value, str) and (value == _FOLDER or value.startswith(_FOLDER + "/")):
            node.value = self._files + value[len(_FOLDER) :]
        return node


def main() -> None:
    """Run `interpreter.py <JSON>`. The script's argument contains the container's folders and limits. Handle one
    request per line of standard input."""
    given = json.loads(sys.argv[1])
    files, scratch, control = given["files"], given["scratch"], given["control"]
    last = max(64, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 20 else 1 << 20)
    os.closerange(3, control)
    os.closerange(control + 1, last)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, folder)
    import confinement  # type: ignore[import-not-found]
    import space  # type: ignore[import-not-found]

    sys.path.remove(folder)
    try:
        counter = _room(given, space)
        os.chdir(files)
        confinement.confine((files, scratch), confinement.Limits(**given["limits"]), counter)
    except (confinement.CannotConfine, OSError) as error:
        _answer(answers, {"refused": str(error)})
        return
    os.close(control)
    readable = confinement.library_folders()
    sys.path[:] = ["", *(path for path in sys.path if path.startswith(tuple(readable)) or path.endswith(".zip"))]
    sys.argv = [""]
    sys.dont_write_bytecode = True
    sys.setrecursionlimit(1000)
    warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
    sys.stdout.reconfigure(line_buffering=True, errors="replace")  # type: ignore[union-attr]
    sys.stderr.reconfigure(errors="replace")  # type: ignore[union-attr]
    for name in ("confinement", "space", "json"):
        sys.modules.pop(name, None)
    interpreter = Interpreter(files, scratch)

    def interrupted(number: int, frame: object) -> None:
        if interpreter.running:
            raise KeyboardInterrupt("the time is up")

    signal.signal(signal.SIGINT, interrupted)
    _answer(answers, {"ready": True})
    for line in requests:
        request = json.loads(line)
        result = interpreter.run(request["code"])
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                continue
        os.write(2, request["mark"].encode())
        _answer(answers, result)


def _room(given: dict[str, Any], space: Any) -> Any:
    """Prepare the limited disk space for the files of the code. In mode `counted`, return a function that starts the
    counter process. In mode `memory`, mount a file system, send its descriptor to the parent, and wait until the parent
    has copied the files in."""
    control = given["control"]
    if given["space"] == "counted":
        return lambda: space.counter(control)
    uid = given["limits"]["uid"]
    try:
        opened = space.own_file_system(given["home"], given["disk_bytes"], given["max_files"], uid)
    except OSError as error:
        raise OSError(f"a separate file system: {error.strerror}") from None
    ours = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, control)
    ours.sendmsg([b"m"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", opened))])
    os.close(opened)
    ours.recv(1)
    ours.detach()
    return None


def _answer(answers: IO[bytes], value: dict[str, object]) -> None:
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
