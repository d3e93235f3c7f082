"""What TensorRT-RTX compiled on this GPU, kept between runs: without it every load compiles again.

It is machine code, so it is read only from a folder that nobody but the user can write to.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastervit_trt.console import warn
from fastervit_trt.engines.private_folder import make_private, why_not_private, write_whole
from fastervit_trt.host import cache_folder

__all__ = ["RuntimeCache"]


@dataclass(frozen=True)
class RuntimeCache:
    """One file per engine, version and GPU."""

    path: Path

    @classmethod
    def of(cls, content: bytes, version: str, gpu: str) -> RuntimeCache:
        """The file for an engine's bytes; it need not exist."""
        key = sha256(b"\0".join([sha256(content).digest(), version.encode(), gpu.encode()])).hexdigest()
        return cls(cache_folder() / "rtx-runtime" / f"{key}.bin")

    def read(self) -> bytes | None:
        """The content, or None where there is none to trust."""
        try:
            if not self.path.is_file():
                return None
            for path in (self.path.parent, self.path):
                if reason := why_not_private(path):
                    warn(f"'{path}' {reason}: what TensorRT-RTX compiled before is not read from there")
                    return None
            return self.path.read_bytes()
        except OSError:
            return None

    def write(self, content: bytes | None) -> None:
        """Keep ``content``, if it is new; a folder that cannot be written to costs the next load some seconds."""
        if not content or content == self.read():
            return
        try:
            make_private(self.path.parent)
            write_whole(self.path, content)
        except OSError as error:
            warn(f"cannot keep what TensorRT-RTX compiled in '{self.path.parent}' ({error.strerror or error})")
