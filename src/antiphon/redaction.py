"""Removes secrets and internal details from upstream texts before a client sees them.

This module has patterns of credentials, account ids, internal addresses, file paths and stack traces. The module also
searches for known secrets (the gateway's keys, the client's token) in several encodings. `app/build.py` and the
exchange pass in the known secrets. `translation/answer/upstream_errors.py` decides which upstream texts clients see.

The search does not interpret a message, but removes every text that looks like a secret. Texts that help a user (model
names, parameter names, numbers, public URLs without their query) stay.

For known secrets, the search compares only letters and digits, and ignores case. Therefore the search finds a key in
upper case, split over two lines, quoted or with dashes. The search also finds a key in base64 (at any offset), in
hexadecimal digits, percent-encoded or with HTML escapes. The search finds a long key even if a text contains only
twelve consecutive characters of the key. Ordinary words may contain a key with fewer than eight characters, so the
search removes such a key only where it is a separate word.

Invariants: the running time is linear in the length of the text. The result of `redacted` is one line without control
characters. This module stores no secret. The functions return a text without a secret unchanged.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

KnownSecrets = tuple[str, ...]

_GONE: Final = "[redacted]"
_SHORT = 8
_LONG = 24
_PIECE = 12
_BLOCK = _PIECE // 2
_LEVELS: Final = 4
"""JSON within JSON escapes the escapes again. The search decodes this many levels."""
_ESCAPES: Final = r'\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]'
_ESCAPE: Final = re.compile(_ESCAPES)
_ESCAPE_BYTES: Final = re.compile(_ESCAPES.encode())
_NOT_ASCII: Final = re.compile(rb"\\u(?!00[0-7])[0-9a-fA-F]{4}")
_LETTERS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HTML: Final = re.compile("[\"&'<>]")
_LOWER: Final = bytes(range(256)).lower()
_OTHERS: Final = bytes(byte for byte in range(256) if not chr(byte).isalnum() or byte > 127)


def bearer_token(authorization: str | None) -> KnownSecrets:
    """The token of an Authorization header as a tuple of known secrets. The tuple is empty without a token."""
    token = (authorization or "").strip().rpartition(" ")[2]
    return (token,) if token else ()


def without(text: str, secrets: Iterable[str]) -> str:
    """The text with `[redacted]` in place of each secret in `secrets`."""
    return _cut(text, secret_spans(text, secrets))


def secret_spans(text: str, secrets: Iterable[str]) -> list[tuple[int, int]]:
    """The start and the end of each secret in the text."""
    gone: list[tuple[int, int]] = []
    # A first search in bytes is fast, but does not give positions in the text. Most texts contain no secret and need no
    # second search.
    quick = text.encode("utf-8", "surrogatepass").translate(_LOWER, _OTHERS)
    plain = ""
    places: list[int] = []
    for secret in secrets:
        for form in _forms(secret):
            if _may_have(quick, form):
                if not plain:
                    plain, places = _squeezed(text)
                gone += ((places[at], places[end - 1] + 1) for at, end in _found(form, plain))
        if len(secret) >= 4 and len(_squeezed(secret)[0]) < _SHORT:
            alone = rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])"
            gone += (match.span() for match in re.finditer(alone, text))
    return gone


def _cut(text: str, gone: list[tuple[int, int]]) -> str:
    """The text with `[redacted]` in place of these parts."""
    if not gone:
        return text
    kept, behind = [], 0
    for at, end in sorted(gone):
        if at >= behind:
            kept += [text[behind:at], _GONE]
        behind = max(behind, end)
    return "".join((*kept, text[behind:]))


def bytes_without(body: bytes, secrets: Iterable[str]) -> bytes:
    """Apply `without` to bytes that may not be valid UTF-8. Returns `body` itself if it contains no secret."""
    text = body.decode("utf-8", "surrogateescape")
    clean = without(text, secrets)
    return body if clean is text or clean == text else clean.encode("utf-8", "surrogateescape")


class SecretSearch:
    """Removes known secrets from many texts. A quick search of a text's bytes comes first, because `bytes_without`
    takes time for each letter of the text.

    The quick search finds each secret and its encodings. The quick search also finds any 23 consecutive letters and
    digits of a long secret, and some shorter parts. A search for all short parts of a secret would also find ordinary
    words. Both searches also find a secret whose characters are JSON escapes, also in JSON within JSON.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple([secret for secret in secrets if secret])
        needles: list[bytes] = []
        for secret in self._secrets:
            needles += [form.encode() for form in _forms(secret)]
            plain = _squeezed(secret)[0].encode()
            if len(plain) >= _LONG:
                needles += [plain[at : at + _PIECE] for at in range(0, len(plain) - _PIECE + 1, _PIECE)]
        self._needles = tuple(dict.fromkeys(needles))
        short = [secret for secret in self._secrets if len(secret) >= 4 and len(_squeezed(secret)[0]) < _SHORT]
        self._short = [secret.encode("utf-8", "surrogateescape") for secret in short]
        self._exact = not all(word.isascii() for word in self._short)

    def joined(self, secrets: Iterable[str]) -> SecretSearch:
        """A search for the secrets of this search and for these secrets."""
        more = SecretSearch(secrets)
        more._secrets += self._secrets
        more._needles += self._needles
        more._short += self._short
        more._exact = more._exact or self._exact
        return more

    @property
    def has_secrets(self) -> bool:
        """Whether there is any secret to search for."""
        return bool(self._secrets)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The start and the end of each known secret in the text, in order and without overlaps."""
        body = text.encode("utf-8", "surrogatepass")
        if "\\" in text and self._is_escaped_in(body):
            gone = [*secret_spans(text, self._secrets), *_escaped_spans(text, self._secrets)]
        elif self._may_be_in(body) or any(word in body for word in self._short):
            gone = secret_spans(text, self._secrets)
        else:
            return []
        merged: list[tuple[int, int]] = []
        for start, end in sorted(gone):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def clean(self, body: bytes) -> bytes:
        """The body without the known secrets. Returns `body` itself if it contains no secret."""
        if b"\\" in body and self._is_escaped_in(body):
            text = body.decode("utf-8", "surrogateescape")
            gone = [*secret_spans(text, self._secrets), *_escaped_spans(text, self._secrets)]
            body = _cut(text, gone).encode("utf-8", "surrogateescape")
        for word in self._short:
            if word in body:
                # As in `without`, the method removes a short secret only where it is a separate word. The search is
                # fast if the pattern begins with the word.
                literal = re.escape(word)
                body = re.sub(rb"%b(?<![A-Za-z0-9]%b)(?![A-Za-z0-9])" % (literal, literal), _GONE.encode(), body)
        return bytes_without(body, self._secrets) if self._may_be_in(body) else body

    def _may_be_in(self, body: bytes) -> bool:
        plain = body.translate(_LOWER, _OTHERS)
        return any(needle in plain for needle in self._needles)

    def _is_escaped_in(self, body: bytes) -> bool:
        """Whether the body may contain a secret after its JSON escapes are decoded."""
        for _ in range(_LEVELS if self._secrets else 0):
            # The needles are ASCII, and this replacement is much faster than decoding.
            inner = unescaped(body if self._exact else _NOT_ASCII.sub(b" ", body))
            if self._may_be_in(inner) or any(word in inner for word in self._short):
                return True
            if b"\\" not in inner:
                return False
            body = inner
        return False


def unescaped(body: bytes) -> bytes:
    """The body with its JSON escapes decoded once."""
    return _ESCAPE_BYTES.sub(lambda found: _MEANT.get(found[0]) or _meant_bytes(found[0]), body)


def _meant_bytes(escape: bytes) -> bytes:
    return _meant(escape.decode()).encode("utf-8", "surrogatepass")


def _meant(escape: str) -> str:
    """The character that one JSON escape, or a pair of escaped surrogates, stands for."""
    if escape[1] != "u":
        return _LETTERS.get(escape[1], escape[1])
    return bytes.fromhex(escape.replace("\\u", "")).decode("utf-16-be", "surrogatepass")


_MEANT: Final = {
    escape.encode(): _meant(escape).encode()
    for escape in (*(f"\\{one}" for one in '"\\/bfnrt'), *(f"\\u{code:04x}" for code in range(128)))
}


def _escaped_spans(text: str, secrets: KnownSecrets) -> list[tuple[int, int]]:
    """The start and the end of each secret that appears after the text's JSON escapes are decoded."""
    gone: list[tuple[int, int]] = []
    places = [(at, at + 1) for at in range(len(text))]
    for _ in range(_LEVELS):
        letters: list[str] = []
        inner: list[tuple[int, int]] = []
        behind = 0
        for found in _ESCAPE.finditer(text):
            letters += [text[behind : found.start()], _meant(found[0])]
            whole = (places[found.start()][0], places[found.end() - 1][1])
            inner += [*places[behind : found.start()], *([whole] * len(letters[-1]))]
            behind = found.end()
        if not letters:
            break
        text, places = "".join((*letters, text[behind:])), [*inner, *places[behind:]]
        gone += ((places[at][0], places[end - 1][1]) for at, end in secret_spans(text, secrets))
    return gone


def _squeezed(text: str) -> tuple[str, list[int]]:
    """The letters and digits of the text in lower case, and the index of each in the text."""
    places = [at for at, letter in enumerate(text) if letter.isascii() and letter.isalnum()]
    return "".join([text[at] for at in places]).lower(), places


def _forms(secret: str) -> list[str]:
    """The encodings in which the secret may occur, reduced to lower-case letters and digits. The list is empty if the
    secret is too short to be recognized inside other text."""
    plain = _squeezed(secret)[0]
    if len(plain) < _SHORT:
        return []
    raw = secret.encode("utf-8", "surrogateescape")
    written = [raw.hex(), quote(secret, safe="", errors="replace"), *_in_html(secret)]
    for lead in range(3):
        # The secret may start at any offset of the encoded data, so the loop cuts off the characters that encode
        # neighbouring bytes.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(lead) + raw).decode().rstrip("=")
            written.append(text[0 if not lead else lead + 1 : len(text) - (len(raw) + lead) % 3])
    forms = dict.fromkeys((plain, *(_squeezed(text)[0] for text in written)))
    return [form for form in forms if len(form) >= _SHORT]


def _in_html(secret: str) -> list[str]:
    """The secret as libraries write it in HTML. Only a secret with quotes, `&`, `<` or `>` differs there."""
    if not _HTML.search(secret):
        return []
    quotes = [(double, single) for double in ("quot", "#34") for single in ("#39", "#x27", "apos")]
    tables = [{'"': double, "'": single, "&": "amp", "<": "lt", ">": "gt"} for double, single in quotes]
    tables += [{letter: f"#{base}{ord(letter):{base or 'd'}}" for letter in tables[0]} for base in ("", "x")]
    return [secret.translate({ord(letter): f"&{name};" for letter, name in table.items()}) for table in tables]


def _may_have(plain: bytes, form: str) -> bool:
    """Whether a text that is reduced to lower-case letters and digits may contain the encoded secret `form`, or a part
    of a long encoded secret."""
    if len(form) < _LONG:
        return form.encode() in plain
    # Each part of a long secret for which `_found` looks contains at least one of these blocks.
    return any(form[at : at + _BLOCK].encode() in plain for at in range(0, len(form) - _BLOCK + 1, _BLOCK))


def _found(form: str, plain: str) -> list[tuple[int, int]]:
    if len(form) < _LONG:
        return [match.span() for match in re.finditer(re.escape(form), plain)]
    pieces = {form[at : at + _PIECE] for at in range(len(form) - _PIECE + 1)}
    return [(at, at + _PIECE) for at in range(len(plain) - _PIECE + 1) if plain[at : at + _PIECE] in pieces]


_END: Final = r"[A-Za-z0-9_\-*.…]"

_TRACE: Final = re.compile(
    r"Traceback \(most recent call last\)|Stack ?trace:|\n[ \t]{0,8}File \"[^\"\n]{1,500}\", line \d"
    r"|\n[ \t]{1,8}at [^\n]{1,300}:\d|\ngoroutine \d|\bthread '[^'\n]{1,100}' panicked at",
    re.IGNORECASE,
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_URL_SECRETS: Final = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://)[^\s/@\"'<>]{1,400}@", re.IGNORECASE)
_URL_QUERY: Final = re.compile(r"(\bhttps?://[^\s?\"'<>`)]{1,2000})\?[^\s\"'<>`)]+", re.IGNORECASE)
_HEADER: Final = re.compile(
    r"(\b(?:proxy-)?authorization\b[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(?:(?:bearer|basic|token)\s{1,3})?[^\s\"',;]{4,}",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(
    r"(\b(?:bearer|basic)\s{1,3})(?=[A-Za-z]{0,200}[0-9._~+/=*-])[A-Za-z0-9._~+/=*-]{8,}", re.IGNORECASE
)
_NAMED: Final = re.compile(
    r"(\b(?:[a-z0-9]{1,20}[-_ ]){0,3}(?:api[-_ ]?key|access[-_ ]?key|secret|secret[-_ ]?key|auth[-_ ]?token"
    r"|access[-_ ]?token|token|password|passwd|pwd|signature|sig)\b(?: provided| given| received| is)?"
    r"[\"']?\s{0,3}[:=]\s{0,3}[\"'<`]?)"
    r"(?=[^\s\"'<>`,;&)]{0,200}[0-9*_-])[^\s\"'<>`,;&)]{4,}",
    re.IGNORECASE,
)
_CLIENT_KEY: Final = r"ant_[A-Za-z0-9_-]{20,}"
# A leading lookahead is faster than \b: the regex engine skips non-letters, and checks the lookbehind only at letters.
KEYS: Final = re.compile(
    rf"(?=[A-Za-z])(?<![A-Za-z0-9_])(?:(?:sk|pk|rk|hf|gsk|xai|r8|fw|csk|pplx|nvapi|tgp|dop|gh[opsru]|github_pat|gl(?:pat|ptt|dt|rt|ft|soat|cbt|imt)"
    rf"|xox[abeoprs]|xapp|lsv2|psk|esecret|whsec|npm|dckr_pat|shp(?:at|ss))[-_]{_END}{{6,}}"
    rf"|{_CLIENT_KEY}|AIza{_END}{{16,}}|ya29\.{_END}{{8,}}|(?:AKIA|ASIA)[0-9A-Z]{{12,}}|dapi[0-9a-f]{{32}}"
    r"|(?:FwoG|FQoG|IQoJ)[A-Za-z0-9+/]{16,}={0,2}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)"
)
"""Matches API keys that begin with the prefix of their provider, and the client keys that Antiphon creates."""
SHORTEST_KEY: Final = 9
"""The length of the shortest text that `KEYS` can match."""
_OWN_KEYS: Final = re.compile(rf"(?<![A-Za-z0-9_]){_CLIENT_KEY}")
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN[A-Z0-9 ]{0,40} PRIVATE KEY-----(?:.*?-----END[A-Z0-9 ]{0,40} PRIVATE KEY-----|.*)"
)
_COOKIE: Final = re.compile(
    r"(\b(?:set-)?cookie\b[\"']?\s{0,3}[:=]\s{0,3}[\"']?)[^\s\"';,]{4,}(?:;\s?[^\s\"';,=]{1,100}(?:=[^\s\"';,]{0,4000})?){0,30}",
    re.IGNORECASE,
)
_ACCOUNTS: Final = re.compile(
    r"\b(?:org-[A-Za-z0-9]{6,}|proj_[A-Za-z0-9]{6,}"
    r"|(?:user|acct|team|tenant|account|workspace|org|organization)[-_](?=[A-Za-z]*[0-9])[A-Za-z0-9]{8,})\b"
)
# Azure's keys are 32 hexadecimal digits. Keys of other providers are 32 or more mixed letters and digits, or 40 or more
# mixed characters. AWS secret keys are 40 characters of base64.
_RANDOM: Final = re.compile(
    r"\b(?:[0-9a-f]{32,}|[0-9A-F]{32,}|(?=[A-Za-z_-]{0,60}[0-9])(?=[a-z0-9_-]{0,60}[A-Z])(?=[A-Z0-9_-]{0,60}[a-z])"
    r"[A-Za-z0-9_-]{40,}|(?=(?:[A-Za-z]{0,30}[0-9]){3})(?=[a-z0-9]{0,60}[A-Z])(?=[A-Z0-9]{0,60}[a-z])[A-Za-z0-9]{32,})"
    r"|(?<![A-Za-z0-9/+_.-])(?=[A-Za-z/+]{0,39}[0-9])(?=[a-z0-9/+]{0,39}[A-Z])(?=[A-Z0-9/+]{0,39}[a-z])"
    r"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-])"
)
_PRIVATE_HOST: Final = (
    r"(?:localhost|(?:10|127)(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}|169\.254(?:\.\d{1,3}){2}"
    r"|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])(?:\.\d{1,3}){2}"
    r"|\[[0-9a-fA-F:]*:[0-9a-fA-F:.]*\]"
    r"|(?:[A-Za-z0-9_-]{1,63}\.){1,8}(?:internal|local|localdomain|svc|lan|corp|intranet|intra|private|home|consul|cluster))"
)
_INTERNAL: Final = re.compile(
    rf"(?:\b[a-z][a-z0-9+.-]{{1,20}}://(?:{_PRIVATE_HOST}|[A-Za-z0-9_-]{{1,63}}(?=[:/\s\"'<>`),]|$))|(?<![\w.-]){_PRIVATE_HOST})"
    r"(?![\w-]|\.\w)(?::\d{1,5})?(?:/[^\s\"'<>`),]*)?",
    re.IGNORECASE,
)
_PATHS: Final = re.compile(
    r"(?<![\w/.:~-])(?:/(?:usr|opt|home|root|app|apps|var|etc|srv|mnt|data|tmp|workspace|build|lib|proc|run|private|code"
    r"|Users|site-packages|dist-packages|nix|snap|secrets?)/[^\s\"'<>`,;)]{1,500}|unix:[^\s\"'<>`,;)]{1,300}"
    r"|[A-Za-z]:\\[^\s\"'<>`,;)]{1,500})"
)
_IN_ORDER: Final = (
    (_PRIVATE_KEY, _GONE),
    (_URL_SECRETS, rf"\1{_GONE}@"),
    (_INTERNAL, "[internal address]"),
    (_URL_QUERY, rf"\1?{_GONE}"),
    (_PATHS, "[path]"),
    (KEYS, _GONE),
    (_COOKIE, rf"\1{_GONE}"),
    (_HEADER, rf"\1{_GONE}"),
    (_SCHEME, rf"\1{_GONE}"),
    (_NAMED, rf"\1{_GONE}"),
    (_ACCOUNTS, _GONE),
    (_RANDOM, _GONE),
)


def without_client_keys(text: str) -> str:
    """The text with `[redacted]` in place of each client key that Antiphon created (`ant_…`)."""
    return _OWN_KEYS.sub(_GONE, text) if "ant_" in text else text


def without_credentials(text: str, search: SecretSearch) -> str:
    """The text with `[redacted]` in place of each API key and of each secret of `search`. If the text is
    percent-encoded and contains such a key, the result is decoded."""
    plain = unquote(text) if "%" in text else text
    for form in (text, plain):
        clean = KEYS.sub(_GONE, _cut(form, search.spans(form)))
        if clean != form:
            text = clean
    return text


def redacted(text: str, limit: int, secrets: KnownSecrets = ()) -> str:
    """The text without secrets and internal details, on one line of at most `limit` characters. `secrets` are the known
    secrets."""
    # The search covers twice as much text as the result keeps, so it finds a whole secret at the cut.
    text = without(text[: 2 * limit], secrets)
    trace = _TRACE.search(text)
    if trace is not None:
        text = text[: trace.start()]
    text = _CONTROL.sub(" ", text)
    for pattern, instead in _IN_ORDER:
        text = pattern.sub(instead, text)
    text = text.strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
