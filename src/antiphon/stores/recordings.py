"""Converts the recorded contents of a request to their stored form and back.

Lives here: the encoding, the compression, and the thread that runs both. Not here: sealing (`stores/bodies.py`), the
tables (`stores/journal.py`), what is recorded (`observability/`).

Format: msgpack, compressed with zstd, sealed if `state.seal` is on.

Invariant: no value larger than `MOST_BYTES` is decompressed, so a damaged row cannot exhaust the memory.
"""

from __future__ import annotations

import msgspec

from antiphon.engine.ports.journal import Recording
from antiphon.engine.waiting import Pool
from antiphon.errors import StoreError
from antiphon.stores.bodies import Bodies

MOST_BYTES = 160 << 20
"""The maximum bytes of the contents of one request: twice `console.record_request_bytes` at its largest, and room for
the facts of many small parts."""
JOURNAL = Pool("journal", 1)
"""Compresses and decompresses recorded contents."""

_ENCODER = msgspec.msgpack.Encoder(enc_hook=repr)
_DECODER = msgspec.msgpack.Decoder(Recording)


async def pack(recording: Recording, bodies: Bodies) -> bytes:
    """Return the stored form of recorded contents."""
    return await JOURNAL.run(_pack, recording, bodies)


async def unpack(packed: bytes, bodies: Bodies) -> Recording:
    """Return the contents of a stored form. Raises `StoreError` when no key opens it, or when it is damaged."""
    return await JOURNAL.run(_unpack, packed, bodies)


def _pack(recording: Recording, bodies: Bodies) -> bytes:
    # Imported at the first use, because most processes record nothing.
    import zstandard

    return bodies.seal(zstandard.ZstdCompressor(level=3).compress(_ENCODER.encode(recording)))


def _unpack(packed: bytes, bodies: Bodies) -> Recording:
    import zstandard

    plain = bodies.open(packed)
    try:
        if zstandard.frame_content_size(plain) > MOST_BYTES:
            raise StoreError("The recorded contents of a request are damaged: they are too large.")
        return _DECODER.decode(zstandard.ZstdDecompressor().decompress(plain, max_output_size=MOST_BYTES))
    except (zstandard.ZstdError, msgspec.DecodeError) as error:
        raise StoreError(f"The recorded contents of a request are damaged: {error}") from error
