"""A bundle in, a model repository for the Triton Inference Server out, with all that is needed to run it beside it.

| file | what it is |
|---|---|
| ``models/NAME`` | tensors in and out: TensorRT engine, or graph for ONNX Runtime |
| ``models/NAME_preprocess`` | encoded pictures in, tensors out: the Python step, with the project's own preprocessing |
| ``models/NAME_pictures`` | both in turn, as an ensemble: encoded pictures in, the model's outputs out |
| ``plugins`` | the plugin library; a folder in ``models`` would be taken for a model |
| ``Dockerfile``, ``compose.yaml``, ``client.py``, ``golden``, ``README.txt`` | how to run, ask and check it |
| ``triton.json`` | what was written |

Ranking classes needs no step: Triton's classification extension does it, with the labels.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastervit_trt.artifacts import new_folder, sha256_file
from fastervit_trt.deploy.bundle.manifest import EXPORT_FOLDER, Bundle
from fastervit_trt.deploy.triton.config import (
    LABELS,
    Service,
    cpu_config,
    model_config,
    pictures_config,
    step_config,
)
from fastervit_trt.deploy.triton.served import Served, choose
from fastervit_trt.deploy.triton.surroundings import PLUGINS, REPOSITORY, Surroundings
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.tasks.heads import LOGITS

__all__ = ["MARKER", "WrittenRepository", "write_repository"]

MARKER = "triton.json"
_VERSION = "1"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class WrittenRepository:
    """What was written."""

    folder: Path  # with compose.yaml and README.txt
    models: Path  # the repository
    names: tuple[str, str]  # of the model that takes tensors and of the one that takes pictures
    backend: str
    image: str | None  # Triton's, or None where none is known that fits
    command: tuple[str, ...]  # that serves it where it lies
    notices: tuple[str, ...]


def write_repository(
    bundle: Bundle,
    output: Path,
    *,
    backend: Literal["auto", "tensorrt", "onnxruntime"] = "auto",
    device: Literal["auto", "gpu", "cpu"] = "auto",
    instances: int = 1,
    max_queue_delay_us: int = 500,
    max_batch: int | None = None,
    queue_size: int | None = None,
    timeout_us: int = 2_000_000,
    versions_kept: int = 1,
    threads: int | None = None,
    decoders: int = 2,
    max_pixels: int = 50_000_000,
    engine: str | None = None,
    image: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> WrittenRepository:
    """Write ``output``, whole or not at all.

    Args:
        bundle: checked, as :func:`fastervit_trt.deploy.bundle.opened.opened_bundle` yields it, or installed.
        backend: "auto" takes the TensorRT engine if there is one that Triton can run.
        device: "auto" is the GPU for TensorRT; for ONNX Runtime the GPU if the bundle's target has one.
        instances: of the model on each GPU, or on the CPU.
        max_queue_delay_us: how long a request may wait for others to share its batch, microseconds.
        max_batch: fewer images at once than the engine or graph allows.
        queue_size: requests that may wait, more are refused; by default what eight batches per instance hold.
        timeout_us: after which a waiting request is refused.
        versions_kept: newest versions of the model that are served.
        threads: of each instance on a CPU; all cores by default.
        decoders: processes that decode pictures.
        max_pixels: of a picture; more is refused before it is decoded.
        engine: file of the engine, if there are several.
        image: Triton's, if not the one that NVIDIA publishes with the engine's TensorRT.
        name: of the model; the export's by default.
        overwrite: replace an earlier repository.

    Raises:
        FasterViTError: nothing in the bundle can be served like that, an option makes no sense, or ``output`` exists.
    """
    service = Service(
        instances, max_queue_delay_us, queue_size, timeout_us, versions_kept, threads, decoders, max_pixels
    )
    _check(service)
    served = choose(bundle, backend=backend, device=device, max_batch=max_batch, name=name, engine=engine)
    around = Surroundings(bundle, served, service, image)
    pictures = f"{served.name}_pictures"
    output = output.absolute()
    with new_folder(output, overwrite=overwrite, marker=MARKER) as folder:
        _write_models(bundle, served, service, folder / REPOSITORY, pictures)
        around.write(folder)
        command = tuple(around.command(str(output / REPOSITORY), str(output / PLUGINS)))
        record = {"bundle": bundle.manifest.name, "image": around.server_image, "service": asdict(service)}
        _write_marker(folder, {**record, "names": [served.name, pictures], "backend": served.backend})
    return WrittenRepository(
        output,
        output / REPOSITORY,
        (served.name, pictures),
        served.backend,
        around.server_image,
        command,
        around.notices,
    )


def _check(service: Service) -> None:
    least = {"instances": 1, "queue_delay_us": 0, "timeout_us": 1, "versions": 1, "decoders": 1, "max_pixels": 1}
    for field, minimum in {**least, "queue_size": 1, "threads": 1}.items():
        value = getattr(service, field)
        if value is not None and value < minimum:
            raise FasterViTError(f"{field} is {value} and must be at least {minimum}; choose another")


def _write_models(bundle: Bundle, served: Served, service: Service, models: Path, pictures: str) -> None:
    labels, step = _has_labels(bundle, served), f"{served.name}_preprocess"
    for name in (served.name, step, pictures):
        (models / name / _VERSION).mkdir(parents=True)
    model, versions = models / served.name, {name: models / name / _VERSION for name in (served.name, step, pictures)}
    for file, path in served.files.items():
        _copy(bundle, path, versions[served.name] / file)
    _write(model / "config.pbtxt", model_config(served, service, labels=labels))
    if served.backend == "onnxruntime" and served.device == "gpu":
        (model / "configs").mkdir()
        _write(model / "configs" / "cpu.pbtxt", cpu_config(served, service, labels=labels))
    how = {**bundle.export.preprocessing, "resolution": list(served.image[1:])}
    _write(models / step / "config.pbtxt", step_config(served, service, step, how))
    shutil.copyfile(_TEMPLATES / "model.py", versions[step] / "model.py")
    shutil.copyfile(_preprocessing(), versions[step] / "preprocessing.py")
    _write(models / pictures / "config.pbtxt", pictures_config(served, service, pictures, step, labels=labels))
    (versions[pictures] / ".keep").touch()  # Triton wants a version's folder, and archives forget empty ones
    if labels:
        assert bundle.manifest.labels is not None
        for name in (served.name, pictures):
            shutil.copyfile(bundle.folder / bundle.manifest.labels, models / name / LABELS)


def _has_labels(bundle: Bundle, served: Served) -> bool:
    """Whether there are logits to rank, whose classes have names, one for each."""
    classes = {output.shape[0] for output in served.outputs if output.name == LOGITS}
    if not bundle.labels or not classes:
        return False
    if classes != {len(bundle.labels)}:
        raise FasterViTError(
            f"'{bundle.folder / str(bundle.manifest.labels)}' has {len(bundle.labels)} names, the model "
            f"{', '.join(map(str, sorted(classes)))} classes; pack the bundle again with a name for each"
        )
    return True


def _copy(bundle: Bundle, source: Path, target: Path) -> None:
    """A file of the export, and that the copy is what the manifest describes: engines are executable code."""
    shutil.copyfile(source, target)
    if sha256_file(target) != bundle.export.files[source.name]["sha256"]:
        raise FasterViTError(
            f"'{source}' is not the file that the manifest of {EXPORT_FOLDER} describes; get the bundle again"
        )


def _preprocessing() -> Path:
    """The file itself: importing it is for the Python step, elsewhere."""
    spec = importlib.util.find_spec("fastervit_trt.models.preprocessing")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_marker(folder: Path, record: Mapping[str, Any]) -> None:
    files = {
        path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    _write(folder / MARKER, json.dumps({**record, "files": files}, indent=2, sort_keys=True) + "\n")
