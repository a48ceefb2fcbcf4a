"""Defines the routes, pages and forms of the console.

Lives here: the decorator that marks a handler with its route, and the object `PageCall` that a handler gets. The module
also renders the templates, and has the security headers of every answer. Not here: the handlers (`views/`), sessions
(`sessions.py`).

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
from antiphon.console.sessions import Session
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.transport import Headers

ROOT: Final = "/console"
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
    """The route of a handler. `changes`: the handler changes data, so its request needs the CSRF token, and the user
    needs the right to change data. `operators`: only operators may see the page."""

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
        """The decoded variables of the path, or None if the path is another page's."""
        found = self.pattern.fullmatch(path)
        return tuple(map(unquote, found.groups())) if found is not None else None


def pages_of(view: object) -> Iterator[Bound]:
    """All pages of a view, in the order of their definition."""
    for name in vars(type(view)):
        handler = getattr(view, name)
        for page in getattr(handler, _PAGES, ()):
            literal = map(re.escape, _VARIABLE.split(ROOT + page.pattern))
            yield Bound(page, re.compile("([^/]+)".join(literal)), handler)


@dataclass(frozen=True, slots=True)
class PageCall:
    """One request of a signed-in user. `owner` is the owner whose data the pages show: the user, or the owner that an
    operator chose. `owner` is empty for an operator who looks at all owners."""

    request: ApiRequest
    session: Session
    csrf: str
    may_act: bool
    nav: Sequence[tuple[str, str]] = ()
    form: Mapping[str, str] = field(default_factory=dict)
    user: Caller = NO_CALLER
    """The caller in whose name an owner's session acts, with the rights of its key."""

    @property
    def caller(self) -> Caller:
        """The caller of the page's API calls: the user, or the owner that an operator chose."""
        if self.session.is_operator or not self.user.owner:
            return Caller(self.owner)
        return self.user

    @property
    def owner(self) -> str:
        """The id of the owner whose data the page shows. Empty if the page shows the data of all owners."""
        return self.query("owner") if self.session.is_operator else self.session.owner

    @property
    def fragment(self) -> bool:
        """Whether the browser requests only a part of a page, which replaces a part of the shown page."""
        return self.request.header("hx-request") == "true"

    def query(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return next((value for key, value in self.request.query if key == name), default)

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """The value of a query parameter if it is one of `choices`, or else `default`."""
        chosen = self.query(name)
        return chosen if chosen in choices else default

    def number(self, name: str, default: int, *, least: int = 0, most: int = 1000) -> int:
        """The whole number in a query parameter. Raises `InvalidRequest`."""
        text = self.query(name)
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and least <= int(text) <= most):
            raise InvalidRequest(f"'{name}' must be a whole number from {least} to {most}.", param=name)
        return int(text)

    def link(self, path: str, **changed: object) -> str:
        """A link to a page of the console, with the chosen owner."""
        query = {"owner": self.query("owner")} if self.session.is_operator else {}
        query |= {name: str(value) for name, value in changed.items() if value is not None}
        query = {name: value for name, value in query.items() if value}
        return ROOT + path + ("?" + urlencode(query) if query else "")

    def same(self, *, path: str = "", **changed: object) -> str:
        """A link to this page, or to the page `path`, with some query parameters replaced. An empty value removes a
        parameter."""
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
        """Render a template. Its variables are `values`, those in `shared`, and this call as `call`."""
        return html(render(template, call=self, **(shared or {}), **values), status, headers)


def html(text: str, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """The answer with this page."""
    body = text.encode(errors="replace")
    kind = (("content-type", "text/html; charset=utf-8"), ("content-length", str(len(body))))
    return ApiResponse(status, (*kind, *SECURITY, *NOT_CACHED, *headers), body)


def redirect(location: str, headers: Headers = ()) -> ApiResponse:
    """Send the browser to another page after a change."""
    return ApiResponse(303, (("location", location), ("content-length", "0"), *SECURITY, *NOT_CACHED, *headers), b"")


def read_form(request: ApiRequest, most: int = 200) -> dict[str, str]:
    """The fields of an HTML form. Raises `InvalidRequest`."""
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
    """The bytes of a static file, or None. `name` is a plain file name."""
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
    made.globals |= {"root": ROOT}
    return made


def refused(call: PageCall | None, error: ApiError) -> ApiResponse:
    """The page of an error. Only the error's public fields appear."""
    return html(render("error.html", call=call, error=error), error.status, error.headers)
