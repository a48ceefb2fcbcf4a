"""Sealed texts: they open for whom and what they were made for, and for nothing else."""

from __future__ import annotations

import base64
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.app.keys import make_sealer
from antiphon.config.settings import load_settings
from antiphon.errors import ConfigError, InvalidRequest
from antiphon.local_keys import local_key
from antiphon.sealing import Sealer

PAYLOAD = b'{"text":"the model thought about \xc3\xa9","details":null}'


def fixed(count: int) -> bytes:
    return bytes(range(count))


def refused(sealer: Sealer, text: str, owner: str = "ann", kind: str = "reasoning") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        sealer.open(owner, kind, text, param="input[2].encrypted_content")
    assert caught.value.code == "invalid_encrypted_content"
    assert caught.value.param == "input[2].encrypted_content"
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("payload", [b"", b"x", PAYLOAD, PAYLOAD * 10_000, bytes(range(256))])
def test_what_was_sealed_opens(payload: bytes) -> None:
    sealer = Sealer([b"secret"])
    assert sealer.open("ann", "reasoning", sealer.seal("ann", "reasoning", payload)) == payload


def test_a_sealed_text_is_url_safe_and_hides_its_content() -> None:
    sealer = Sealer([b"secret"])
    text = sealer.seal("ann", "reasoning", PAYLOAD * 100)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert len(text) < len(PAYLOAD) * 10, "it is compressed"
    blob = base64.urlsafe_b64decode(text.removeprefix("as1_") + "==")
    assert b"thought" not in blob and b"ann" not in blob and zlib.compress(PAYLOAD * 100)[:8] not in blob


def test_two_seals_of_one_payload_differ_unless_randomness_is_fixed() -> None:
    sealer = Sealer([b"secret"])
    assert sealer.seal("ann", "reasoning", PAYLOAD) != sealer.seal("ann", "reasoning", PAYLOAD)
    one, two = (Sealer([b"secret"], random_bytes=fixed) for _ in range(2))
    assert one.seal("ann", "reasoning", PAYLOAD) == two.seal("ann", "reasoning", PAYLOAD)


def test_rotation_the_first_key_seals_and_all_open() -> None:
    before, between, after = Sealer([b"old"]), Sealer([b"new", b"old"]), Sealer([b"new"])
    old = before.seal("ann", "reasoning", PAYLOAD)
    new = between.seal("ann", "reasoning", PAYLOAD)
    assert between.open("ann", "reasoning", old) == between.open("ann", "reasoning", new) == PAYLOAD
    assert after.open("ann", "reasoning", new) == PAYLOAD
    refused(after, old)
    refused(before, new)


@pytest.mark.parametrize(
    ("owner", "kind"), [("bob", "reasoning"), ("", "reasoning"), ("ann", "compaction"), ("annr", "easoning")]
)
def test_another_owner_or_kind_cannot_open_it(owner: str, kind: str) -> None:
    sealer = Sealer([b"secret"])
    refused(sealer, sealer.seal("ann", "reasoning", PAYLOAD), owner, kind)


def test_a_change_of_any_character_is_noticed() -> None:
    sealer = Sealer([b"secret"], random_bytes=fixed)
    text = sealer.seal("ann", "reasoning", PAYLOAD)
    for place, char in enumerate(text):
        for other in "Aa0-_":
            if other != char:
                refused(sealer, text[:place] + other + text[place + 1 :])
        refused(sealer, text[:place])
        refused(sealer, text[:place] + text[place + 1 :])


def test_a_change_of_any_bit_is_noticed() -> None:
    sealer = Sealer([b"secret"], random_bytes=fixed)
    blob = bytearray(base64.urlsafe_b64decode(sealer.seal("ann", "reasoning", b"short").removeprefix("as1_") + "=="))
    for bit in range(len(blob) * 8):
        blob[bit // 8] ^= 1 << bit % 8
        refused(sealer, "as1_" + base64.urlsafe_b64encode(blob).rstrip(b"=").decode())
        blob[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize(
    "text",
    ["", "as1_", "as1_AAAA", "gAAAAABpforeign", "as2_" + "A" * 80, "as1_" + "A" * 80, "as1_é" + "A" * 80, "as1_ \n"],
)
def test_what_is_not_ours_is_refused_alike(text: str) -> None:
    sealer = Sealer([b"secret"])
    assert refused(sealer, text).message == refused(sealer, sealer.seal("bob", "reasoning", b"")).message


def test_padding_and_line_breaks_are_no_second_spelling() -> None:
    sealer = Sealer([b"secret"])
    text = sealer.seal("ann", "reasoning", PAYLOAD)
    for other in (text + "=", text + "==", text + "\n", " " + text, text.replace("_", "/", 1)):
        refused(sealer, other)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    careless = Sealer([b"secret"], max_bytes=1 << 30)
    bomb = careless.seal("ann", "reasoning", bytes(50_000_000))
    assert len(bomb) < 100_000
    refused(Sealer([b"secret"], max_bytes=1_000_000), bomb)
    assert len(careless.open("ann", "reasoning", bomb)) == 50_000_000


def test_one_byte_over_the_limit_is_refused() -> None:
    text = Sealer([b"secret"]).seal("ann", "reasoning", bytes(1001))
    assert Sealer([b"secret"], max_bytes=1001).open("ann", "reasoning", text) == bytes(1001)
    refused(Sealer([b"secret"], max_bytes=1000), text)


def test_a_payload_over_the_limit_is_not_sealed() -> None:
    sealer = Sealer([b"secret"], max_bytes=10)
    assert sealer.open("ann", "reasoning", sealer.seal("ann", "reasoning", b"0123456789")) == b"0123456789"
    with pytest.raises(ValueError, match="too large"):
        sealer.seal("ann", "reasoning", b"0123456789a")


def test_a_sealer_without_a_key_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="key"):
        Sealer([])


@given(st.text(max_size=200))
def test_any_text_at_all_opens_or_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Sealer([b"secret"]).open("ann", "reasoning", text)


@given(st.text(max_size=20), st.text(max_size=20), st.binary(max_size=500))
def test_any_owner_kind_and_payload_round_trips(owner: str, kind: str, payload: bytes) -> None:
    sealer = Sealer([b"secret"], random_bytes=fixed)
    assert sealer.open(owner, kind, sealer.seal(owner, kind, payload)) == payload


# Where the keys come from


def test_without_configured_keys_one_is_made_in_the_data_folder_and_kept(tmp_path: Path) -> None:
    settings = load_settings({"data": str(tmp_path)})
    text = make_sealer(settings).seal("ann", "reasoning", PAYLOAD)
    assert make_sealer(settings).open("ann", "reasoning", text) == PAYLOAD
    assert (tmp_path / "sealing.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["sealing.key"]


def test_configured_keys_win_and_leave_no_file(tmp_path: Path) -> None:
    settings = load_settings({"data": str(tmp_path), "sealing": {"keys": ["a new key of ours", "an old key of ours"]}})
    old = Sealer([b"an old key of ours"]).seal("ann", "reasoning", PAYLOAD)
    assert make_sealer(settings).open("ann", "reasoning", old) == PAYLOAD
    assert not list(tmp_path.iterdir())
    assert "a new key of ours" not in str(settings.redacted())


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sealing\.keys: every key needs at least 16 characters"):
        load_settings({"sealing": {"keys": ["short"]}})


def test_a_key_file_that_holds_no_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "sealing.key").touch()
    with pytest.raises(ConfigError, match=r"sealing\.key contains no key"):
        local_key(tmp_path, "sealing.key")


def test_a_key_is_made_once_and_leaves_no_other_file(tmp_path: Path) -> None:
    made = local_key(tmp_path, "sealing.key")
    assert re.fullmatch(rb"[0-9a-f]{64}", made) and local_key(tmp_path, "sealing.key") == made
    (file,) = tmp_path.iterdir()
    assert file.name == "sealing.key" and file.stat().st_mode & 0o777 == 0o600


def test_a_key_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be created or read"):
        local_key(tmp_path / "missing", "sealing.key")
