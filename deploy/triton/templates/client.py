"""Sends pictures, or the golden images, to the server and prints what comes back; an example to start from.

    pip install "tritonclient[http]" numpy
    python client.py --model faster_vit_0_224 cat.jpg dog.png   # top 5 of each picture
    python client.py --model faster_vit_0_224 --golden golden   # is the server right? exit code 1 if not

Works with Triton and with `fastervit-deploy serve`: both speak the KServe v2 protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import http
from tritonclient.utils import InferenceServerException


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
    """The likeliest classes, or what else the model yields."""
    print(path)
    for output, rows in outputs.items():
        (row,) = rows
        if row.ndim != 1:
            print(f"  {output}: {' x '.join(map(str, row.shape))}, mean {row.mean():.4f}")
            continue
        likely = np.exp(row - row.max(), dtype=np.float64)
        likely /= likely.sum()
        for index in np.argsort(-likely, kind="stable")[:top]:
            print(f"  {likely[index]:8.2%}  {names[index] if index < len(names) else f'class {index}'}")


def check_golden(client: Any, model: str, folder: Path) -> int:
    """Send the golden images as tensors; 1 if an output differs from PyTorch's by more than is allowed."""
    record = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    images = np.load(folder / record["images"], allow_pickle=False)
    answers = [infer(client, model, image[None], "FP32") for image in images]
    within = True
    for name, output in record["outputs"].items():
        expected = np.load(folder / output["file"], allow_pickle=False)
        found = np.concatenate([answer[name] for answer in answers])
        error = float(np.max(np.abs(found.astype(np.float64) - expected)))
        share = error / output["budget"]
        print(f"{name}: largest error {error:.3g}, {share:.0%} of the {output['budget']:.3g} allowed")
        within = within and share <= 1  # which NaN is not
    return 0 if within else 1


def labels(path: Path) -> list[str]:
    """Class names by index; none where there is no such file."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask a FasterViT server.")
    parser.add_argument("pictures", nargs="*", type=Path, help="JPEG or PNG files")
    parser.add_argument("--model", required=True, help="without _pictures")
    parser.add_argument("--url", default="127.0.0.1:8000", help="host and port of HTTP")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--labels", type=Path, default=Path(__file__).with_name("labels.txt"), help="one name a line")
    parser.add_argument("--golden", type=Path, help="folder with golden.json: check the server instead")
    arguments = parser.parse_args()
    if not arguments.pictures and arguments.golden is None:
        parser.error("name pictures, or --golden FOLDER")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
