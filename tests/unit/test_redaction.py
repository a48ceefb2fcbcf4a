"""What must not stand in a text for a client, and what must."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.redaction import redacted, without

SECRETS = [
    "sk-abcdefghijklmnop",
    "sk-proj-abc_DEF-123",
    "sk-ab************xyz",
    "hf_abcdefghijklmnop",
    "gsk_abcdefghijklmnop",
    "xai-abcdefghijklmnop",
    "AIzaSyA-abcdefghijklmnopq",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrst",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "0123456789abcdef0123456789abcdef",
    "AbCdEf0123456789AbCdEf0123456789AbCdEf0123456789",
    "org-AbCdEfGhIj",
    "proj_AbCdEfGhIj",
    "user_2abCDEF12345",
    # What follows is in two pieces: scanners of repositories take a whole one for somebody's key.
    "IQoJb3JpZ2luX2VjEBYaDHVubmFtZWQ/abc+def/0123",
    "dapi0123456789abcdef0123456789abcdef",
    "esecret_AbCdEf0123456789",
    "AbCdEf0123456789AbCdEf0123456789",
    "ghu_AbCdEf0123456789AbCdEf",
    "glptt-AbCdEf0123456789",
    "xapp-1-A0123-456-abcdef",
    "whsec_AbCdEf0123456789",
    "npm_AbCdEf0123456789AbCd",
    "dckr_pat_AbCdEf0123456789",
    "ant_abcdefghijklmnopqrstuvw-_yz",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("text", ["{}", "the key {} is wrong", '"{}".', "({})", "a={},b", "https://x.test/{}/y"])
def test_credentials_and_account_ids_go(secret: str, text: str) -> None:
    shown = redacted(text.format(secret), 1000)
    assert secret not in shown and secret[4:12] not in shown
    assert "[redacted]" in shown or "[path]" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer abcdef123456 is wrong", "Bearer [redacted] is wrong"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [redacted]"),
        ('{"authorization": "Bearer abc.def"}', '{"authorization": "[redacted]"}'),
        ("api_key=abcd1234", "api_key=[redacted]"),
        ("x-api-key: abcd-efgh", "x-api-key: [redacted]"),
        ("password: hunter2!", "password: [redacted]"),
        ("Incorrect API key provided: test-con****-key. See", "Incorrect API key provided: [redacted] See"),
        ("postgres://admin:hunter@db.example.com/x", "postgres://[redacted]@db.example.com/x"),
        ("https://b.s3.amazonaws.com/x?X-Sig=abc&y=1 expired", "https://b.s3.amazonaws.com/x?[redacted] expired"),
    ],
)
def test_credentials_go_by_what_stands_before_them(text: str, shown: str) -> None:
    assert redacted(text, 1000) == shown


@pytest.mark.parametrize(
    "address",
    [
        *("10.1.2.3", "127.0.0.1:8000", "192.168.0.9", "172.20.0.5:443", "169.254.169.254", "100.64.1.1"),
        *("http://localhost:11434/api/chat", "http://vllm:8000/v1", "https://llm.prod.svc.cluster.local/v1/x"),
        *("http://[::1]:8080/x", "api.corp.internal:9000", "redis://cache:6379/0"),
    ],
)
def test_internal_addresses_go(address: str) -> None:
    assert redacted(f"cannot reach {address} now", 1000) == "cannot reach [internal address] now"


@pytest.mark.parametrize(
    "path",
    [
        "/usr/lib/python3.11/site-packages/vllm/engine.py",
        "/home/me/x",
        "/app/server.js:10:5",
        "unix:/run/x.sock",
        "C:\\x\\y",
    ],
)
def test_file_paths_go(path: str) -> None:
    assert redacted(f"in {path}, sorry", 1000) == "in [path], sorry"


@pytest.mark.parametrize(
    "trace",
    [
        'Traceback (most recent call last):\n  File "/a/b.py", line 3, in f\n    x()\nValueError: y',
        '\n  File "engine.py", line 3\n',
        "\n    at Object.<anonymous> (server.js:10:5)\n    at next",
        "\ngoroutine 17 [running]:\nmain.main()",
        "thread 'main' panicked at src/main.rs:3:5",
    ],
)
def test_stack_traces_go(trace: str) -> None:
    assert redacted("It broke. " + trace, 1000) == "It broke."


@pytest.mark.parametrize(
    "text",
    [
        "The model `meta-llama/Llama-3.3-70B-Instruct-Turbo-Free` does not exist or you do not have access to it.",
        "The model `/models/llama` does not exist",
        "max_tokens: 4096 is over the limit of 2048 tokens",
        "token: 512",
        "This is basic information about a bearer token.",
        "Unknown field user_location, user_content and org_name",
        "Invalid 'messages[0].content[1].image_url': expected a string.",
        "You can find your API key at https://platform.openai.com/account/api-keys.",
        "Rate limit reached: Limit 30000, Used 29000, Requested 2000. Please try again in 1.2s.",
        "No tool output found for tool call call_abcdefghijklmnopqrstuvwx.",
        "Version 10.5.2 and either/or, and/or, 1/2",
        "Ungültige Anfrage: 模型不存在",
        "No response resp_0123456789abcdef0123456789abcdef0123456789abcdef of req_01HZX3K9Q2W4E6R8T0Y2U4I6O8",
        "The id 550e8400-e29b-41d4-a716-446655440000 is unknown",
        "accounts/fireworks/models/llama-v3p1-405b-instruct is not deployed",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1_5 and Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 are models",
        "The certificate begins with -----BEGIN CERTIFICATE-----",
        "Cookies are not used; the cookie is ignored",
    ],
)
def test_what_helps_a_user_stays(text: str) -> None:
    assert redacted(text, 1000) == text


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key=abc/d1234",
        "the key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEEd1234KEY is wrong",
        "a=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEEd1234KEY,b",
        "my-aws-secret-access-key: 'abc/d1234'",
        "Set-Cookie: session=abc/d1234; Path=/; HttpOnly",
        "cookie: theme=dark; session=abc/d1234",
        "-----BEGIN PRIVATE KEY-----\nMIIE\nabc/d1234\n-----END PRIVATE KEY----- was read",
        "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: a-b\nabc/d1234",
    ],
)
def test_what_a_name_or_a_frame_tells_goes(text: str) -> None:
    shown = redacted(text, 1000)
    assert "d1234" not in shown and "[redacted]" in shown


def test_however_long_a_text_is_it_takes_little_time() -> None:
    """Eight times the text takes about eight times the time, whatever regular expressions may stumble over."""
    pieces = (
        "a.",
        "http://",
        "bearer ",
        "secret=",
        "a-key ",
        "aB0/",
        "-----BEGIN PRIVATE KEY-----",
        "cookie: a;",
        "; b=c",
    )
    for piece in pieces:
        times = []
        for size in (10_000, 80_000):
            started = time.process_time()
            redacted(piece * (size // len(piece)), size)
            times.append(time.process_time() - started)
        assert times[1] < 24 * max(times[0], 0.002), (piece, times)


def test_a_text_is_one_line_and_has_a_limit() -> None:
    assert redacted(" a\r\n\tb\x00\x1b[31mc\u2028d ", 100) == "a b [31mc d"
    assert redacted("x" * 200, 100) == "x" * 99 + "…"
    assert "sk-" not in redacted("x" * 90 + " sk-" + "a" * 200, 100)


@given(
    st.text(max_size=300),
    st.sampled_from(["sk-", "hf_", "gsk_", "Bearer ", "api_key="]),
    st.text(alphabet=string.ascii_letters + string.digits, min_size=20, max_size=50),
    st.text(max_size=300),
)
def test_a_key_is_found_wherever_it_stands(before: str, prefix: str, key: str, after: str) -> None:
    key = "a1" + key
    assert key not in redacted(f"{before} {prefix}{key} {after}", 2_000)


@given(st.text())
def test_any_text_is_shown_on_one_line_within_the_limit(text: str) -> None:
    shown = redacted(text, 50)
    assert len(shown) <= 50 and not any(ord(char) < 32 for char in shown)
    assert redacted(shown, 50) == shown or "…" in shown or "[" in shown


_KNOWN = "kq7w-Zr4t-9XvB-2mLd-Yp8s-Hc6n"


@pytest.mark.parametrize("size", [11, 12, 13, 23])
def test_every_piece_of_twelve_letters_of_a_long_secret_is_found(size: int) -> None:
    letters = _KNOWN.replace("-", "")
    assert len(letters) == 24
    for at in range(len(letters) - size + 1):
        text = f"ünd <{letters[at : at + size]}> \ud800 {'.' * at}"
        assert (without(text, (_KNOWN,)) == text) is (size < 12), at
