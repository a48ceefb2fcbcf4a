"""Antiphon: the OpenAI Responses API in front of any Chat Completions server, inside Envoy or beside it."""

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether this process runs the compiled build: that wheel has compiled modules beside their sources, and Python
    prefers those. The sources run where the pure wheel is installed in its place."""
    # Imported here: `antiphon health` starts every few seconds.
    from importlib.util import find_spec

    spec = find_spec("antiphon.ids")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
