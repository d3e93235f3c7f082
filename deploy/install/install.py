"""A bundle in, a deployment out: unpacked, checked, built for this machine, verified on arrival, with a receipt.

A deployment is a bundle again: its folder, with the engine that was built and the receipt, declared and signed anew by
this machine's own key. The packer's manifest and signature stay in ``origin/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastervit_trt.artifacts import Manifest, new_folder, sha256_file
from fastervit_trt.console import say
from fastervit_trt.deploy.bundle.contents import declare
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, SIGNATURE_FILE, Bundle, BundleManifest
from fastervit_trt.deploy.bundle.opened import Opened, opened_bundle, unpack_bundle
from fastervit_trt.deploy.bundle.pack import role_of, sign_folder
from fastervit_trt.deploy.bundle.papers import write_checksums
from fastervit_trt.deploy.install.arrival import Arrival, verify_arrival
from fastervit_trt.deploy.install.memory import FreeMemory
from fastervit_trt.deploy.install.provision import BuildWish, Provision, provision
from fastervit_trt.deploy.install.receipt import Receipt
from fastervit_trt.deploy.targets.detect import why_not_here
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.engines.keys import signing_key
from fastervit_trt.errors import FasterViTError
from fastervit_trt.host import versions

__all__ = ["InstallRequest", "Installed", "install", "verify_installed"]

_ORIGIN = "origin"
_LIBRARY = "plugins/libfastervit_plugins.so"


@dataclass(frozen=True)
class InstallRequest:
    """One installation, as asked for on the command line.

    Attributes:
        output: folder to write.
        trust: take a bundle of an unknown signer, or of none.
        rehearse: go through everything that can be done on a machine that is not the target.
        seconds: of the throughput smoke test.
        least_throughput: images per second below which the installation fails.
    """

    bundle: Path
    output: Path
    trust: bool = False
    rehearse: bool = False
    build: BuildWish = field(default_factory=BuildWish)
    seconds: float = 2.0
    least_throughput: float | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Installed:
    """A deployment, and what it proved."""

    folder: Path
    receipt: Receipt
    arrival: Arrival


def install(request: InstallRequest, here: Here, free: FreeMemory, step: Callable[[str], Any]) -> Installed:
    """Install a bundle on this machine, whole or not at all.

    Args:
        here: this machine.
        free: memory that a build may count on.
        step: wraps each long step, for progress.

    Raises:
        FasterViTError: not admitted, not this machine, too little memory, a failed build, or one that does not do here
            what it should. An engine that was built stays in the cache of engines, so the next attempt copies it.
    """
    signing_key()
    with new_folder(request.output, overwrite=request.overwrite, marker=BUNDLE_FILE) as folder:
        folder.rmdir()  # unpacking makes it, and only if all is well
        with step("signature and hashes"):
            opened = unpack_bundle(request.bundle, folder, trust=request.trust)
        for notice in opened.bundle.manifest.notices:
            say(f"  notice: {notice}")
        target = Target.from_record(opened.bundle.manifest.target)
        differs = why_not_here(target, here)
        if differs and not request.rehearse:
            raise FasterViTError(
                f"this machine is not {target.title}: {'; '.join(differs)}. Pack the export for this one (--target "
                "local), or go through it without the target: --rehearse"
            )
        origin = sha256_file(folder / BUNDLE_FILE)
        wish = replace(request.build, stand_in=bool(differs))
        provided = provision(opened.bundle, target, wish, free, step)
        arrival = verify_arrival(
            opened.bundle.export_folder,
            Manifest.read(opened.bundle.export_folder),
            backend=provided.backend,
            file=None if wish.stand_in else provided.file,
            seconds=request.seconds,
            least_throughput=request.least_throughput,
            step=step,
        )
        receipt = _receipt(opened, origin, target, here, provided, arrival, differs)
        receipt.write(folder)
        _declare_anew(opened.bundle)
    return Installed(request.output, receipt, arrival)


def verify_installed(folder: Path, *, trust: bool = False, seconds: float, step: Callable[[str], Any]) -> Arrival:
    """Prove a deployment again: signature, hashes, golden outputs, precision, and a few seconds of work.

    Args:
        trust: take one that was installed by an unknown key.

    Raises:
        FasterViTError: not installed, changed since, or it does not do what it did.
    """
    with step("signature and hashes"), opened_bundle(folder, trust=trust) as opened:
        receipt = Receipt.read(folder)
    engine = receipt.engine
    ran = receipt.arrival["file"]
    return verify_arrival(
        opened.bundle.export_folder,
        opened.bundle.export,
        backend=receipt.arrival["backend"],
        file=ran if engine is not None and engine["file"] == ran else None,
        seconds=seconds,
        step=step,
    )


def _receipt(
    opened: Opened,
    origin: str,
    target: Target,
    here: Here,
    provided: Provision,
    arrival: Arrival,
    differs: list[str],
) -> Receipt:
    signer = {"signed": opened.verdict.signed.value, "key": opened.verdict.fingerprint, "name": opened.verdict.name}
    return Receipt(
        bundle={"name": opened.bundle.manifest.name, "sha256": origin, "signer": signer},
        target=target.name,
        installed_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=_machine(here),
        engine=provided.engine(),
        plugin=provided.plugin,
        memory=None if provided.memory is None else provided.memory.record(),
        arrival=arrival.record(),
        versions=versions(),
        rehearsal=[*differs, *provided.missing],
    )


def _machine(here: Here) -> dict[str, Any]:
    return {
        "name": str(here),
        "platform": here.platform,
        "gpu": here.gpu,
        "compute_capability": here.capability,
        "driver": here.driver,
        "jetpack": here.jetpack or None,
        "memory_mib": here.memory_mib,
    }


def _declare_anew(bundle: Bundle) -> None:
    """The folder as it is now, declared and signed by this machine's key."""
    folder, plugin = bundle.folder, bundle.manifest.plugin
    if not (folder / _ORIGIN).exists():  # a deployment that is installed once more keeps its first
        (folder / _ORIGIN).mkdir()
        for name in (BUNDLE_FILE, SIGNATURE_FILE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, folder / _ORIGIN / name)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    if plugin is not None and (folder / _LIBRARY).is_file():
        plugin = {**plugin, "kind": "library", "path": _LIBRARY}
    write_checksums(folder, declare(folder, role_of))
    manifest: BundleManifest = replace(bundle.manifest, files=declare(folder, role_of), plugin=plugin)
    sign_folder(folder, manifest)
