"""The sidecar's TLS files and their settings: what cannot work is said before anything listens."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from antiphon.config.settings import Settings
from antiphon.doors.listening import TlsFiles
from antiphon.envoy.clusters import clusters
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.errors import ConfigError
from tests.support.certificates import Authority

_FILE = "/some/file.pem"


@pytest.mark.parametrize(
    "tls",
    [
        {"cert": _FILE},
        {"key": _FILE},
        {"client_ca": _FILE},
        {"ca": _FILE},
        {"cert": _FILE, "key": _FILE, "envoy_cert": _FILE},
        {"cert": _FILE, "key": _FILE, "envoy_key": _FILE},
    ],
    ids=lambda tls: "+".join(tls),
)
def test_halves_are_refused(tls: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"sidecar\.tls\."):
        Settings.model_validate({"sidecar": {"tls": tls}})


def test_files_that_cannot_be_used_are_a_config_error(tmp_path: Path) -> None:
    signed = Authority(tmp_path).sign("sidecar")
    other = Authority(tmp_path, "other").sign("another")
    (tmp_path / "empty").write_bytes(b"")
    for files in (
        TlsFiles(tmp_path / "missing", signed.key),
        TlsFiles(signed.cert, other.key),
        TlsFiles(signed.cert, tmp_path / "empty"),
        TlsFiles(signed.cert, signed.key, tmp_path / "empty"),
    ):
        with pytest.raises(ConfigError, match=r"sidecar\.tls"):
            files.contents()
    context = TlsFiles(signed.cert, signed.key, Authority(tmp_path).ca).context("h2")
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def _of_sidecar(place: str, **tls: str) -> list[dict[str, Any]]:
    sidecar = {"grpc": place, "http": place, "secret": "s", "tls": {"cert": _FILE, "key": _FILE, **tls}}
    settings = Settings.model_validate({"sidecar": sidecar})
    return clusters(settings, [SidecarEndpoint(place, place)], nowhere=False)[1:]


def test_envoy_checks_the_name_or_the_address() -> None:
    for place, kind in (("sidecar.internal:9000", "DNS"), ("10.0.0.7:9000", "IP_ADDRESS")):
        for cluster, protocol in zip(_of_sidecar(place, ca=_FILE), ("h2", "http/1.1"), strict=True):
            config = cluster["transport_socket"]["typed_config"]
            context = config["common_tls_context"]
            assert context["alpn_protocols"] == [protocol]
            assert context["validation_context"]["trusted_ca"] == {"filename": _FILE}
            (wanted,) = context["validation_context"]["match_typed_subject_alt_names"]
            assert wanted == {"san_type": kind, "matcher": {"exact": place.partition(":")[0]}}
            assert config.get("sni") == ("sidecar.internal" if kind == "DNS" else None)
            assert "tls_certificates" not in context


def test_a_unix_socket_needs_no_tls() -> None:
    assert all("transport_socket" not in cluster for cluster in _of_sidecar("unix:/run/sidecar.sock"))


def test_envoy_presents_its_certificate() -> None:
    for cluster in _of_sidecar("10.0.0.7:9000", ca=_FILE, client_ca=_FILE, envoy_cert="/e.pem", envoy_key="/e.key"):
        (own,) = cluster["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"]
        assert own == {"certificate_chain": {"filename": "/e.pem"}, "private_key": {"filename": "/e.key"}}
