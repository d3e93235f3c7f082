"""Sends pictures, or the golden images, to the server and prints what comes back; an example to start from.

    pip install "tritonclient[http]" numpy
    python client.py --model faster_vit_0_224 cat.jpg dog.png   # likeliest classes, surest boxes or commonest classes
    python client.py --model faster_vit_0_224 --golden golden   # is the server right? exit code 1 if not

Works with Triton and with `fastervit-deploy serve`: both speak the KServe v2 protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tritonclient import http
from tritonclient.utils import InferenceServerException

DETECTIONS = ("boxes", "scores", "labels")
POWER, LEAST_SURE = 4, 1e-6  # of export/golden.py, where this comparison is defined
Outputs = Sequence[np.ndarray]  # of one image
Apart = Callable[[Outputs, Outputs], tuple[float, str]]  # expected and found: how far apart, and why


class Difference(NamedTuple):
    """How far an output is from the golden one: a number and the reason for each image, and what is allowed."""

    output: str
    by_image: np.ndarray
    reasons: tuple[str, ...]
    budget: float

    @property
    def worst(self) -> float:
        return float(self.by_image.max())  # NaN if one is

    @property
    def within(self) -> bool:
        return self.worst <= self.budget  # which NaN is not

    def __str__(self) -> str:
        share = f", {self.worst / self.budget:.0%} of what is allowed" if self.budget > 0 else ""
        return f"{self.output}: largest difference {self.worst:.3g}, allowed {self.budget:.3g}{share}"


def main() -> int:
    """Exit code 0, 1 where golden outputs differ, or 2 where the server cannot be asked."""
    arguments = _arguments()
    try:
        with http.InferenceServerClient(arguments.url, network_timeout=60.0) as client:
            if arguments.golden is not None:
                return check_golden(client, arguments.model, arguments.golden)
            for path in arguments.pictures:
                show(path, ask(client, arguments.model, path), labels(arguments.labels), arguments.top)
    except (InferenceServerException, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def ask(client: Any, model: str, path: Path) -> dict[str, np.ndarray]:
    """Outputs of one picture, which is sent as the file it is: the server decodes and prepares it."""
    pictures = np.array([path.read_bytes()], dtype=np.object_)
    return infer(client, f"{model}_pictures", pictures, "BYTES")


def infer(client: Any, model: str, items: np.ndarray, datatype: str) -> dict[str, np.ndarray]:
    """Outputs of one request by name, one row for each of ``items``: (n,) encoded pictures, or (n, 3, H, W) images."""
    meta = client.get_model_metadata(model)
    name, shape = meta["inputs"][0]["name"], meta["inputs"][0]["shape"]
    static = int(shape[0]) if int(shape[0]) > 0 else None  # a graph of so many images, no fewer and no more
    sent = (
        items if static is None else np.concatenate([items, np.repeat(items[-1:], max(0, static - len(items)), axis=0)])
    )
    if datatype == "BYTES" and len(shape) == 2:
        sent = sent.reshape(-1, 1)
    tensor = http.InferInput(name, list(sent.shape), datatype)
    tensor.set_data_from_numpy(sent)
    answer = client.infer(model, [tensor])
    return {output["name"]: answer.as_numpy(output["name"])[: len(items)] for output in meta["outputs"]}


def show(path: Path, outputs: dict[str, np.ndarray], names: list[str], top: int) -> None:
    """The likeliest classes, the surest boxes, the classes of most pixels, or what else the model yields."""
    print(path)
    if set(outputs) == set(DETECTIONS):
        boxes, scores, classes = (outputs[name][0] for name in DETECTIONS)
        for box, score, index in list(zip(boxes, scores, classes, strict=True))[:top]:  # from the surest on
            print(f"  {score:8.2%}  {called(int(index), names)}  {corners(box)}")
        return
    for output, rows in outputs.items():
        (row,) = rows
        if output == "masks":
            present, pixels = np.unique(row, return_counts=True)
            for index in np.argsort(-pixels, kind="stable")[:top]:
                print(f"  {pixels[index] / row.size:8.2%} of the pixels  {called(int(present[index]), names)}")
            continue
        if row.ndim != 1:
            print(f"  {output}: {' x '.join(map(str, row.shape))}, mean {row.mean():.4f}")
            continue
        likely = np.exp(row - row.max(), dtype=np.float64)
        likely /= likely.sum()
        for index in np.argsort(-likely, kind="stable")[:top]:
            print(f"  {likely[index]:8.2%}  {called(int(index), names)}")


def check_golden(client: Any, model: str, folder: Path) -> int:
    """Send the golden images as tensors; 1 if what comes back differs from PyTorch's by more than is allowed."""
    record = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    images = np.load(folder / record["images"], allow_pickle=False)
    answers = [infer(client, model, image[None], "FP32") for image in images]
    expected, found = {}, {}
    for name, output in record["outputs"].items():
        expected[name] = np.load(folder / output["file"], allow_pickle=False)
        if name not in answers[0]:
            print(f"{name}: the server yields {', '.join(answers[0])}")
            return 1
        found[name] = np.concatenate([answer[name] for answer in answers])
        if found[name].shape != expected[name].shape:
            print(f"{name}: the server yields {found[name].shape}, the golden set has {expected[name].shape}")
            return 1
    differences = compare(expected, found, {name: output["budget"] for name, output in record["outputs"].items()})
    for difference in differences:
        for kind, error, reason in zip(record["kinds"], difference.by_image, difference.reasons, strict=True):
            print(f"{kind} image: {difference.output} differ by {error:.3g}; {reason}")
        print(difference)
    return 0 if all(difference.within for difference in differences) else 1


def compare(
    expected: dict[str, np.ndarray], found: dict[str, np.ndarray], budgets: dict[str, float | None]
) -> list[Difference]:
    """Outputs by name, (N, ...): masks by the pixels with another class, detections by the worst of them, others by
    their values. Of the outputs of a detector one has a budget, which is for all of them.
    """
    parts: list[tuple[tuple[str, ...], Apart]] = [((name,), values_apart) for name in expected]
    if set(expected) == {"masks"}:
        parts = [(("masks",), masks_apart)]
    elif set(expected) == set(DETECTIONS):
        parts = [(DETECTIONS, detections_apart)]
    differences = []
    for names, apart in parts:
        rows = zip(*(zip(*(side[name] for name in names), strict=True) for side in (expected, found)), strict=True)
        errors, reasons = zip(*(apart(one, other) for one, other in rows), strict=True)
        differences.append(Difference(names[0], np.array(errors), reasons, float(budgets[names[0]] or 0)))
    return differences


def values_apart(expected: Outputs, found: Outputs) -> tuple[float, str]:
    """The largest difference of two values, and where it is."""
    (one,), (other,) = expected, found
    errors = np.abs(other.astype(np.float64) - one)
    errors[~np.isfinite(errors)] = np.inf  # what is no number is as wrong as can be
    at = np.unravel_index(errors.argmax(), errors.shape)
    return float(errors[at]), f"{[int(i) for i in at]} is {other[at]:.6g}, expected {one[at]:.6g}"


def masks_apart(expected: Outputs, found: Outputs) -> tuple[float, str]:
    """The share of pixels with another class."""
    differ = expected[0] != found[0]
    return float(differ.mean()), f"{int(differ.sum())} of {differ.size} pixels have another class"


def detections_apart(expected: Outputs, found: Outputs) -> tuple[float, str]:
    """Every box looks for its best counterpart of the same label, as far from it as the larger of the differences of
    scores, relative to the largest expected, and of sides. It matters as the fourth power of its relative score; what
    matters most of both sides is the difference.
    """
    if not all(np.isfinite(array).all() for array in found):
        return 1.0, "some of it is no number"
    (boxes, scores, classes), (others, their_scores, their_classes) = expected, found
    surest = max(float(scores.max()), LEAST_SURE)
    scores, their_scores = (values.astype(np.float64) / surest for values in (scores, their_scores))
    their_scores = their_scores.clip(max=1.0)
    apart = np.abs(boxes[:, None] - others[None]).max(axis=2)
    apart = np.maximum(apart, np.abs(scores[:, None] - their_scores[None]))
    apart = np.where(classes[:, None] == their_classes[None], apart, 1.0).clip(max=1.0)
    missed, added = scores**POWER * apart.min(axis=1), their_scores**POWER * apart.min(axis=0)
    if added.max() > missed.max():
        worst = int(added.argmax())
        return float(
            added[worst]
        ), f"most by {described(found, worst)}, {nearest(expected, apart[:, worst], 'expected')}"
    worst = int(missed.argmax())
    return float(missed[worst]), f"most by {described(expected, worst)}, {nearest(found, apart[worst], 'found')}"


def nearest(others: Outputs, apart: np.ndarray, verb: str) -> str:
    """The best counterpart among ``others``, in words."""
    best = int(apart.argmin())
    return f"{verb} as {described(others, best)}" if apart[best] < 1 else f"which was not {verb} at all"


def described(detections: Outputs, index: int) -> str:
    """One of an image's detections, in words."""
    box, score, label = (array[index] for array in detections)
    return f"label {int(label)}, score {score:.3f}, {corners(box)}"


def corners(box: np.ndarray) -> str:
    """Left, top, right and bottom, as shares of the picture's width and height."""
    return "(" + ", ".join(f"{side:.3f}" for side in box) + ")"


def called(index: int, names: list[str]) -> str:
    """A class by its name, if it has one."""
    return names[index] if index < len(names) else f"class {index}"


def labels(path: Path) -> list[str]:
    """Class names by index; none where there is no such file."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask a FasterViT server.")
    parser.add_argument("pictures", nargs="*", type=Path, help="JPEG or PNG files")
    parser.add_argument("--model", required=True, help="without _pictures")
    parser.add_argument("--url", default="127.0.0.1:8000", help="host and port of HTTP")
    parser.add_argument("--top", type=int, default=5, help="classes or boxes to print")
    parser.add_argument("--labels", type=Path, default=Path(__file__).with_name("labels.txt"), help="one name a line")
    parser.add_argument("--golden", type=Path, help="folder with golden.json: check the server instead")
    arguments = parser.parse_args()
    if not arguments.pictures and arguments.golden is None:
        parser.error("name pictures, or --golden FOLDER")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
