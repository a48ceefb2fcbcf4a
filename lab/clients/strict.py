"""What scenarios in Python need: to script the strict chat server, to see what it received, to compare.

Standard library only: it runs in the environment of the clients.
"""

import json
import os
import urllib.request

BASE_URL = os.environ["BASE_URL"]
UPSTREAM = os.environ["UPSTREAM_URL"]
HELLO = "Hello from the model."
# A red square of 8 by 8.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"


def script(*answers):
    """The chat server's next answers (`scripted_answers.py` tells their form); forgets what it received."""
    _open("/script", json.dumps(answers).encode())


def received():
    """The chat requests since the last script."""
    return _open("/received")


def left():
    """Waits, within bounds, until the gateway has left an answer that was still open; whether it has."""
    return _open("/left")


def cut():
    """Breaks off the answer that is held open."""
    _open("/cut", b"")


def same(got, want):
    """Assert that they are equal, and say what was got."""
    assert got == want, f"\n  got  {got!r}\n  want {want!r}"


def roles(chat):
    """The roles of a chat request's messages."""
    return [message["role"] for message in chat["messages"]]


def named(*functions):
    """The scenarios by name."""
    return {function.__name__: function for function in functions}


def _open(path, data=None):
    with urllib.request.urlopen(UPSTREAM + path, data, timeout=30) as answer:
        return json.load(answer)
