"""A bundle's papers: licences, the notice of NVIDIA's weights, preprocessing, and how to install it, as files."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastervit_trt import __version__
from fastervit_trt.artifacts import Manifest
from fastervit_trt.deploy.bundle.manifest import EXPORT_FOLDER
from fastervit_trt.deploy.targets.target import Target
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.models.tasks.heads import OUTPUTS, get_task

__all__ = ["write_checksums", "write_licences", "write_preprocessing", "write_readme"]

_LICENCES = "LICENSES"
_WEIGHTS = f"{_LICENCES}/NVIDIA-FasterViT-weights.txt"
_NON_COMMERCIAL = """\
Weights published by NVIDIA for FasterViT

The weights in this bundle were read from a checkpoint. If NVIDIA published that checkpoint, or it was fine-tuned from
one that NVIDIA published, it is licensed under the NVIDIA Source Code License-NC, and so is everything made from it:
the ONNX graph, quantisation ranges, engines and this bundle. That licence permits use for research and evaluation only,
not commercially, and must be passed on with the weights. Its text: https://github.com/NVlabs/FasterViT/blob/main/LICENSE
Whether it applies is for whoever made the checkpoint to say; what the export recorded of it is below.

"""


def write_licences(folder: Path, manifest: Manifest) -> tuple[list[dict[str, Any]], list[str]]:
    """Licence files for ``folder``; their records, and the notices that whoever installs the bundle has to see."""
    (folder / _LICENCES).mkdir()
    records = []
    for name, covers in (("LICENSE", "fastervit-trt: code, plugins and documents"), ("NOTICE", "fastervit-trt")):
        (folder / _LICENCES / name).write_text(_own_paper(name), encoding="utf-8")
        records.append({"name": "Apache-2.0", "file": f"{_LICENCES}/{name}", "covers": covers})
    if manifest.weights.get("kind") in ("checkpoint", "official"):
        weights = json.dumps(manifest.weights, indent=2, sort_keys=True)
        (folder / _WEIGHTS).write_text(f"{_NON_COMMERCIAL}{weights}\n", encoding="utf-8")
        records.append(
            {"name": "NVIDIA Source Code License-NC, where it applies", "file": _WEIGHTS, "covers": "weights"}
        )
    return records, list(manifest.notices)


def write_preprocessing(folder: Path, manifest: Manifest) -> None:
    """How a picture becomes the input, for programs that do not read the export's manifest."""
    content = {
        "input": manifest.input,
        "resolution": {"height": manifest.resolution[0], "width": manifest.resolution[1]},
        "colour": "RGB",
        "scale": "pixel / 255, minus mean, divided by std, per channel",
        **manifest.preprocessing,
    }
    (folder / "preprocessing.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_readme(folder: Path, name: str, manifest: Manifest, target: Target, build: str | None) -> None:
    """What this is and what to type.

    Args:
        build: the command that builds the plugins from the sources in the bundle.
    """
    golden, given = manifest.golden or {}, manifest.input
    lines = [
        name,
        "=" * len(name),
        "",
        f"{manifest.model}, {manifest.precision}, for {target.title}; packed by fastervit-trt {__version__}.",
        "",
        "Install, build and verify it on the target (the packer's key is trusted once, see `fastervit-deploy key`):",
        "",
        f"    pip install 'fastervit-trt[{_extra(target)}]'",
        "    fastervit-deploy trust PACKER.pub",
        f"    fastervit-deploy install {name}.tar.zst",
        "",
        "Without fastervit-trt:",
        "",
        "    sha256sum --check SHA256SUMS",
        "",
        f"- {EXPORT_FOLDER}/{GRAPH_FILE} is the graph, input {given['name']} {given['shape']} float32,",
        f"  outputs {', '.join(f'''{o['name']} {o['shape']}''' for o in manifest.outputs)}, batch {manifest.batch}.",
        "- preprocessing.json says how a picture becomes the input.",
        f"- {EXPORT_FOLDER}/{golden.get('images')} holds images, golden-*.npy beside it what PyTorch makes of them;",
        "  the largest error allowed is in the manifest there.",
    ]
    outputs = golden.get("outputs", {})
    if target.runtime == "tensorrt" and tuple(outputs) == OUTPUTS[get_task(manifest.task)]:
        budget = outputs[next(iter(outputs))]["budget"]  # of several outputs the first has the budget for all
        lines += [
            "- An engine that was built is run, and held to the same, without Python:",
            "",
            f"    fastervit-runner ENGINE {EXPORT_FOLDER}/{golden['images']} --golden {EXPORT_FOLDER} \\",
            f"        --tolerance {budget:.6g}",
            "",
        ]
    if build is not None:
        lines += [
            "- The plugins are built with TENSORRT_ROOT at the folder of TensorRT's include/:",
            "",
            f"    {build}",
        ]
    lines += ["", "Engines are executable code: load those alone whose origin you know.", ""]
    (folder / "README.txt").write_text("\n".join(lines), encoding="utf-8")


def write_checksums(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """``SHA256SUMS``, as ``sha256sum --check`` reads it."""
    lines = (f"{entry['sha256']}  {name}\n" for name, entry in sorted(files.items()))
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _extra(target: Target) -> str:
    """The extra of the package that a target needs."""
    if target.l4t is not None:
        return "jetson"
    return {"tensorrt": "gpu", "tensorrt-rtx": "rtx", "onnxruntime": "cpu"}[target.runtime]


def _own_paper(name: str) -> str:
    checkout = Path(__file__).resolve().parents[2] / name
    if checkout.is_file() and (checkout.parent / "pyproject.toml").is_file():
        return checkout.read_text(encoding="utf-8")
    try:
        found = importlib.metadata.distribution("fastervit-trt").read_text(f"licenses/{name}")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None:
        raise FasterViTError(f"this installation of fastervit-trt lacks its {name}; install the package again")
    return found
