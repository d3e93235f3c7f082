"""A bundle of the smallest export, in a folder, as deployment code gets it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, Bundle, BundleManifest

LABELS = "zero one two three four five six seven eight nine".split()


@pytest.fixture(scope="session")
def bundle(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """faster_vit_digits_s in fp32, dynamic batch 1:4:8, labelled; not to be changed."""
    folder = tmp_path_factory.mktemp("bundle") / "faster_vit_digits_s-fp32-cpu"
    shutil.copytree(exports / "fp32", folder / EXPORT_FOLDER)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "role": "document",
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = BundleManifest(
        name=folder.name,
        target={"name": "cpu"},
        files=files,
        plugin=None,
        timing=None,
        labels="labels.txt",
        licences=[],
        notices=[],
        packed_with={},
    )
    (folder / BUNDLE_FILE).write_text(manifest.text())
    return Bundle(folder, manifest, Manifest.read(folder / EXPORT_FOLDER))
