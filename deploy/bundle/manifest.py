"""What a bundle says of itself, and the bundle as it lies on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastervit_trt.artifacts import Manifest
from fastervit_trt.errors import FasterViTError

__all__ = ["BUNDLE_FILE", "EXPORT_FOLDER", "SIGNATURE_FILE", "Bundle", "BundleManifest"]

BUNDLE_FILE = "bundle.json"
SIGNATURE_FILE = "bundle.sig"
EXPORT_FOLDER = "export"  # as fastervit-export writes one, with the engines that run on the target
_SCHEMA = 1


@dataclass(frozen=True)
class BundleManifest:
    """Everything in a bundle, and what it is for; ``bundle.sig`` signs this file, so it vouches for all others.

    Attributes:
        name: of the bundle, fit for a folder: "faster_vit_0_224-fp16-jetson-orin-jp6".
        target: the record of the :class:`Target` it was packed for.
        files: path below the bundle, with "/" → sha256, bytes, role; all but this file and its signature. Roles are
            graph, engine, audit, calibration, timing, plugin, source, golden, labels, preprocessing, licence, receipt,
            document.
        plugin: of the plugin library or its sources: kind ("library" or "sources"), path, version; None where the
            target takes none.
        timing: of the timing cache: path, version, gpu, capability; None where there is none.
        labels: path of the file with one class name a line; None where nobody named them.
        licences: name, file and what it covers.
        notices: lines that must be shown to who installs it.
        packed_with: versions of what made it.
    """

    name: str
    target: dict[str, Any]
    files: dict[str, dict[str, Any]]
    plugin: dict[str, Any] | None
    timing: dict[str, Any] | None
    labels: str | None
    licences: list[dict[str, Any]]
    notices: list[str]
    packed_with: dict[str, str]
    schema: int = _SCHEMA

    def text(self) -> str:
        """The same text for equal bundles."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def parse(cls, text: str, source: str) -> BundleManifest:
        """``text`` as :meth:`text` wrote it.

        Args:
            source: says in errors where it came from.

        Raises:
            FasterViTError: damaged, or written by a newer version.
        """
        try:
            content = json.loads(text)
            if content["schema"] > _SCHEMA:
                raise FasterViTError(
                    f"{source} has schema {content['schema']}, this version reads up to {_SCHEMA}; update fastervit-trt"
                )
            known = {f.name for f in fields(cls)}
            return cls(**{key: value for key, value in content.items() if key in known})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FasterViTError(f"{source} is no manifest of a bundle ({error}); pack the export again") from error


@dataclass(frozen=True)
class Bundle:
    """A bundle in a folder, whose signature and hashes were checked by who made this object."""

    folder: Path
    manifest: BundleManifest
    export: Manifest  # of the export in it

    @property
    def export_folder(self) -> Path:
        return self.folder / EXPORT_FOLDER

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index; empty where nobody named them."""
        if self.manifest.labels is None:
            return ()
        return tuple((self.folder / self.manifest.labels).read_text(encoding="utf-8").splitlines())
