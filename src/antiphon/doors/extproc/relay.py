"""One exchange whose model call Envoy makes: both directions are rewritten on one stream.

Lives here: which answers Envoy accepts when, and the timers of a relayed response. Not here: bytes (`wire.py`), and
every decision about the response (`engine/exchange.py`).

Rules kept here, verified against Envoy 1.40.0:

- The request goes out as a headers answer with the exact length and then its body; with request trailers the body
  ends without `end_of_stream`, and the trailers are answered instead (else the request hangs).
- No response body part goes out before the upstream's first body part (Envoy resets the stream), and the answer to
  the response headers waits for it, so that an early failure still gets its HTTP status.
- A response without a body takes ours only inside the headers answer. One with trailers but without a body takes it
  only as an immediate response. One with trailers ends with the trailers answer instead of `end_of_stream`.
- An event stream that is complete before the upstream's end (after `[DONE]`) is sent at once but ended with the
  upstream: ending it first would make Envoy drop the upstream's connection.
- After the first part anything may be sent at any time: keep-alive comments, and the end when the upstream falls silent.
- An upstream that breaks off cuts the client's stream without asking us; all we see is the end of our own stream.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Relay", "RelayTimeouts", "translate_local_reply"]

BACKEND_HEADER = "x-antiphon-backend"
# Of the upstream's headers, those that are about the client's account and not about the bytes. All others go: they
# describe a body that is rewritten, or the upstream itself. (`x-request-id` is ours.)
_KEPT_RESPONSE_HEADERS = ("x-ratelimit-",)


@dataclass(frozen=True, slots=True)
class RelayTimeouts:
    """Seconds: for the upstream's head, of silence in its body, and for its end after `[DONE]`."""

    head: float = 600.0
    idle: float = 300.0
    end: float = 1.0
