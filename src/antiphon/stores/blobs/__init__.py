"""Stores the contents of uploaded files on disk, in memory or in S3. The database stores the files' metadata."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from antiphon.config.problems import extra_missing
from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.stores.blobs.disk import DiskBlobs


async def open_blobs(settings: BlobSettings, folder: Path, *, of_several: bool = False) -> BlobStore:
    """Open the S3 bucket that the setting `blobs.url` names, or disk storage in `folder` if the setting is empty.
    `of_several`: whether other machines share the database of the files' metadata.

    Raises `ConfigError` when the extra `s3` is not installed. Raises `StoreError` with advice when the bucket is
    unusable.
    """
    if settings.url is None:
        return DiskBlobs(folder, of_several=of_several)
    if find_spec("obstore") is None:
        raise extra_missing("blobs.url", "s3")
    from antiphon.stores.blobs.s3 import S3Blobs

    blobs = S3Blobs(settings)
    await blobs.check()
    return blobs
