"""What a failure of object storage means, in words that say what to do.

Lives here: telling failures apart. Not here: requests (`s3.py`).

Invariant: of what the server or the client library says only a code of letters is ever shown, so no key, no signature
and no address of another's gets into a log or an answer.
"""

from __future__ import annotations

import re

from antiphon.errors import StoreError, StoreReason

_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b")
_UNREACHABLE = re.compile(r"kind: Connect\b|dns error|tcp connect error|ConnectError")
# Where machines ask for a role's credentials when nothing else gives any.
_ROLE = re.compile(r"//169\.254\.(169\.254|170\.2|170\.23)\b")

_NO_CREDENTIALS = "no credentials were found; set blobs.key_id and blobs.secret."
_CREDENTIALS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"}
)
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"})
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "TooManyRequests"})


def store_error(doing: str, where: str, bucket: str, error: BaseException) -> StoreError:
    """The failure of `doing` (as a gerund) at the storage `where`."""
    advice, reason = _advice(bucket, str(error))
    return StoreError(f"{doing} failed in {where}: {advice}", reason=reason)


def too_slow(doing: str, where: str, seconds: float) -> StoreError:
    """The storage did not answer in time."""
    return StoreError(f"{doing} failed in {where}: no answer within {seconds:g} seconds.", reason="slow")


def _advice(bucket: str, said: str) -> tuple[str, StoreReason]:
    if _ROLE.search(said):
        return _NO_CREDENTIALS, "failed"
    found = _CODE.search(said)
    status = _STATUS.search(said)
    code = found[1] if found else f"status {status[1]}" if status else "no answer"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r}; create it, or correct blobs.url.", "failed"
    if code in _CREDENTIALS or (not found and status and status[1] == "401"):
        return f"the credentials are refused ({code}); check blobs.key_id and blobs.secret.", "failed"
    if code in _REGION or (status and status[1] == "301"):
        return f"the bucket is in another region ({code}); set blobs.region.", "failed"
    if code == "AccessDenied" or (status and status[1] == "403"):
        wanted = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
        return f"access is denied ({code}); the key needs {wanted} on bucket and prefix.", "failed"
    if code in _FULL or (status and status[1] == "507"):
        return f"there is no room ({code}).", "full"
    if code in _BUSY or (status and status[1] in ("429", "503")):
        return f"it takes no more requests at the moment ({code}).", "busy"
    if not found and not status and _UNREACHABLE.search(said):
        return "it cannot be reached; check blobs.endpoint and the network.", "failed"
    return f"{code}.", "failed"
