"""Bundles in folders, as deployment code gets them: of the smallest classifier, of a detector and of a segmenter."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from fastervit_trt.artifacts import Manifest
from fastervit_trt.cli import deploy, export
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, Bundle, BundleManifest
from tests.conftest import made_once

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


@pytest.fixture(scope="session")
def task_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``task_bundles / "detector"``, batch 1:4:4, and "segmenter", two images at once, no fewer and no more; in fp16,
    labelled. Made by the commands that users type; not to be changed.
    """

    def done(command: Callable[[list[str]], NoReturn], *arguments: object) -> None:
        with pytest.raises(SystemExit) as stop:
            command([str(argument) for argument in arguments])
        assert stop.value.code == 0

    def make(root: Path) -> None:
        for name, batch, labels in (("detector", "1:4:4", LABELS), ("segmenter", "2", ["background", *LABELS])):
            model, written, names = f"faster_vit_scenes_{name}", root / f"{name}-export", root / f"{name}.txt"
            names.write_text("\n".join(labels) + "\n")
            options = ("--precision", "fp16", "--batch", batch, "--runtime", "none", "--output", written)
            done(export.main, "--model", model, "--pretrained", *options)
            done(deploy.main, "pack", written, "--target", "cpu", "--labels", names, "--output", root / name)

    return made_once(tmp_path_factory, "task-bundles", make)
