"""Antiphon: the OpenAI Responses API in front of any Chat Completions server, as Envoy's sidecar or as an HTTP
server."""

__version__ = "0.1.0"


def compiled() -> bool:
    """Whether this process runs the compiled build. The compiled wheel has compiled modules in addition to their
    sources, and Python prefers them. With the pure wheel the sources run."""
    # Imported here: `antiphon health` starts every few seconds.
    from importlib.util import find_spec

    spec = find_spec("antiphon.ids")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
