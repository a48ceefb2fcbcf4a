"""Antiphon: the OpenAI Responses API in front of any Chat Completions server, as Envoy's sidecar or as an HTTP
server."""

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether this process runs compiled modules. The compiled wheel contains compiled modules next to their Python
    sources, and Python imports the compiled ones. The pure wheel contains only the sources."""
    # Imported in the function, because `antiphon health` starts every few seconds and does not need it.
    from importlib.util import find_spec

    spec = find_spec("antiphon.ids")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
