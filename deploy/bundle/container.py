"""Entries of a bundle in, the bytes of a ``.tar.zst`` out; and such bytes in, entries and their contents out.

One form is written and no other is read: USTAR entries of regular files in one frame of zstd, fixed to the last bit.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from fastervit_trt.deploy.bundle.contents import check_path
from fastervit_trt.errors import FasterViTError

if TYPE_CHECKING:
    import zstandard

__all__ = ["END", "MAGIC", "MOST_FILE", "DamageError", "Entry", "TarReader", "compressed"]

MAGIC = b"\x28\xb5\x2f\xfd"  # of a frame of zstd
MOST_FILE = (8 << 30) - 1  # bytes: eleven octal digits

_BLOCK = 512
END = bytes(2 * _BLOCK)

# The header of POSIX.1-2017, pax, "ustar Interchange Format". The bundle's name is the prefix, so paths have 100 bytes.
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_PATH, _SIZE, _CHECKSUM, _PREFIX = slice(100), slice(124, 136), slice(148, 156), slice(345, 500)
_MODE, _NOBODY, _EPOCH = b"0000644\0", b"0000000\0", b"00000000000\0"  # nothing that tells machines or days apart

_LEVEL = 9  # leaves 84 % of the digits models' weights; level 19 does too and takes sixty times as long
_WINDOW_LOG = 23  # 8 MiB: a reader needs as much memory
_MOST_WINDOW = 128 << 20  # what `zstd -d` takes unasked: archives may have been compressed again

# RFC 8878, sections 3.1.1.1 and 3.1.1.2
_MOST_FRAME_HEADER = 18
_BLOCK_HEADER, _FRAME_CHECKSUM = 3, 4
_MOST_FRAME_BLOCK = 128 << 10
_RLE = 1


class DamageError(Exception):
    """What is wrong with an archive, as the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class Entry:
    """A regular file as it stands in an archive, below a folder named like the bundle.

    Attributes:
        path: below the bundle, at most 100 bytes.
        size: of its content in bytes.
    """

    bundle: str
    path: str
    size: int

    @property
    def header(self) -> bytes:
        """All 512 bytes that come before the content."""
        fields = (_MODE, _NOBODY, _NOBODY, b"%011o\0" % self.size, _EPOCH, b" " * 8, b"0", b"", b"ustar\0", b"00")
        block = bytearray(_HEADER.pack(self.path.encode(), *fields, b"", b"", _NOBODY, _NOBODY, self.bundle.encode()))
        block[_CHECKSUM] = b"%06o\0 " % sum(block)
        return bytes(block)

    @property
    def padding(self) -> bytes:
        """What fills the last block of the content."""
        return bytes(-self.size % _BLOCK)

    @classmethod
    def parse(cls, block: bytes) -> Entry:
        """The entry with this header.

        Raises:
            DamageError: no entry has it.
        """
        path, size, bundle = (block[part] for part in (_PATH, _SIZE, _PREFIX))
        if re.fullmatch(rb"[0-7]{11}\0", size):
            try:
                entry = cls(bundle.rstrip(b"\0").decode(), path.rstrip(b"\0").decode(), int(size[:-1], 8))
                check_path(entry.path)
                if len(check_path(entry.bundle).parts) == 1 and entry.header == block:
                    return entry
            except (UnicodeDecodeError, FasterViTError):
                pass  # as below
        name = path.rstrip(b"\0").decode(errors="replace")
        raise DamageError(f"holds {name!r}, written as no file of a bundle is")


class TarReader:
    """Entries and contents, one after the other, of an archive that is read in pieces of at most 128 KiB."""

    def __init__(self, stream: BinaryIO) -> None:
        """Read the archive in ``stream``, which begins with it, ends with it and can seek."""
        self._pieces = _unpacked(stream)
        self._piece = memoryview(b"")

    def entry(self) -> Entry | None:
        """The next entry; None after the last.

        Raises:
            DamageError: neither comes.
        """
        block = self._exactly(_BLOCK)
        if any(block):
            return Entry.parse(block)
        if self._exactly(len(END) - _BLOCK) + self._some(1) != END[_BLOCK:]:
            raise DamageError("holds something after its end")
        return None

    def content(self, entry: Entry) -> Iterator[bytes | memoryview]:
        """The content of ``entry``, which came last, to its end.

        Raises:
            DamageError: the archive ends before.
        """
        left = entry.size
        while left:
            piece = self._some(left)
            if not piece:
                raise DamageError(f"ends within {entry.path!r}")
            left -= len(piece)
            yield piece
        if self._exactly(len(entry.padding)) != entry.padding:
            raise DamageError(f"holds something between {entry.path!r} and what follows")

    def _exactly(self, size: int) -> bytes:
        block = b""
        while len(block) < size:
            piece = self._some(size - len(block))
            if not piece:
                raise DamageError("ends too early")
            block += piece
        return block

    def _some(self, most: int) -> memoryview:
        """Up to ``most`` bytes; none at the end alone."""
        while not self._piece:
            following = next(self._pieces, None)
            if following is None:
                break
            self._piece = memoryview(following)
        taken, self._piece = self._piece[:most], self._piece[most:]
        return taken


@contextmanager
def compressed(stream: BinaryIO, entries: Iterable[Entry]) -> Iterator[zstandard.ZstdCompressionWriter]:
    """What is written here comes to ``stream`` as one frame of zstd: headers, contents, paddings and ``END``."""
    import zstandard

    total = len(END) + sum(_BLOCK + entry.size + len(entry.padding) for entry in entries)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=_WINDOW_LOG, write_checksum=True, threads=0
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    writer = compressor.stream_writer(stream, size=total, closefd=False)
    yield writer  # no `with`: closing an unfinished frame is an error, which would hide the one that came before
    writer.flush(zstandard.FLUSH_FRAME)


def _unpacked(stream: BinaryIO) -> Iterator[bytes]:
    """The one frame in ``stream``, a block at a time, as a few bytes may stand for gigabytes and blocks are bounded."""
    import zstandard

    head = stream.read(_MOST_FRAME_HEADER)
    if not head.startswith(MAGIC):
        raise DamageError("is not compressed by zstd")
    try:
        frame = zstandard.get_frame_parameters(head)
        if frame.window_size > _MOST_WINDOW:
            raise DamageError(f"takes {frame.window_size >> 20} MiB of memory to read, more than {_MOST_WINDOW >> 20}")
        stream.seek(zstandard.frame_header_size(head))
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj()
        yield decompressor.decompress(head[: stream.tell()])
        for block in _blocks(stream, has_checksum=frame.has_checksum):
            yield decompressor.decompress(block)
        if not decompressor.eof or decompressor.unused_data:
            raise DamageError("is damaged: its frame of zstd does not end where it says")
    except zstandard.ZstdError as error:
        raise DamageError(f"is damaged ({error})") from error
    if stream.read(1):
        raise DamageError("holds something after its end")


def _blocks(stream: BinaryIO, *, has_checksum: bool) -> Iterator[bytes]:
    """Blocks of a frame with their headers, as they are compressed, and its checksum."""
    last = False
    while not last:
        header = _whole(stream, _BLOCK_HEADER)
        fields = int.from_bytes(header, "little")
        last, kind, size = bool(fields & 1), fields >> 1 & 3, fields >> 3
        if size > _MOST_FRAME_BLOCK:
            raise DamageError("is damaged: a block is larger than zstd allows")
        yield header + _whole(stream, 1 if kind == _RLE else size)
    if has_checksum:
        yield _whole(stream, _FRAME_CHECKSUM)


def _whole(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise DamageError("is damaged: it ends too early")
    return content
