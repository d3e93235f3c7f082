"""Train the digits models that ship with the package: ``python -m fastervit_trt.models.digits.train``.

Writes, per model, ``weights/NAME.safetensors`` and ``weights/NAME.json`` (seed, hyper-parameters, log per epoch,
held-out accuracy of the last epoch). The held-out third is looked at once, after the last epoch; nothing is selected
on it. Bit-for-bit repetition is promised only for the same torch version, CPU and thread count.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional as F

from fastervit_trt.console import command_app, run_command, say, track
from fastervit_trt.models.checkpoint import save_safetensors
from fastervit_trt.models.digits.data import DIGITS_FOLDER, load_digits_split
from fastervit_trt.models.factory import create_model, get_variant, list_models
from fastervit_trt.models.fastervit import FasterViT
from fastervit_trt.models.preprocessing import preprocess_image

__all__ = ["Recipe", "train"]

app = command_app()


@dataclass(frozen=True)
class Recipe:
    """How a digits model is trained; the same for all of them."""

    epochs: int = 40
    batch: int = 64
    learning_rate: float = 3e-3  # peak, AdamW with cosine decay
    weight_decay: float = 0.05
    warmup_epochs: int = 3
    label_smoothing: float = 0.1
    rotation_degrees: float = 12.0
    shift: float = 0.08  # of the image side
    zoom: float = 0.12
    seed: int = 0


def train(name: str, recipe: Recipe) -> tuple[FasterViT, list[dict[str, float]], float]:
    """The trained model (eval mode), the log per epoch, and its accuracy on the held-out third in [0, 1]."""
    torch.manual_seed(recipe.seed)
    model = create_model(name)
    images, labels = _tensors(name, "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = math.ceil(len(images) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, recipe))
    log = []
    for epoch in track(range(recipe.epochs), f"training {name}"):
        model.train()
        total_loss, correct, start = 0.0, 0, time.perf_counter()
        for index in torch.randperm(len(images)).split(recipe.batch):
            logits = model(_augment(images[index], recipe))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(index)
            correct += int((logits.argmax(1) == labels[index]).sum())
        log.append(
            {
                "epoch": epoch + 1,
                "loss": round(total_loss / len(images), 4),
                "train_accuracy": round(correct / len(images), 4),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    model.eval()
    return model, log, _accuracy(model, *_tensors(name, "held_out"))


def _tensors(name: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    variant = get_variant(name)
    images, labels = load_digits_split("train" if part == "train" else "held_out")
    pixels = [preprocess_image(image, variant.preprocessing, variant.config.resolution) for image in images]
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(labels)


def _rate(epoch: float, recipe: Recipe) -> float:
    if epoch < recipe.warmup_epochs:
        return (epoch + 0.1) / recipe.warmup_epochs
    done = (epoch - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _augment(x_BCHW: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """A random rotation, zoom and shift per image; the border repeats the background (-1)."""
    n = len(x_BCHW)
    angle = (torch.rand(n) * 2 - 1) * math.radians(recipe.rotation_degrees)
    zoom = 1 + (torch.rand(n, 2) * 2 - 1) * recipe.zoom
    shift = (torch.rand(n, 2) * 2 - 1) * recipe.shift * 2  # affine_grid spans 2 units per side
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * zoom[:, 0], -sin * zoom[:, 1], shift[:, 0]], dim=1),
            torch.stack([sin * zoom[:, 0], cos * zoom[:, 1], shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


@torch.inference_mode()
def _accuracy(model: FasterViT, images: torch.Tensor, labels: torch.Tensor) -> float:
    predicted = torch.cat([model(chunk).argmax(1) for chunk in images.split(64)])
    return float((predicted == labels).float().mean())


@app.command()
def main_command(
    model: Annotated[list[str] | None, typer.Option(help="Digits model to train; all of them by default.")] = None,
    epochs: Annotated[int, typer.Option(min=4, help="Epochs of training.")] = Recipe.epochs,
    seed: Annotated[int, typer.Option(help="Seed of initial weights, order and augmentation.")] = Recipe.seed,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder for weights and logs.")] = DIGITS_FOLDER / "weights",
) -> None:
    """Train the digits models on two thirds of scikit-learn's digits and write weights and logs."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(epochs=epochs, seed=seed)
    for name in model or [n for n in list_models() if get_variant(n).shipped_weights and get_variant(n).head is None]:
        trained, log, accuracy = train(name, recipe)
        save_safetensors(trained.state_dict(), output / f"{name}.safetensors")
        record = {
            "model": name,
            "parameters": sum(p.numel() for p in trained.parameters()),
            "held_out_accuracy": round(accuracy, 4),
            "recipe": asdict(recipe),
            "torch": torch.__version__,
            "threads": threads,
            "log": log,
        }
        (output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        say(f"{name}: {accuracy:.2%} on the held-out third")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.models.digits.train``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
