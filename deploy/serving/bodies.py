"""The body of an HTTP request, read as it comes and never beyond its limit; the body of a response, compressed."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

from fastervit_trt.deploy.serving.admission import Lease
from fastervit_trt.deploy.serving.refusal import RefusedError

__all__ = ["choose_encoding", "compressed", "read_body"]

# "deflate" in HTTP is the zlib format: https://www.rfc-editor.org/rfc/rfc9110#name-deflate-coding
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_NAMES = {"x-gzip": "gzip"}
_LEVEL = 1  # logits hardly shrink, and whoever waits for them waits for this, too


async def read_body(
    chunks: AsyncIterator[bytes], *, encoding: str | None, announced: str | None, limit: int, lease: Lease
) -> bytes:
    """All of a body, decompressed.

    Args:
        chunks: what arrives; may be more than was announced, and without end.
        encoding: the header Content-Encoding.
        announced: the header Content-Length.
        limit: bytes, of what arrives and of what comes out.
        lease: counts the bytes.

    Raises:
        RefusedError: 413 too large, 415 another encoding, 400 damaged, 429 too much memory in use.
    """
    coding = (encoding or "identity").strip().lower()
    coding = _NAMES.get(coding, coding)
    if coding != "identity" and coding not in _WINDOW_BITS:
        raise RefusedError(415, f"Content-Encoding '{coding}' is not supported; send gzip, deflate or none")
    if announced is not None and announced.isascii() and announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    body, arrived = bytearray(), 0
    inflate = None if coding == "identity" else zlib.decompressobj(_WINDOW_BITS[coding])
    async for chunk in chunks:
        arrived += len(chunk)
        if arrived > limit:
            raise _too_large(limit)
        piece = chunk if inflate is None else _inflated(inflate, chunk, limit - len(body), coding)
        if len(body) + len(piece) > limit:
            raise _too_large(limit)
        lease.grow(len(piece))
        body += piece
    if inflate is not None and not inflate.eof:
        raise RefusedError(400, f"the {coding} body ends before its compressed data does")
    return bytes(body)


def choose_encoding(accepted: str | None) -> str | None:
    """Of the header Accept-Encoding: "gzip", "deflate", or None for neither."""
    weights = dict(_weighed(part) for part in (accepted or "").lower().split(","))
    best = max(_WINDOW_BITS, key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


def compressed(body: bytes, encoding: str) -> bytes:
    """``body`` as "gzip" or "deflate"."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return deflate.compress(body) + deflate.flush()


def _inflated(inflate: zlib._Decompress, chunk: bytes, room: int, coding: str) -> bytes:
    try:
        piece = inflate.decompress(chunk, room + 1)  # one byte too many shows that there is more
    except zlib.error as error:
        raise RefusedError(400, f"the body is no {coding} data ({error})") from error
    if inflate.unused_data:
        raise RefusedError(400, f"something follows the {coding} data of the body; send one compressed stream")
    return piece


def _weighed(part: str) -> tuple[str, float]:
    name, _, parameters = part.partition(";")
    name, weight = name.strip(), 1.0
    key, _, value = parameters.strip().partition("=")
    if key.strip() == "q":
        try:
            weight = float(value)
        except ValueError:
            weight = 0.0
    return _NAMES.get(name, name), weight


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limit} bytes; send fewer images at a time")
