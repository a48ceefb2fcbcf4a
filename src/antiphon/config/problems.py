"""Formats errors about settings: the path of the wrong setting, advice, and how to install a missing package.

This module converts pydantic's errors into messages. For an unknown setting, the module suggests the most similar known
name, and masks the unknown name if it may be a secret. The message about a missing optional dependency ("extra") has
the command that installs it. `settings.py` checks the rules between settings, and `sources.py` finds the unknown names.

Invariants: no message repeats the value of a setting, because the value may be a misplaced secret. No message contains
pydantic's own text, which mentions Python types. The command that installs an extra names the packages of the extra,
not Antiphon. Therefore the command works even if Antiphon was installed from a checkout.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence

from pydantic import ValidationError

from antiphon.config.urls import shown_text
from antiphon.errors import ConfigError
from antiphon.redaction import KEYS

Place = tuple[str | int, ...]

MAPPING = "must be a mapping of settings (name: value)"
_WORDS = {
    "missing": "is missing, and has no default",
    "extra_forbidden": "is not a setting",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
    "bool": "must be true or false",
    "dict": MAPPING,
    "enum": "must be {expected}",
    "float": "must be a number",
    "int": "must be a whole number",
    "model": MAPPING,
    "path": "must be a path",
    "string": "must be a text; write quotes around a text that YAML would read as a number",
    "tuple": "must be a list; in YAML [a, b], in a variable a,b",
}
"""The error message for each error type of pydantic. A name like `int` covers all error types that begin with it
(`int_parsing`, `int_from_float`)."""
_OTHERWISE = "has a value that Antiphon cannot use; docs/reference/configuration.md lists the allowed values"
_OTHERWISE_IN_A_PACKAGE = (
    "has a value that its package cannot use; the package's documentation lists the allowed values"
)


class NotYaml(Exception):
    """Raised when a text is not YAML. The error message contains no part of the text."""


Words = Callable[[Place, str], str]
"""A function that filters an error message. Its arguments are the path of the setting and the message of a validator.
The function returns the part of the message that is safe to print."""


def lines_of(error: ValidationError, above: Place = (), rules_words: Words = lambda _, words: words) -> list[str]:
    """Convert `error` into one line for each wrong setting. Each line begins with the path of the setting. `above` is
    the path of the section that pydantic validated. `rules_words` filters the messages of validators that another
    package defines."""
    lines: list[str] = []
    otherwise = _OTHERWISE_IN_A_PACKAGE if above else _OTHERWISE
    for problem in error.errors(include_input=False, include_url=False):
        kind = problem["type"]
        form = _WORDS.get(kind) or _WORDS.get(kind.partition("_")[0], otherwise)
        try:
            words = form.format(**problem.get("ctx", {}))
        except (KeyError, ValueError):
            # A validator of another package may raise an error with one of pydantic's type names but with different
            # context values.
            words = otherwise
        if kind == "value_error":
            words = rules_words(problem["loc"], words)
        place = (*above, *problem["loc"])
        if place[-1:] == ("[key]",):
            # pydantic marks an error about a key of a mapping with "[key]".
            place, words = (*place[:-2], str(place[-2])), f"the name {words}"
        # A rule between settings may report several problems, one per line.
        said = without_keys(words).split("\n")
        lines += (f"{written_place(place)}: {line}" for line in said)
    return lines


def without_keys(words: str) -> str:
    """The message with `…` in place of texts that look like keys, and without credentials in URLs. The message of a
    rule between settings may repeat a name from the settings, and this name may be a misplaced key."""
    return KEYS.sub("…", shown_text(words))


def raise_wrong(wrong: Sequence[str]) -> None:
    """Raise a `ConfigError` with these messages, one per line. Do nothing if `wrong` is empty."""
    if len(wrong) > 1:
        raise ConfigError("\n  ".join((f"{len(wrong)} settings are wrong:", *wrong)))
    if wrong:
        raise ConfigError(wrong[0])


def written_place(parts: Sequence[str | int]) -> str:
    """The path of a setting as text (`models[0].match`). The result leaves out parts of a name that may be a secret."""
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{shown_name(part)}" if place else shown_name(part)
    return place or "settings"


def shown_name(name: object) -> str:
    """The part of an unknown name that is safe to print. YAML parses `{api_key:sk-…}` as one name, so only the part
    before the first colon, space or `=` is shown."""
    text = str(name)
    begin = re.split(r"[\s:=]", text, maxsplit=1)[0][:64]
    return begin if begin == text else f"{begin}…"


_USUAL = {
    "--port": "--listen HOST:PORT",
    "code_interpreter.enabled": "code_interpreter.sandbox",
    "mcp.servers": "mcp.connectors or mcp.allow",
}
"""Maps names of settings in other programs to Antiphon's names."""
_NOT_MEANT = {("--model", "--mode")}
_SEPARATORS = ("--", "ANTIPHON_", "__", ".", "/")
_CLOSE = 0.65


def advice(name: str, known: Iterable[str]) -> str:
    """Return the most similar known name as the end of an error message (`; did you mean …?`). Return an empty string
    if no known name is similar."""
    # Only error messages need this import.
    import difflib

    names = list(known)
    usual = _USUAL.get(name, "")
    if usual.partition(" ")[0] in names:
        return f"; did you mean {usual}?"
    for near in difflib.get_close_matches(name, names):
        # A common section prefix must not make two names more similar, so it is cut off.
        common = next(name[:end] for end in range(len(name), -1, -1) if near.startswith(name[:end]))
        cut = max(common.rfind(one) + len(one) if one in common else 0 for one in _SEPARATORS)
        close = difflib.SequenceMatcher(None, name[cut:], near[cut:]).ratio() >= _CLOSE
        if close and (name, near) not in _NOT_MEANT:
            return f"; did you mean {near}?"
    return ""


def how_to_install(extra: str) -> str:
    """Return a command or an instruction that installs the packages of the extra, without a final period."""
    # Only error messages need this import.
    from importlib.util import find_spec

    packages = " ".join(shlex.quote(one) for one in _packages(extra))
    if not packages:
        return f"install the packages of the extra '{extra}' in pyproject.toml"
    if find_spec("pip") is None:
        # An environment that uv created has no pip. The container image has no pip either.
        return f"install {packages} into {sys.prefix}; for a container image use the build argument EXTRAS"
    return f"{shlex.quote(sys.executable)} -m pip install {packages}"


def extra_missing(what: str, extra: str) -> ConfigError:
    """The error for a setting or command (`what`) that needs an extra which is not installed."""
    return ConfigError(f"{what} needs the extra '{extra}', which is not installed: {how_to_install(extra)}")


def _packages(extra: str) -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("antiphon") or []
    except PackageNotFoundError:
        return []
    of_extra = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [name.strip() for name, _, marker in (one.partition(";") for one in needed) if of_extra.search(marker)]
