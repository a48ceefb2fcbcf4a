"""Defines the routes, pages and forms of the console.

This module has the decorator that marks a handler with its route, and the class `PageCall`, whose objects the handlers
get. The module also renders the templates, and has the security headers of every answer. `views/` has the handlers, and
`sessions.py` the sessions.

Invariants: templates escape every value. The only HTML that a template inserts unescaped is the output of
`rich_text.py`. Every page forbids inline scripts, inline styles and frames.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode

import jinja2

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.console import formats, rich_text
from antiphon.console.charts import failed_tools
from antiphon.console.sessions import Session
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.transport import Headers

ROOT: Final = "/console"
LETTERS: Final = {"Prompts": "o", "Prompt cache": "c"}
"""The keyboard shortcuts of views whose first letter is the shortcut of another view."""
_CSP: Final = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
SECURITY: Final[Headers] = (
    ("content-security-policy", _CSP),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    # With "no-referrer" a browser would send the origin "null" with the forms of these pages.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)
NOT_CACHED: Final[Headers] = (("cache-control", "no-store"),)
_VARIABLE = re.compile(r"\{[^}]*\}")
_PAGES = "console_pages"
_Marked = TypeVar("_Marked", bound=Callable[..., Awaitable[ApiResponse]])


@dataclass(frozen=True, slots=True)
class PageRoute:
    """The route of a handler. If `changes` is true, the handler changes data: the request needs the CSRF token, and the
    user needs the right to change data. If `operators` is true, only operators may see the page."""

    method: str
    pattern: str
    changes: bool = False
    operators: bool = False

    def __call__(self, handler: _Marked) -> _Marked:
        setattr(handler, _PAGES, (*getattr(handler, _PAGES, ()), self))
        return handler


@dataclass(frozen=True, slots=True)
class Bound:
    """One page of the site: its route, the compiled pattern, and the handler."""

    page: PageRoute
    pattern: re.Pattern[str]
    handler: Callable[..., Awaitable[ApiResponse]]

    def match(self, path: str) -> tuple[str, ...] | None:
        """Return the decoded variables of the path, or None if the path does not belong to this page."""
        found = self.pattern.fullmatch(path)
        return tuple(map(unquote, found.groups())) if found is not None else None


def pages_of(view: object) -> Iterator[Bound]:
    """Yield all pages of a view, in the order of their definition."""
    for name in vars(type(view)):
        handler = getattr(view, name)
        for page in getattr(handler, _PAGES, ()):
            literal = map(re.escape, _VARIABLE.split(ROOT + page.pattern))
            yield Bound(page, re.compile("([^/]+)".join(literal)), handler)


@dataclass(frozen=True, slots=True)
class PageCall:
    """One request of a signed-in user."""

    request: ApiRequest
    session: Session
    csrf: str
    may_act: bool
    nav: Sequence[tuple[str, str]] = ()
    form: Mapping[str, str] = field(default_factory=dict)
    user: Caller = NO_CALLER
    """The signed-in owner with the rights of the owner's key. For an operator, `user` is empty."""

    @property
    def caller(self) -> Caller:
        """The caller of the API requests that the page sends: the signed-in owner, or the owner that an operator
        chose."""
        if self.session.is_operator or not self.user.owner:
            return Caller(self.owner)
        return self.user

    @property
    def owner(self) -> str:
        """The id of the owner whose data the page shows: the signed-in owner, or the owner that an operator chose. The
        id is empty if an operator sees the data of all owners."""
        return self.query("owner") if self.session.is_operator else self.session.owner

    @property
    def fragment(self) -> bool:
        """Whether the browser requests only a part of a page. The browser then replaces only this part of the page that
        it shows."""
        return self.request.header("hx-request") == "true"

    def query(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter, or `default` if it is missing."""
        return next((value for key, value in self.request.query if key == name), default)

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Return the value of a query parameter if it is one of `choices`, or else `default`."""
        chosen = self.query(name)
        return chosen if chosen in choices else default

    def number(self, name: str, default: int, *, least: int = 0, most: int = 1000) -> int:
        """Return the whole number in a query parameter, or `default` if the parameter is missing. Raises
        `InvalidRequest`."""
        text = self.query(name)
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and least <= int(text) <= most):
            raise InvalidRequest(f"'{name}' must be a whole number from {least} to {most}.", param=name)
        return int(text)

    def link(self, path: str, **changed: object) -> str:
        """Return a link to a page of the console. The link keeps the owner that an operator chose."""
        query = {"owner": self.query("owner")} if self.session.is_operator else {}
        query |= {name: str(value) for name, value in changed.items() if value is not None}
        query = {name: value for name, value in query.items() if value}
        return ROOT + path + ("?" + urlencode(query) if query else "")

    def same(self, *, path: str = "", **changed: object) -> str:
        """Return a link with the query parameters of this request, in which `changed` replaces some parameters. The
        link leads to this page, or to `path`. An empty value removes a parameter."""
        query = {name: value for name, value in self.request.query if name != "than"}
        query |= {name: str(value) for name, value in changed.items()}
        query = {name: value for name, value in query.items() if value}
        return (ROOT + path if path else self.request.path) + ("?" + urlencode(query) if query else "")

    def show(
        self,
        template: str,
        shared: Mapping[str, object] | None = None,
        /,
        *,
        status: int = 200,
        headers: Headers = (),
        **values: object,
    ) -> ApiResponse:
        """Render a template. The template's variables are `values`, the entries of `shared`, and `call`, which is this
        object."""
        return html(render(template, call=self, **(shared or {}), **values), status, headers)


def html(text: str, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """Return an answer with this HTML page."""
    body = text.encode(errors="replace")
    kind = (("content-type", "text/html; charset=utf-8"), ("content-length", str(len(body))))
    return ApiResponse(status, (*kind, *SECURITY, *NOT_CACHED, *headers), body)


def redirect(location: str, headers: Headers = ()) -> ApiResponse:
    """Send the browser to another page after a change."""
    return ApiResponse(303, (("location", location), ("content-length", "0"), *SECURITY, *NOT_CACHED, *headers), b"")


def read_form(request: ApiRequest, most: int = 200) -> dict[str, str]:
    """Return the fields of an HTML form. Raises `InvalidRequest`."""
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    try:
        fields = parse_qsl(request.body.decode(), keep_blank_values=True, max_num_fields=most)
    except ValueError:
        raise InvalidRequest("The form is not encoded correctly. Load the page again.", code="invalid_form") from None
    return dict(fields)


def render(template: str, **values: object) -> str:
    """Render a template of the console."""
    return _environment().get_template(template).render(**values)


@cache
def asset(name: str) -> bytes | None:
    """Return the bytes of a static file, or None if there is no such file. `name` is a file name without a path."""
    if not re.fullmatch(r"[a-z][a-zA-Z0-9.-]{0,63}", name):
        return None
    found = files("antiphon.console").joinpath("static", name)
    return found.read_bytes() if found.is_file() else None


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("antiphon.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= formats.FILTERS | {"markdown": rich_text.markdown, "json": rich_text.pretty_json}
    made.filters["failed_tools"] = failed_tools
    made.globals |= {"root": ROOT, "letter": letter}
    return made


def letter(label: str) -> str:
    """Return the letter that opens a view with the keyboard after `g`."""
    return LETTERS.get(label, label[0].lower())


def refused(call: PageCall | None, error: ApiError) -> ApiResponse:
    """Return the page that shows an error. The page shows only the error's public fields."""
    return html(render("error.html", call=call, error=error), error.status, error.headers)
