"""Helpers for Python scenarios: they script the strict chat server, read its received requests, and compare values.

The module needs only the standard library, because it runs in the environment of the clients.
"""

import json
import os
import urllib.request

BASE_URL = os.environ["BASE_URL"]
UPSTREAM = os.environ["UPSTREAM_URL"]
HELLO = "Hello from the model."
# A red PNG image of 8 by 8 pixels.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"


def script(*answers):
    """Set the chat server's next answers (`scripted_answers.py` defines their form), and clear its received
    requests."""
    _open("/script", json.dumps(answers).encode())


def received():
    """The chat requests since the last `script`."""
    return _open("/received")


def left():
    """Whether the gateway closed the chat server's open answer. Waits for this, with a time limit."""
    return _open("/left")


def cut():
    """Break off the chat server's open answer."""
    _open("/cut", b"")


def same(got, want):
    """Assert that two values are equal. The error message has the actual value."""
    assert got == want, f"\n  got  {got!r}\n  want {want!r}"


def roles(chat):
    """The roles of a chat request's messages."""
    return [message["role"] for message in chat["messages"]]


def named(*functions):
    """The scenario functions by name."""
    return {function.__name__: function for function in functions}


def _open(path, data=None):
    with urllib.request.urlopen(UPSTREAM + path, data, timeout=30) as answer:
        return json.load(answer)
