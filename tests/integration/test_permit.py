"""Which addresses a tool may connect to, as the composition root puts it together."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.app.upstreams import make_permit
from antiphon.config.settings import load_settings
from antiphon.errors import ConfigError

PUBLIC = "93.184.215.14"


def _permit(registered: tuple[str, ...] = (), *names: Any, **fetch: Any) -> Any:
    """With a resolver that says what the test wants; a list is answered one after another."""
    known = dict(names)

    async def resolve(host: str, port: int) -> list[str]:
        found = known.get(host, [host] if host[0].isdigit() or ":" in host else [])
        if not found:
            raise OSError("no such name")
        return list(found.pop(0)) if isinstance(found[0], tuple) else list(found)

    settings = load_settings({"upstream": {"url": "http://127.0.0.1:1/v1"}, "fetch": fetch})
    return make_permit(settings, registered, resolver=lambda: resolve)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        [PUBLIC, "10.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["fd00::1"],
        ["fe80::1%eth0"],
        ["0.0.0.0"],
        ["nonsense"],
        [],
    ],
    ids=str,
)
async def test_names_of_private_addresses_are_refused(addresses: list[str]) -> None:
    permit = _permit((), ("a.example", addresses))
    with pytest.raises(OSError):
        await permit("a.example", 443, True, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254", "0.0.0.0"])
async def test_private_literals_are_refused(host: str) -> None:
    with pytest.raises(OSError):
        await _permit()(host, 443, True, False)


async def test_a_public_name_is_connected_to_at_the_address_that_was_judged() -> None:
    permit = _permit((), ("a.example", [(PUBLIC,), ("127.0.0.1",)]))
    assert await permit("a.example", 443, True, False) == PUBLIC
    # Each connection is judged anew: the name leads elsewhere now.
    with pytest.raises(OSError):
        await permit("a.example", 443, True, False)


async def test_plain_http_is_for_named_and_registered_hosts() -> None:
    names = (("a.example", [PUBLIC]), ("b.example", ["10.0.0.1"]))
    permit = _permit(("b.example",), *names)
    with pytest.raises(OSError):
        await permit("a.example", 80, False, False)
    assert await permit("b.example", 80, False, True) == "10.0.0.1"
    # What the operator registered is not open to what clients name.
    with pytest.raises(OSError):
        await permit("b.example", 443, True, False)
    # A redirect of a registered server leads nowhere private.
    with pytest.raises(OSError):
        await permit("169.254.169.254", 80, False, True)
    assert await _permit((), *names, allow_private=["b.example"])("b.example", 80, False, False)
    assert await _permit((), *names, http=True)("a.example", 80, False, False) == PUBLIC


async def test_names_that_are_none_are_refused() -> None:
    permit = make_permit(load_settings({"upstream": {"url": "http://127.0.0.1:1/v1"}}), ())
    for host in ("a" * 64 + ".example", "a..example", "2130706433", "0x7f.1", "127.1"):
        with pytest.raises(OSError):
            await permit(host, 443, True, False)


def test_a_wrong_exception_is_told() -> None:
    settings = load_settings({"upstream": {"url": "http://127.0.0.1:1/v1"}})
    with pytest.raises(ConfigError):
        make_permit(settings, ["https://a.example"])
