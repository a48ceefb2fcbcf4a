"""Secrets that are known exactly: the gateway's own keys, and the token that a client's call carries.

Lives here: finding them in somebody else's text, in whatever form they stand there. Not here: what only looks like a
secret (`redaction.py`), which secrets there are (`app/build.py` reads the settings, the exchange knows its client).

Letters and digits alone are compared, without case: so a key is found that was shouted, broken in two lines, quoted or
dressed with dashes, and one that was encoded (base64 at any offset, hexadecimal, percent signs) by the same search. Of
a long key twelve characters in a row are enough. A key of under eight is no secret that could be told from a word; it
goes where it stands alone.

Invariants: nothing here keeps a secret; a text without one comes back as it was.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from urllib.parse import quote

KnownSecrets = tuple[str, ...]

_GONE = "[redacted]"
_SHORT = 8
_LONG = 24
_PIECE = 12


def bearer_token(authorization: str | None) -> KnownSecrets:
    """The token in an Authorization header, as a list of known secrets."""
    token = (authorization or "").strip().rpartition(" ")[2]
    return (token,) if token else ()


def without(text: str, secrets: Iterable[str]) -> str:
    """The text without these secrets."""
    gone: list[tuple[int, int]] = []
    plain, places = _squeezed(text)
    for secret in secrets:
        for form in _forms(secret):
            gone += ((places[at], places[end - 1] + 1) for at, end in _found(form, plain))
        if len(secret) >= 4 and len(_squeezed(secret)[0]) < _SHORT:
            alone = rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])"
            gone += (match.span() for match in re.finditer(alone, text))
    if not gone:
        return text
    kept, behind = [], 0
    for at, end in sorted(gone):
        if at >= behind:
            kept += [text[behind:at], _GONE]
        behind = max(behind, end)
    return "".join((*kept, text[behind:]))


def bytes_without(body: bytes, secrets: Iterable[str]) -> bytes:
    """The same for bytes that may be no text; untouched when there is none."""
    text = body.decode("utf-8", "surrogateescape")
    clean = without(text, secrets)
    return body if clean is text or clean == text else clean.encode("utf-8", "surrogateescape")


def _squeezed(text: str) -> tuple[str, list[int]]:
    """Its letters and digits in lower case, and where each stood."""
    places = [at for at, letter in enumerate(text) if letter.isascii() and letter.isalnum()]
    return "".join([text[at] for at in places]).lower(), places


def _forms(secret: str) -> list[str]:
    """How the secret may be written, squeezed; empty when it is too short to be known again."""
    plain = _squeezed(secret)[0]
    if len(plain) < _SHORT:
        return []
    raw = secret.encode("utf-8", "surrogateescape")
    written = [raw.hex(), quote(secret, safe="", errors="replace")]
    for lead in range(3):
        # Wherever it stands in what was encoded: the characters that depend on its neighbours are left out.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(lead) + raw).decode().rstrip("=")
            written.append(text[0 if not lead else lead + 1 : len(text) - (len(raw) + lead) % 3])
    forms = dict.fromkeys((plain, *(_squeezed(text)[0] for text in written)))
    return [form for form in forms if len(form) >= _SHORT]


def _found(form: str, plain: str) -> list[tuple[int, int]]:
    if len(form) < _LONG:
        return [match.span() for match in re.finditer(re.escape(form), plain)]
    pieces = {form[at : at + _PIECE] for at in range(len(form) - _PIECE + 1)}
    return [(at, at + _PIECE) for at in range(len(plain) - _PIECE + 1) if plain[at : at + _PIECE] in pieces]
