"""The system's authorities are read before a connection, and not before one is made."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys

import pytest

from antiphon import late_authorities

_READ = ssl.SSLContext.set_default_verify_paths


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """As a module that is imported would make one."""
    monkeypatch.setattr(late_authorities, "_waiting", [])
    with late_authorities.while_importing():
        return ssl.create_default_context()


def _has_authorities(context: ssl.SSLContext) -> bool:
    return context.cert_store_stats()["x509"] > 0


@pytest.fixture(autouse=True)
def _a_system_with_authorities() -> None:
    if not _has_authorities(ssl.create_default_context()):
        pytest.skip("this system trusts nobody")


def test_one_made_during_imports_has_none_yet(context: ssl.SSLContext) -> None:
    assert not _has_authorities(context)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_one_made_later_has_them_at_once(context: ssl.SSLContext) -> None:
    assert ssl.SSLContext.set_default_verify_paths is _READ
    assert _has_authorities(ssl.create_default_context())


def test_a_module_that_cannot_be_imported_changes_nothing_for_others() -> None:
    with pytest.raises(ImportError), late_authorities.while_importing():
        raise ImportError
    assert ssl.SSLContext.set_default_verify_paths is _READ


def test_a_connection_has_them_read(context: ssl.SSLContext) -> None:
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="example.com")
    assert _has_authorities(context)
    assert type(context) is ssl.SSLContext


async def test_they_can_be_read_ahead_of_it(context: ssl.SSLContext) -> None:
    await asyncio.gather(late_authorities.read_aside(), late_authorities.read_aside())
    assert _has_authorities(context)


def test_who_checks_no_certificates_needs_none_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_authorities, "_waiting", [])
    with late_authorities.while_importing():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_default_verify_paths()
    late_authorities.read()
    assert not _has_authorities(context)
    context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    assert _has_authorities(context)


def test_a_sidecar_starts_without_them() -> None:
    code = (
        "import antiphon.cli\n"
        "antiphon.cli.import_command('extproc')\n"
        "from aiohttp import connector\n"
        "from antiphon.late_authorities import read\n"
        "context = connector._SSL_CONTEXT_VERIFIED\n"
        "print(context.cert_store_stats()['x509'])\n"
        "read()\n"
        "print(context.cert_store_stats()['x509'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    before, after = map(int, ran.stdout.split())
    assert before == 0 < after
