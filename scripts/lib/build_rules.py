"""Finds code that mypyc cannot compile correctly, without compiling it.

Lives here: one function per rule, which checks the syntax trees of all compiled modules. `scripts/check` runs the rules
through `scripts/lib/build_compiled.py --check`, and each build runs them before it compiles. Not here: the list of
compiled modules, and the reasons to omit others (`scripts/lib/build_compiled.py`).

The compiler (mypyc of mypy 2.4) rejects most such code after a minute, and the C compiler some of it after three. Both
compilers accept some code and change its meaning, which only a test on the compiled build finds. mypy checks the rules
about types. In compiled code, a value of another type than annotated raises a `TypeError`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence

Problem = tuple[ast.AST, str]
Classes = Mapping[str, ast.ClassDef]

# The compiler makes an attribute a member of a C struct with an underscore before its name. With these names, the
# result is a reserved name of C, the compiler or the platform.
_TAKEN_BY_C = frozenset(
    {
        *("Alignas", "Alignof", "Atomic", "Bool", "Complex", "Generic", "Imaginary", "Noreturn", "Static_assert"),
        *("Thread_local", "_alignof", "_amd64", "_asm", "_attribute", "_auto_type", "_complex", "_const", "_imag"),
        *("_inline", "_int128", "_k8", "_linux", "_null", "_real", "_restrict", "_seg_fs", "_seg_gs", "_signed"),
        *("_thread", "_typeof", "_unix", "_volatile", "_x86_64"),
    }
)
_TRANSPARENT = {"Protocol", "Generic", "ABC", "object"}
# The interpreter creates these classes, with all features of a Python class.
_NOT_NATIVE = {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag", "NamedTuple", "TypedDict"}
_WEAK = {"WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "ref"}
_SHARED = {"ClassVar", "Final"}


def problems(compiled: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """The rule violations in the compiled sources (by their paths), and in other modules that use them, as lines of
    text."""
    trees = {path: ast.parse(source) for path, source in compiled.items()}
    all_classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    # The rules identify classes by name. Two classes with the same name are rare, and would confuse readers too.
    classes = {node.name: node for node in all_classes if not _names_of_bases(node) & _NOT_NATIVE}
    found = [(path, *problem) for path, tree in trees.items() for rule in _RULES for problem in rule(tree, classes)]
    interpreted = {path: ast.parse(source) for path, source in others.items()}
    found += [
        (path, *each)
        for path, tree in interpreted.items()
        for rule in _RULES_FOR_OTHERS
        for each in rule(tree, classes)
    ]
    trees |= interpreted
    found += [(path, *each) for path, tree in trees.items() for rule in _RULES_FOR_ALL for each in rule(tree, classes)]
    # A statement inside two nested `with` blocks is found twice.
    return list(dict.fromkeys(f"{path}:{getattr(node, 'lineno', 1)}: {why}" for path, node, why in found))


# The rules. Each function yields the violations in a module. `classes` has the compiled classes by name.


def names_taken_by_c(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in _TAKEN_BY_C:
            yield node, f"the C code reserves the name _{node.attr}: rename the attribute {node.attr}"
        elif isinstance(node, ast.ClassDef):
            for name, statement in _values_of(node):
                if name in _TAKEN_BY_C:
                    yield statement, f"the C code reserves the name _{name}: rename the attribute {name}"


def nested_classes(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    top = {id(node) for node in _outside_functions(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and id(node) not in top:
            yield (
                node,
                f"class {node.name} is inside another class or a function: move it to the top level of the module",
            )


def several_bases(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in _classes_in(tree):
        bases = [name for name in map(_last_name, node.bases) if name not in _TRANSPARENT]
        concrete = [not (name in classes and "Protocol" in _names_of_bases(classes[name])) for name in bases]
        if sum(concrete) > 1:
            yield node, f"class {node.name} has several bases that are not Protocols: at most one such base is allowed"
        elif any(concrete[1:]):
            yield node, f"class {node.name} lists a Protocol before its base class: list the base class first"


def bodies_of_classes(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    allowed = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Pass, ast.AnnAssign, ast.ClassDef)
    for node in _classes_in(tree):
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Name()]) | ast.Expr(value=ast.Constant()):
                    pass
                case _ if not isinstance(statement, allowed):
                    yield statement, "the body of a class may contain only functions, and assignments of one name each"


def fields_of_dataclasses(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in _classes_in(tree):
        if any(_last_name(_called(each)) == "dataclass" for each in node.decorator_list):
            for statement in node.body:
                match statement:
                    case ast.AnnAssign(annotation=ast.Name(id="object")):
                        yield statement, "a field of a dataclass must not be annotated as object: use Any"


def leaving_loops(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in ast.walk(tree):
        match node:
            case ast.With():
                guarded: list[ast.AST] = [*node.body]
            case ast.Try(finalbody=[_, *_]):
                guarded = [*node.body, *node.handlers, *node.orelse]
            case _:
                continue
        for leaving in _leaving(guarded):
            yield (
                leaving,
                "break and continue must not leave a `with` block, or a `try` block with `finally`: use a flag",
            )


def unknown_syntax(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in ast.walk(tree):
        match node:
            case ast.TryStar():
                yield node, "compiled modules must not use except*"
            case ast.Constant(value=str(text)) if any("\ud800" <= letter <= "\udfff" for letter in text):
                yield node, "a literal must not contain a lone surrogate: use chr()"
            case ast.Delete(targets=targets) if any(isinstance(one, ast.Attribute) for one in targets):
                yield node, "code must not delete an attribute: set it to None instead"


def no_dictionary(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="__dict__") | ast.Name(id="vars"):
                yield node, "an object of a compiled class has no __dict__, so vars() does not work"


def values_of_classes(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in classes:
            known = classes[node.value.id]
            if any(node.attr in _own_values(one) for one in (known, *_ancestors(known, classes))):
                yield (
                    node,
                    (
                        f"{node.attr} is a default value for objects of {known.name}, not a class attribute: "
                        "declare a ClassVar"
                    ),
                )


def held_weakly(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _last_name(node.value) in _WEAK:
            named = {each.id for each in ast.walk(node.slice) if isinstance(each, ast.Name)}
            for name in sorted(named & classes.keys()):
                yield node, f"{name} is a compiled class, so weak references to its objects are impossible"


def interpreted_subclasses(tree: ast.Module, classes: Classes) -> Iterator[Problem]:
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for base in (classes[name] for name in _names_of_bases(node) - own if name in classes):
                if not any("Protocol" in _names_of_bases(one) for one in (base, *_ancestors(base, classes))):
                    yield node, f"the interpreted class {node.name} must not derive from the compiled class {base.name}"


Rule = Callable[[ast.Module, Classes], Iterator[Problem]]
_RULES: tuple[Rule, ...] = (
    names_taken_by_c,
    nested_classes,
    several_bases,
    bodies_of_classes,
    fields_of_dataclasses,
    leaving_loops,
    unknown_syntax,
    no_dictionary,
)
# Interpreted modules also use compiled classes.
_RULES_FOR_ALL: tuple[Rule, ...] = (values_of_classes, held_weakly)
_RULES_FOR_OTHERS: tuple[Rule, ...] = (interpreted_subclasses,)


def _called(node: ast.expr) -> ast.expr:
    """`f` of `f` and `f(x)`."""
    return node.func if isinstance(node, ast.Call) else node


def _last_name(node: ast.expr) -> str:
    """`C` of `C`, `module.C` and `C[T]`."""
    match node:
        case ast.Subscript():
            return _last_name(node.value)
        case ast.Attribute():
            return node.attr
        case ast.Name():
            return node.id
    return ""


def _names_of_bases(node: ast.ClassDef) -> set[str]:
    return {_last_name(base) for base in node.bases}


def _outside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements at module level, including those under `if` and `try`."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            waiting += [each for each in ast.iter_child_nodes(statement) if isinstance(each, ast.stmt)]


def _classes_in(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not _names_of_bases(node) & _NOT_NATIVE:
            yield node


def _values_of(node: ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement


def _own_values(node: ast.ClassDef) -> set[str]:
    """The names of the values in a class body that become attributes of each object in the compiled class."""
    return {
        name
        for name, statement in _values_of(node)
        if getattr(statement, "value", None) is not None
        and not (isinstance(statement, ast.AnnAssign) and _last_name(statement.annotation) in _SHARED)
    }


def _ancestors(node: ast.ClassDef, classes: Classes) -> list[ast.ClassDef]:
    found: list[ast.ClassDef] = []
    for name in map(_last_name, node.bases):
        base = classes.get(name)
        if base is not None and base is not node:
            found += [base, *_ancestors(base, classes)]
    return found


def _leaving(statements: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Each `break` and `continue` whose loop is outside these statements."""
    for statement in statements:
        if isinstance(statement, ast.Break | ast.Continue):
            yield statement
        elif isinstance(statement, ast.For | ast.While):
            yield from _leaving(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef):
            yield from _leaving(list(ast.iter_child_nodes(statement)))
