"""Compresses request bodies as clients do."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import zstandard


def zstd_streamed(data: bytes) -> bytes:
    """Compress with zstd without the content's size in the frame, like an encoder that gets its input in parts
    (Codex's)."""
    stream = zstandard.ZstdCompressor(level=3, write_content_size=False, write_checksum=True).compressobj()
    return stream.compress(data) + stream.flush()


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd_streamed,
    "gzip, zstd": lambda data: zstd_streamed(gzip.compress(data)),
}
