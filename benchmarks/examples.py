"""Pictures of the data in, what an export and PyTorch fp32 found in them out, as files: taken in the process of a cell,
drawn beside the ground truth when all cells are done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fastervit_trt.artifacts import Manifest, new_file
from fastervit_trt.benchmarks.backends.runner import Outputs
from fastervit_trt.benchmarks.evaluate import Reference
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.graph import GRAPH_FILE
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.picture_set import spread
from fastervit_trt.models.preprocessing import preprocess_image

if TYPE_CHECKING:
    from fastervit_trt.benchmarks.report.overlay import Finding
    from fastervit_trt.models.annotated import AnnotatedImages

__all__ = ["EXAMPLES", "Example", "copy_examples", "draw_examples", "read_examples", "take_examples"]

EXAMPLES = "examples"  # folder of a sweep
_INDEX = "examples.json"
_DIGITS = 8  # of the hash that tells exports of one name apart


@dataclass(frozen=True)
class Example:
    """A picture that was drawn: ``file`` in the folder, and whose findings it shows."""

    file: str
    picture: str  # its name in the data
    data: str
    export: str
    model: str
    task: str
    precision: str
    backend: str
    resolution: str  # HxW


def take_examples(
    outputs_of: Callable[[np.ndarray], Outputs],
    data: AnnotatedImages,
    manifest: Manifest,
    reference: Reference | None,
    count: int,
    folder: Path,
    *,
    export: Path,
    backend: str,
) -> Path | None:
    """What ``outputs_of`` and the reference find in ``count`` pictures, spread over ``data``, as a file in ``folder``.

    Returns:
        The file; None where none of these pictures can be read.
    """
    how, resolution = Preprocessing(**manifest.preprocessing), manifest.resolution
    found: dict[int, Outputs] = {}
    for number in spread(range(len(data)), count):
        if (picture := _opened(data.images[number])) is not None:
            found[number] = outputs_of(preprocess_image(picture, how, resolution)[None])
    if not found:
        return None
    numbers = list(found)
    arrays = {f"found_{i}": np.concatenate(parts) for i, parts in enumerate(zip(*found.values(), strict=True))}
    if reference is not None:
        arrays |= {f"reference_{i}": output[numbers] for i, output in enumerate(reference.outputs)}
    about = {
        "export": export.name,
        "model": manifest.model,
        "task": manifest.task,
        "precision": manifest.precision,
        "backend": backend,
        "resolution": "x".join(map(str, resolution)),
    }
    digest = manifest.files[GRAPH_FILE]["sha256"][:_DIGITS]
    path = folder / f"{export.name}-{backend}-{digest}.npz"
    with new_file(path, overwrite=True) as new, new.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, numbers=numbers, about=json.dumps(about), **arrays)
    return path


def draw_examples(folder: Path, data: AnnotatedImages) -> list[Example]:
    """Draw all that :func:`take_examples` left in ``folder``: a PNG per picture and export, and a list of them."""
    from fastervit_trt.benchmarks.report.overlay import draw_panels

    examples = []
    for path in sorted(folder.glob("*.npz")):
        about, numbers, found, reference = _taken(path)
        for place, number in enumerate(numbers):
            picture = _opened(data.images[number])
            if picture is None:
                continue
            columns: list[tuple[str, Finding]] = [("ground truth", data.annotation(number))]
            columns += [("PyTorch fp32", tuple(x[place] for x in reference))] if reference else []
            columns.append((f"{about['precision']} on {about['backend']}", tuple(x[place] for x in found)))
            file = folder / f"{path.stem}-{number}.png"
            with new_file(file, overwrite=True) as new:
                new.write_bytes(draw_panels(picture, about["task"], columns, data.class_names))
            examples.append(
                Example(file=file.name, picture=_name(data.images[number], number), data=data.name, **about)
            )
    if examples:
        _write_index(examples, folder)
    return examples


def read_examples(folder: Path) -> list[Example]:
    """Those that were drawn into ``folder``, if any.

    Raises:
        FasterViTError: the list of them is damaged.
    """
    path = folder / _INDEX
    if not path.is_file():
        return []
    try:
        examples = [Example(**entry) for entry in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise FasterViTError(f"'{path}' is damaged ({error}); delete it to have a report without examples") from error
    return [example for example in examples if (folder / Path(example.file).name).is_file()]


def copy_examples(results: Sequence[Path], folder: Path) -> list[Example]:
    """Those of several result folders, as ``folder``'s own."""
    examples = []
    for number, path in enumerate(results):
        for example in read_examples(path / EXAMPLES):
            folder.mkdir(parents=True, exist_ok=True)
            file = f"{number}-{example.file}"
            shutil.copyfile(path / EXAMPLES / example.file, folder / file)
            examples.append(Example(**{**asdict(example), "file": file}))
    if examples:
        _write_index(examples, folder)
    return examples


def _opened(image: Image.Image | Path) -> Image.Image | None:
    """The picture; None where it cannot be read, which the accuracy has said."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as picture:
            return picture.convert("RGB")
    except Exception:  # damaged bytes make decoders raise anything
        return None


def _taken(path: Path) -> tuple[dict[str, str], list[int], list[np.ndarray], list[np.ndarray]]:
    """What the file says: about the export, numbers of pictures, outputs found, and those of the reference."""
    with np.load(path, allow_pickle=False) as content:
        about: dict[str, Any] = json.loads(str(content["about"]))
        numbers = [int(number) for number in content["numbers"]]
        return about, numbers, _numbered(content, "found"), _numbered(content, "reference")


def _numbered(content: Mapping[str, np.ndarray], kind: str) -> list[np.ndarray]:
    names = sorted(name for name in content if name.startswith(f"{kind}_"))
    return [content[name] for name in names]


def _name(image: Image.Image | Path, number: int) -> str:
    return image.name if isinstance(image, Path) else f"picture {number}"


def _write_index(examples: Sequence[Example], folder: Path) -> None:
    with new_file(folder / _INDEX, overwrite=True) as new:
        new.write_text(json.dumps([asdict(example) for example in examples], indent=1) + "\n")
