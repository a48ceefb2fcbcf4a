"""The check of the admin token: what opens it, and how many failures a minute has."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from antiphon.api.credential_checks import AdminGuard, FailedAttempts
from antiphon.engine.ports.callers import AdminToken
from antiphon.errors import ApiError, Unauthorized
from antiphon.types.transport import Headers

TOKEN = "0123456789abcdef0123456789abcdef"
RIGHT: Headers = (("authorization", f"Bearer {TOKEN}"),)
WRONG: Headers = (("authorization", "Bearer other"),)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        WRONG,
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", "Bearer \udcff"),),
        (("x-authorization", f"Bearer {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN} x"),),
    ],
)
def test_only_the_bearer_token_opens(headers: Headers) -> None:
    guard = AdminGuard(AdminToken(TOKEN))
    guard.check(RIGHT)
    with pytest.raises(Unauthorized) as refused:
        guard.check(headers)
    assert refused.value.code == "invalid_admin_token" and TOKEN not in str(refused.value)


def test_a_minute_has_so_many_failures_and_one_line() -> None:
    now = 1000.0
    guard = AdminGuard(AdminToken(TOKEN), FailedAttempts(2, clock=lambda: now), clock=lambda: now)
    with capture_logs() as lines:
        for expected, wait in ((401, None), (401, None), (429, "60"), (429, "60")):
            with pytest.raises(ApiError) as refused:
                guard.check(WRONG)
            assert (refused.value.status, dict(refused.value.headers).get("retry-after")) == (expected, wait)
        now += 30.5
        with pytest.raises(ApiError) as refused:
            guard.check(WRONG)
        assert dict(refused.value.headers)["retry-after"] == "30"
        guard.check(RIGHT)
        assert len(lines) == 1
        now += 29.5
        with pytest.raises(Unauthorized):
            guard.check(WRONG)
    assert [line["event"] for line in lines] == ["admin_token_refused"] * 2


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((f"Bearer {TOKEN}",), True),
        ((TOKEN,), True),
        ((f"Token {TOKEN}",), True),
        (("Bearer other", f"Bearer {TOKEN}"), True),
        ((f"Bearer other, Bearer {TOKEN}",), True),
        ((f"Bearer {TOKEN}x",), False),
        (("Bearer \udcff",), False),
        ((), False),
    ],
)
def test_the_token_is_found_wherever_a_client_puts_it_into_authorization(values: tuple[str, ...], found: bool) -> None:
    assert AdminToken(TOKEN).is_in(tuple(("authorization", value) for value in values)) is found
