"""A bundle's path in, the bundle out, once its signature and every byte of it have been checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.bundle.archive import MOST_MANIFEST, is_archive, read_archive
from fastervit_trt.deploy.bundle.contents import Declared, check_folder
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, SIGNATURE_FILE, Bundle, BundleManifest
from fastervit_trt.deploy.bundle.signature import MOST_SIGNATURE, admit_signer, verify_bundle
from fastervit_trt.engines.keys import Verdict
from fastervit_trt.errors import FasterViTError

__all__ = ["Opened", "opened_bundle", "unpack_bundle"]


@dataclass(frozen=True)
class Opened:
    """A bundle, and who signed it."""

    bundle: Bundle
    verdict: Verdict


@contextmanager
def opened_bundle(path: Path, *, trust: bool = False) -> Iterator[Opened]:
    """A bundle to read from; an archive is unpacked for as long as the block lasts.

    Args:
        trust: take one that nobody signed, or somebody unknown did; one whose signature is wrong stays out.

    Raises:
        FasterViTError: no bundle, not admitted, or a byte that is not as it was signed.
    """
    if path.is_dir():
        yield _open_folder(path, trust=trust)
        return
    with tempfile.TemporaryDirectory(prefix="fastervit-bundle-") as scratch:
        yield unpack_bundle(path, Path(scratch) / "bundle", trust=trust)


def unpack_bundle(path: Path, folder: Path, *, trust: bool = False) -> Opened:
    """Copy a bundle, folder or archive, to ``folder``, which must not be there yet; checked on the way.

    Raises:
        FasterViTError: as :func:`opened_bundle`; nothing is left in ``folder`` then.
    """
    if folder.exists():
        raise FasterViTError(f"'{folder}' already exists; unpack the bundle to a new folder")
    if path.is_dir():
        return _copied(path, folder, trust=trust)
    if not path.is_file():
        raise FasterViTError(f"there is no bundle '{path}'; make one with fastervit-deploy pack")
    if not is_archive(path):
        raise FasterViTError(
            f"'{path}' is no bundle: neither a folder nor a .tar.zst; make one with fastervit-deploy pack"
        )
    admitted: list[_Admission] = []

    def admit(manifest: bytes, signature: bytes | None) -> Declared:
        admitted.append(_admit(manifest, signature, path, trust=trust))
        return admitted[0].manifest.files

    read_archive(path, folder, admit)
    try:
        (admission,) = admitted
        return Opened(Bundle(folder, admission.manifest, _export(folder, admission.manifest.files)), admission.verdict)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _copied(path: Path, folder: Path, *, trust: bool) -> Opened:
    """The copy of a bundle's folder, checked after it was copied: the very bytes that will be used."""
    opened = _open_folder(path, trust=trust)
    folder.mkdir(parents=True)
    try:
        for name in (BUNDLE_FILE, SIGNATURE_FILE, *opened.bundle.manifest.files):
            if (path / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, folder / name, follow_symlinks=False)
        return _open_folder(folder, trust=trust)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@dataclass(frozen=True)
class _Admission:
    """A manifest whose signature was checked."""

    manifest: BundleManifest
    verdict: Verdict


def _open_folder(folder: Path, *, trust: bool) -> Opened:
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise FasterViTError(f"'{folder}' is no bundle: it has no {BUNDLE_FILE}; make one with fastervit-deploy pack")
    content, signature = _read(path, MOST_MANIFEST), None
    if (folder / SIGNATURE_FILE).is_file():
        signature = _read(folder / SIGNATURE_FILE, MOST_SIGNATURE)
    admission = _admit(content, signature, folder, trust=trust)
    check_folder(folder, admission.manifest.files)
    return Opened(Bundle(folder, admission.manifest, _export(folder, admission.manifest.files)), admission.verdict)


def _admit(manifest: bytes, signature: bytes | None, where: Path, *, trust: bool) -> _Admission:
    verdict = verify_bundle(manifest, signature)
    admit_signer(verdict, trust=trust, where=f"bundle '{where}'")
    return _Admission(BundleManifest.parse(manifest.decode(errors="replace"), f"'{where}'"), verdict)


def _export(folder: Path, declared: Declared) -> Manifest:
    """The export's own manifest, which must say the same of its files as the bundle's, whose hashes were checked."""
    manifest = Manifest.read(folder / EXPORT_FOLDER)
    for name, entry in manifest.files.items():
        if declared.get(f"{EXPORT_FOLDER}/{name}", {}).get("sha256") != entry["sha256"]:
            raise FasterViTError(
                f"'{folder / EXPORT_FOLDER / name}' is not the file that the export's manifest describes; pack it again"
            )
    return manifest


def _read(path: Path, most: int) -> bytes:
    if path.stat().st_size > most:
        raise FasterViTError(f"'{path}' is larger than any of its kind ({most} bytes); get the bundle again")
    return path.read_bytes()
