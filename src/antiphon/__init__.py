"""Antiphon: the OpenAI Responses API in front of any Chat Completions server, inside Envoy or beside it."""

from antiphon.pure import leave_compiled_aside

__version__ = "0.1.0"

leave_compiled_aside()
