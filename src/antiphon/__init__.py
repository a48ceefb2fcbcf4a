"""Antiphon offers the OpenAI Responses API in front of any Chat Completions server. Antiphon runs as Envoy's sidecar or
as an HTTP server."""

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether this process runs compiled modules. The compiled wheel contains compiled modules next to their Python
    sources, and Python imports the compiled modules. The pure-Python wheel contains only the sources."""
    # The import is inside the function, because `antiphon health` starts every few seconds and does not need
    # `find_spec`.
    from importlib.util import find_spec

    spec = find_spec("antiphon.ids")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
