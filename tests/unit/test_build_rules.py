"""What compiled modules may not do: each rule finds it, and leaves alone what only looks like it."""

from __future__ import annotations

import textwrap

import pytest

from scripts.lib.build_rules import problems


def _found(source: str, other: str = "") -> list[str]:
    return problems({"a.py": textwrap.dedent(source)}, {"b.py": textwrap.dedent(other)})


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        (
            "class A:\n    def __init__(self) -> None:\n        self._thread = 1",
            3,
            "the C code reserves the name __thread",
        ),
        ("class A:\n    _real: int = 1", 2, "the C code reserves the name __real"),
        ("def f() -> None:\n    class A: ...", 2, "class A is inside another"),
        ("class A:\n    class B: ...", 2, "class B is inside another"),
        ("class A: ...\nclass B: ...\nclass C(A, B): ...", 3, "several bases"),
        ("from x import A, B\nclass C(A, B): ...", 2, "several bases"),
        ("class P(Protocol): ...\nclass A: ...\nclass B(P, A): ...", 3, "a Protocol before its base class"),
        ("class A:\n    x = y = 1", 2, "one name each"),
        ("class A:\n    if x:\n        y = 1", 2, "one name each"),
        ("@dataclass\nclass A:\n    x: object", 3, "must not be annotated as object"),
        ("@dataclass(slots=True)\nclass A:\n    x: object = 1", 3, "must not be annotated as object"),
        ("for x in y:\n    with z:\n        break", 3, "must not leave a `with` block"),
        ("for x in y:\n    with z:\n        if x:\n            continue", 4, "must not leave a `with` block"),
        ("while x:\n    try:\n        break\n    finally:\n        z()", 3, "must not leave a `with` block"),
        (
            "while x:\n    with y:\n        for z in x: pass\n        else:\n            break",
            5,
            "must not leave a `with` block",
        ),
        ("try:\n    x()\nexcept* OSError:\n    pass", 1, "except*"),
        ("x = '\\ud800'", 1, "lone surrogate"),
        ("def f(a: A) -> None:\n    del a.x", 2, "must not delete"),
        ("def f(a: A) -> object:\n    return a.__dict__", 2, "no __dict__"),
        ("def f(a: A) -> object:\n    return vars(a)", 2, "no __dict__"),
        ("class A:\n    x = 1\n\ny = A.x", 4, "x is a default value for objects of A"),
        ("class A:\n    x: int = 1\n\nA.x = 2", 4, "x is a default value for objects of A"),
        ("class A:\n    x = 1\nclass B(A): ...\ny = B.x", 4, "x is a default value for objects of B"),
        ("class A: ...\nheld: WeakSet[A] = WeakSet()", 2, "weak references to its objects are impossible"),
        ("class A: ...\nheld: weakref.ref[A]", 2, "weak references to its objects are impossible"),
    ],
)
def test_what_breaks_a_rule_is_found(source: str, line: int, says: str) -> None:
    (found,) = _found(source)
    assert found.startswith(f"a.py:{line}: ") and says in found


@pytest.mark.parametrize(
    "source",
    [
        "class A:\n    def __init__(self) -> None:\n        self.thread = _thread = 1",
        "if x:\n    class A: ...",
        "class P(Protocol): ...\nclass A: ...\nclass B(A, P): ...",
        "class A(Base, Generic[T]): ...",
        'class A:\n    """It."""\n\n    x: int\n    y = 1\n\n    def z(self) -> int: ...',
        "@dataclass\nclass A:\n    x: Any = 1\n    y: dict[str, object]",
        "class A:\n    x: object = 1",
        "class E(str, Enum):\n    A = B = 'x'",
        "with x:\n    for y in z:\n        break",
        "for x in y:\n    try:\n        break\n    except OSError:\n        pass",
        "for x in y:\n    try:\n        z()\n    finally:\n        for a in b:\n            continue",
        "x = '\\u00e9'",
        "del a['x']",
        "class A:\n    x: ClassVar[int] = 1\n    y: Final = 2\n\nz = A.x + A.y",
        "class A:\n    x: int\n    def f(self) -> int: ...\n\ny = A.f",
        "class E(Enum):\n    A = 1\n\nx = E.A",
        "held: WeakSet[Other]",
    ],
)
def test_what_compiles_is_left_alone(source: str) -> None:
    assert _found(source) == []


def test_interpreted_modules_use_compiled_classes_as_they_are() -> None:
    found = _found(
        "class A:\n    x = 1", "class B:\n    y = 1\n\nB.y\nA.x\nheld: WeakSet[A]\nothers: WeakSet[B]\ndel b.z"
    )
    assert [one.partition(" ")[0] for one in found] == ["b.py:5:", "b.py:6:"]


def test_an_interpreted_class_does_not_derive_from_a_compiled_one() -> None:
    compiled = "class A: ...\nclass P(Protocol): ...\nclass _Same: ..."
    assert _found(compiled, "class B(A): ...") == [
        "b.py:1: the interpreted class B must not derive from the compiled class A"
    ]
    # A Protocol has nothing that is compiled, and a module's own class is another one.
    assert not _found(compiled, "class B(P): ...\nclass _Same: ...\nclass C(_Same): ...")
