"""Train the detector and the segmenter that ship with the package: ``python -m fastervit_trt.models.scenes.train``.

Writes, per model, ``weights/NAME.safetensors`` and ``weights/NAME.json`` (seed, recipe, log, figures on the validation
split). No scene is shown twice. The validation split is looked at once, after the last step; nothing is selected on
it. An interrupted training goes on from its last checkpoint. Bit-for-bit repetition is promised only for the same
torch version, CPU and thread count.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from torch import nn

from fastervit_trt.console import command_app, run_command, say, track
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.checkpoint import save_safetensors
from fastervit_trt.models.factory import construct
from fastervit_trt.models.scenes.data import Scene, scene
from fastervit_trt.models.scenes.judge import judge
from fastervit_trt.models.scenes.losses import DenseHints, detection_loss, pixels_of, segmentation_loss
from fastervit_trt.models.tasks.model import Detector, Segmenter, TaskModel
from fastervit_trt.models.variants import VARIANTS
from fastervit_trt.scoring import Score

__all__ = ["RECIPES", "Recipe", "train"]

app = command_app()

_LOG_EVERY = 100  # steps; checkpoints are written then, too


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, linear warm-up, cosine decay to nothing."""

    steps: int
    learning_rate: float  # peak
    bfloat16: bool  # autocast; the segmenter's step takes two thirds of the time with it, the detector's does not
    hint_weight: float = 0.0  # of DenseHints
    batch: int = 16
    weight_decay: float = 0.01
    warmup: float = 0.05  # of the steps
    clip: float = 1.0  # norm of the gradient
    seed: int = 0


RECIPES = {
    "faster_vit_scenes_segmenter": Recipe(steps=2500, learning_rate=2e-3, bfloat16=True),
    "faster_vit_scenes_detector": Recipe(steps=3000, learning_rate=1e-3, bfloat16=False, hint_weight=2.0),
}


@dataclass
class _Progress:
    """All that a training needs to go on from where it was."""

    model: TaskModel
    loss: Callable[[torch.Tensor, Sequence[Scene]], torch.Tensor]
    parts: nn.ModuleList  # the model, and what is trained along with it
    optimizer: torch.optim.Optimizer
    step: int
    log: list[dict[str, float]]


def train(name: str, recipe: Recipe, checkpoint: Path) -> tuple[TaskModel, list[dict[str, float]]]:
    """The trained model (eval mode) and the log; goes on from ``checkpoint`` where there is one."""
    torch.manual_seed(recipe.seed)
    progress = _begin(name, recipe)
    if checkpoint.exists():
        _restore(progress, recipe, checkpoint)
    progress.model.train()
    total, start = 0.0, time.perf_counter()
    for step in track(range(progress.step, recipe.steps), f"training {name}"):
        for group in progress.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step / recipe.steps, recipe.warmup)
        total += _step(progress, recipe, name, step)
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == recipe.steps:
            steps = step % _LOG_EVERY + 1
            seconds = round(time.perf_counter() - start, 1)
            progress.log.append({"step": step + 1, "loss": round(total / steps, 4), "seconds": seconds})
            progress.step, total, start = step + 1, 0.0, time.perf_counter()
            _save(progress, recipe, checkpoint)
    return progress.model.eval(), progress.log


def _begin(name: str, recipe: Recipe) -> _Progress:
    model = construct(VARIANTS[name].config, VARIANTS[name].head)
    assert isinstance(model, TaskModel)
    loss: Callable[[torch.Tensor, Sequence[Scene]], torch.Tensor]
    parts = nn.ModuleList([model])
    if isinstance(model, Detector):
        detector, hints = model, DenseHints(model)
        parts.append(hints)

        def loss(images: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
            return detection_loss(detector, hints, images, scenes, recipe.hint_weight)
    else:
        assert isinstance(model, Segmenter)
        segmenter = model

        def loss(images: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
            return segmentation_loss(segmenter, images, scenes)

    optimizer = torch.optim.AdamW(parts.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return _Progress(model, loss, parts, optimizer, 0, [])


def _step(progress: _Progress, recipe: Recipe, name: str, step: int) -> float:
    """One step on scenes that were not shown before; its loss."""
    scenes = [scene(step * recipe.batch + i, "train") for i in range(recipe.batch)]
    images = pixels_of(progress.model, name, scenes)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        loss = progress.loss(images, scenes)
    progress.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(progress.parts.parameters(), recipe.clip)
    progress.optimizer.step()
    return float(loss.detach())


def _rate(done: float, warmup: float) -> float:
    """Share of the peak learning rate when ``done`` of all steps are done."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _save(progress: _Progress, recipe: Recipe, path: Path) -> None:
    """Whole or not at all: the old checkpoint stays until the new one is complete."""
    state = {
        "recipe": asdict(recipe),
        "parts": progress.parts.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "step": progress.step,
        "log": progress.log,
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def _restore(progress: _Progress, recipe: Recipe, path: Path) -> None:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise FasterViTError(f"{path} is of a training with another recipe; delete it or choose another --output")
    progress.parts.load_state_dict(state["parts"])
    progress.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    progress.step, progress.log = state["step"], state["log"]


@app.command()
def main_command(
    model: Annotated[list[str] | None, typer.Option(help="Model to train; both by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of training; the recipe's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of initial weights and denoising.")] = Recipe.seed,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for weights and logs.")] = Path(__file__).parent / "weights",
) -> None:
    """Train the scenes models and write weights and logs."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    for name in model or list(RECIPES):
        recipe = replace(RECIPES[name], seed=seed)
        recipe = recipe if steps is None else replace(recipe, steps=steps)
        checkpoint = output / f"{name}.progress"
        trained, log = train(name, recipe, checkpoint)
        save_safetensors(trained.state_dict(), output / f"{name}.safetensors")
        score = judge(trained, name)
        record = {
            "model": name,
            "parameters": sum(p.numel() for p in trained.parameters()),
            "validation": _figures(score),
            "recipe": asdict(recipe),
            "torch": torch.__version__,
            "threads": threads,
            "log": log,
        }
        (output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        checkpoint.unlink()
        say(f"{name}: {score}, all of them validation scenes")


def _figures(score: Score) -> dict[str, float]:
    """What is recorded of a score: value and interval under its metric, then the others."""
    main = {score.metric: score.value, "low": score.low, "high": score.high}
    return {"images": score.images, **{k: round(v, 4) for k, v in {**main, **score.further}.items()}}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of ``python -m fastervit_trt.models.scenes.train``."""
    run_command(app, arguments)


if __name__ == "__main__":
    main()
