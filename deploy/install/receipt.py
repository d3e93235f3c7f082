"""What was installed, where, and what it proved on arrival, as a file beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastervit_trt.errors import FasterViTError

__all__ = ["RECEIPT_FILE", "Receipt"]

RECEIPT_FILE = "receipt.json"
_SCHEMA = 1


@dataclass(frozen=True)
class Receipt:
    """One installation.

    Attributes:
        bundle: name, sha256 of the packer's bundle.json, who signed it.
        target: name of the target it was packed for.
        machine: what was found here.
        engine: file, runtime, version, where it came from (bundle, cache or built), what building it took; None where
            the graph is run as it is.
        plugin: the library used, or why there is none.
        memory: what building was expected to take, and what was free; None where nothing was built.
        arrival: see :class:`~fastervit_trt.deploy.install.arrival.Arrival`.
        rehearsal: what a machine that is not the target could not do; empty on the target.
    """

    bundle: dict[str, Any]
    target: str
    installed_utc: str
    machine: dict[str, Any]
    engine: dict[str, Any] | None
    plugin: str
    memory: dict[str, Any] | None
    arrival: dict[str, Any]
    versions: dict[str, str]
    rehearsal: list[str] = field(default_factory=list)
    schema: int = _SCHEMA

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        (folder / RECEIPT_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Receipt:
        """The receipt of an installed bundle.

        Raises:
            FasterViTError: not installed, damaged, or by a newer version.
        """
        path = folder / RECEIPT_FILE
        if not path.is_file():
            raise FasterViTError(f"'{folder}' is not installed: it has no {RECEIPT_FILE}; run fastervit-deploy install")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] > _SCHEMA:
                raise FasterViTError(f"'{path}' was written by a newer version; update fastervit-trt")
            return cls(**content)
        except (ValueError, KeyError, TypeError) as error:
            raise FasterViTError(f"'{path}' is damaged ({error}); install the bundle again") from error
