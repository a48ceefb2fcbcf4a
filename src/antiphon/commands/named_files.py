"""Whether the files that settings name can be used, before anything is started that needs them.

Lives here: the certificates of upstreams and of the sidecar's ports. Not here: what they are used for
(`app/trust.py`, `doors/tls.py`, `envoy/clusters.py`). A bootstrap for another machine (`envoy-config`) names files
that are not here: it is not checked.

Invariant: what cannot be used is a `ConfigError` that names the setting and the file, whichever door is open.
"""

from __future__ import annotations

from antiphon.app.trust import upstream_trust
from antiphon.config.settings import Settings
from antiphon.doors.tls import TlsFiles, check_readable


def check_named_files(settings: Settings) -> None:
    """Those that this machine needs for `antiphon up`. Raises `ConfigError`."""
    for name, upstream in settings.every_upstream.items():
        upstream_trust(name, upstream)
    if settings.door == "envoy":
        check_sidecar_files(settings)


def check_sidecar_files(settings: Settings) -> None:
    """Both sides of `sidecar.tls`. Raises `ConfigError`."""
    files = settings.sidecar.tls
    if files.cert is None or files.key is None:
        return
    TlsFiles(files.cert, files.key, files.client_ca).context("h2")
    for name in ("ca", "envoy_cert", "envoy_key"):
        if (file := getattr(files, name)) is not None:
            check_readable(f"sidecar.tls.{name}", file)
