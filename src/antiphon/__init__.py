"""Antiphon: the OpenAI Responses API in front of any Chat Completions server, inside Envoy or beside it."""

__version__ = "0.1.0"
