"""Answers every request below `/console`.

This module lists the views, dispatches requests to their pages, signs users in and out, serves static files, and checks
every request. `views/` has the pages, `sessions.py` the sessions, and `doors/http/` the listeners.

Invariants: without a session, the console serves only the sign-in page, its style sheet and its icon. A change needs
the session's CSRF token, the same origin, and the right to change data. `handle` never raises, except for cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import quote, urlsplit

import structlog

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.router import unknown_url
from antiphon.console.reading import Reading
from antiphon.console.sessions import Session, Sessions
from antiphon.console.site import (
    ROOT,
    SECURITY,
    Bound,
    PageCall,
    asset,
    html,
    pages_of,
    read_form,
    redirect,
    refused,
    render,
)
from antiphon.console.views.background import BackgroundView
from antiphon.console.views.cache import PromptCacheView
from antiphon.console.views.doctor import DoctorView
from antiphon.console.views.files import FilesView
from antiphon.console.views.keys import KeySources, KeysView
from antiphon.console.views.models import ModelsView
from antiphon.console.views.playground import PlaygroundView
from antiphon.console.views.prompts import PromptsView
from antiphon.console.views.request import RequestView
from antiphon.console.views.requests import RequestsView
from antiphon.console.views.store_search import StoreSearchView
from antiphon.console.views.system import SystemView
from antiphon.console.views.threads import ThreadsView
from antiphon.console.views.unfinished import LiveView
from antiphon.console.views.vector_stores import VectorStoresView
from antiphon.engine.exchange.failure import refusal
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.errors import (
    ApiError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    StoreError,
    Unauthorized,
    store_refusal,
)

__all__ = ["Console"]

_log = structlog.get_logger(__name__)
_KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain",
}
_OPEN_ASSETS = frozenset({"console.css", "icon.svg"})
_SAFE = frozenset({"GET", "HEAD"})
_LONGEST_OWNER = 300
RUN_PATH = f"{ROOT}/run"


class ConsoleView(Protocol):
    """A group of pages. `nav` has the entries of the navigation, each with its label and its path."""

    @property
    def nav(self) -> Sequence[tuple[str, str]]: ...


class Console:
    """The console of one process. `acts`: whether operators may change the data of owners."""

    def __init__(self, reading: Reading, keys: KeySources, sessions: Sessions, *, acts: bool) -> None:
        self._reading = reading
        self._sessions = sessions
        self._acts = acts
        views = every_view(reading, keys)
        self._pages: tuple[Bound, ...] = tuple(page for view in views for page in pages_of(view))
        self._nav = tuple(one for view in views for one in view.nav)
        hidden = {bound.page.pattern for bound in self._pages if bound.page.operators}
        self._owner_nav = tuple(one for one in self._nav if one[1] not in hidden)

    @property
    def paths(self) -> tuple[str, ...]:
        """The patterns of all pages, with `{}` for each variable."""
        return tuple(dict.fromkeys(ROOT + bound.page.pattern for bound in self._pages))

    def reads_body(self, method: str, path: str) -> bool:
        """Whether the server must read the body of this request."""
        return method == "POST"

    def knows(self, request: ApiRequest) -> bool:
        """Whether the request has a valid session. Returns False also if Antiphon cannot read the client keys."""
        try:
            return self._sessions.find(request) is not None
        except ApiError:
            return False

    async def runs(self, request: ApiRequest) -> Caller:
        """Return the caller whose rights apply to a request that the playground runs. Raises `ApiError`."""
        session = self._sessions.find(request)
        if session is None:
            raise Unauthorized("Your session has ended. Sign in again.", code="signed_out")
        self._check_change(request, session, request.header("x-csrf-token") or "")
        if not session.is_operator:
            return self._sessions.caller(session)
        owner = _chosen_owner(request) or "console"
        try:
            await self._reading.note(session, "request run", request.request_id, owner)
        except StoreError as error:
            raise store_refusal(error, "The audit row of this request could not be stored") from None
        _log.info("console_run", owner=owner, request_id=request.request_id)
        return Caller(owner, "operator")

    async def handle(self, request: ApiRequest) -> ApiResponse:
        """Answer one request."""
        call: PageCall | None = None
        try:
            if request.path.startswith(f"{ROOT}/static/"):
                return self._static(request)
            session = self._sessions.find(request)
            if request.path == f"{ROOT}/sign-in":
                return self._sign_in(request, session)
            if session is None:
                return self._without_session(request)
            if request.path == f"{ROOT}/sign-out" and request.method == "POST":
                self._check_change(request, session, read_form(request).get("csrf", ""), acts=True)
                return redirect(f"{ROOT}/sign-in", (self._sessions.no_cookie(secure=_is_secure(request)),))
            may_act = self._acts or not session.is_operator
            nav = self._nav if session.is_operator else self._owner_nav
            user = NO_CALLER if session.is_operator else self._sessions.caller(session)
            if session.is_operator:
                _chosen_owner(request)
            call = PageCall(request, session, self._sessions.csrf(session), may_act, nav, read_form(request), user)
            response = await self._page(call)
        except ApiError as error:
            response = refused(call, error)
            if error.status >= 500:
                response = _failed(response, error)
        except StoreError as error:
            told = store_refusal(error, "The server could not read or change the stored data")
            response = _failed(refused(call, told), told)
        except Exception as error:
            _log.error("console_failed", request_id=request.request_id, error=type(error).__name__, exc_info=True)
            bug = InternalError("The console had an internal error. The log event 'console_failed' names the cause.")
            bug.cause = type(error).__name__
            response = _failed(refused(call, bug), bug)
        if request.method == "HEAD":
            return ApiResponse(response.status, response.headers, b"", None, response.failure)
        return response

    async def _page(self, call: PageCall) -> ApiResponse:
        request = call.request
        path = request.path.rstrip("/") or ROOT
        if path == ROOT:
            return redirect(call.link("/requests"))
        methods: list[str] = []
        for bound in self._pages:
            variables = bound.match(path)
            if variables is None:
                continue
            if bound.page.operators and not call.session.is_operator:
                continue
            if bound.page.method != ("GET" if request.method == "HEAD" else request.method):
                methods.append(bound.page.method)
                continue
            if request.method not in _SAFE:
                token = request.header("x-csrf-token") or call.form.get("csrf", "")
                self._check_change(request, call.session, token, acts=not bound.page.changes)
            elif not call.fragment and any(not value for _, value in request.query):
                # A browser also sends the empty fields of a filter's form.
                return redirect(_target(request, [pair for pair in request.query if pair[1]]))
            return await bound.handler(call, *variables)
        if methods:
            raise _other_method(tuple(dict.fromkeys(methods)))
        raise unknown_url(request.method, request.path)

    def _check_change(self, request: ApiRequest, session: Session, token: str, *, acts: bool = False) -> None:
        """Raise `ApiError` unless the request comes from a page of this session, and the session's user may change
        data. If `acts` is True, the request changes no owner's data, so every user may send the request."""
        if not _same_origin(request):
            raise ApiError(
                "The request comes from another site.", status=403, type="invalid_request_error", code="wrong_origin"
            )
        self._sessions.check_csrf(session, token)
        if session.is_operator and not self._acts and not acts:
            raise ApiError(
                "Operators can only read in this console. To allow changes, set 'console.act' to true, or start "
                "Antiphon with --console-act.",
                status=403,
                type="invalid_request_error",
                code="console_read_only",
            )

    def _without_session(self, request: ApiRequest) -> ApiResponse:
        made = self._sessions.of_gateway(request.caller)
        if made is not None and request.method in _SAFE:
            return redirect(_target(request), (self._sessions.cookie(made, secure=_is_secure(request)),))
        if request.header("hx-request") == "true" or request.header("accept") == "text/event-stream":
            away = ApiError("Your session has ended. Sign in again.", status=401, code="signed_out")
            return refused(None, away)
        if request.method not in _SAFE:
            return redirect(f"{ROOT}/sign-in")
        target = _target(request)
        more = f"?to={quote(target, safe='')}" if target != ROOT else ""
        return redirect(f"{ROOT}/sign-in{more}")

    def _sign_in(self, request: ApiRequest, session: Session | None) -> ApiResponse:
        target = next((value for name, value in request.query if name == "to"), "")
        if request.method in _SAFE:
            return self._sign_in_page(target) if session is None else redirect(_local(target))
        if request.method != "POST":
            raise _other_method(("GET", "POST"))
        form = read_form(request)
        target = form.get("to", "")
        if not _same_origin(request):
            return self._sign_in_page(target, "The form comes from another site. Load this page again.", 403)
        try:
            made = self._sessions.sign_in(form.get("token", ""), request.peer)
        except ApiError as error:
            _log.warning("console_sign_in_refused", code=error.code, peer=request.peer, request_id=request.request_id)
            return self._sign_in_page(target, error.message, error.status, error.headers)
        _log.info("console_signed_in", kind=made.kind, owner=made.owner[:12], name=made.name)
        return redirect(_local(target), (self._sessions.cookie(made, secure=_is_secure(request)),))

    def _sign_in_page(
        self, target: str, problem: str = "", status: int = 200, headers: Sequence[tuple[str, str]] = ()
    ) -> ApiResponse:
        values: dict[str, object] = {"keys": self._sessions.takes_keys, "gateway": self._sessions.by_gateway}
        page = render("sign_in.html", call=None, problem=problem, target=_local(target), **values)
        return html(page, status, tuple(headers))

    def _static(self, request: ApiRequest) -> ApiResponse:
        name = request.path.removeprefix(f"{ROOT}/static/")
        body = asset(name)
        if body is None or request.method not in _SAFE:
            raise unknown_url(request.method, request.path)
        if name not in _OPEN_ASSETS and self._sessions.find(request) is None:
            raise unknown_url(request.method, request.path)
        kind = _KINDS.get(name.rsplit(".", 1)[-1], "application/octet-stream")
        length = ("content-length", str(len(body)))
        cached = ("cache-control", "private, max-age=300")
        return ApiResponse(200, (("content-type", kind), length, cached, *SECURITY), body)


def _failed(response: ApiResponse, error: ApiError) -> ApiResponse:
    error.operation = error.operation or "console"
    return ApiResponse(response.status, response.headers, response.body, response.stream, refusal(error))


def _other_method(methods: Sequence[str]) -> ApiError:
    """Return the error for a method that a page does not have."""
    allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
    return MethodNotAllowed(
        f"This page allows only {', '.join(methods)}.", code="method_not_allowed", headers=(("allow", allowed),)
    )


def _same_origin(request: ApiRequest) -> bool:
    """Whether a page of the console sent this form. A browser names the form's site in the header `sec-fetch-site` or
    `origin`. Other programs send neither header, and the console accepts their forms."""
    site = request.header("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = request.header("origin")
    host = request.header("host") or request.header(":authority") or ""
    try:
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _chosen_owner(request: ApiRequest) -> str:
    """Return the owner whom an operator chose, or an empty text. Raises `InvalidRequest` for a text that cannot be an
    owner's id. Databases may refuse such a text."""
    owner = next((value for name, value in request.query if name == "owner"), "")
    if len(owner) > _LONGEST_OWNER or not owner.isprintable():
        raise InvalidRequest(
            f"The owner must be an id of at most {_LONGEST_OWNER} printable characters.",
            param="owner",
            code="wrong_owner",
        )
    return owner


def _target(request: ApiRequest, query: Sequence[tuple[str, str]] | None = None) -> str:
    """Return the path of the request with its query, or with `query`."""
    pairs = request.query if query is None else query
    text = "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)
    return request.path + (f"?{text}" if text else "")


def _local(target: str) -> str:
    """Return `target` if it is a page of the console, or else the console's first page. This check prevents a link to
    the sign-in page from sending the user to another site."""
    inside = target == ROOT or target.startswith((f"{ROOT}/", f"{ROOT}?"))
    return target if inside and target.isprintable() and "\\" not in target else ROOT


def _is_secure(request: ApiRequest) -> bool:
    return request.header("x-forwarded-proto") == "https" or request.header(":scheme") == "https"


def every_view(reading: Reading, keys: KeySources) -> tuple[ConsoleView, ...]:
    """Return all views, in the order of the navigation."""
    models = ModelsView(reading)
    return (
        LiveView(reading),
        RequestsView(reading),
        RequestView(reading),
        ThreadsView(reading),
        BackgroundView(reading),
        PlaygroundView(reading),
        PromptsView(reading),
        models,
        DoctorView(reading, models.show),
        FilesView(reading),
        VectorStoresView(reading),
        StoreSearchView(reading),
        PromptCacheView(reading),
        KeysView(keys),
        SystemView(reading),
    )
