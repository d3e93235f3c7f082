"""What is found out about engines, with a TensorRT-RTX that only pretends."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastervit_trt.benchmarks.gpu import facts as gpu_facts
from fastervit_trt.benchmarks.gpu import rtx as gpu_rtx
from fastervit_trt.benchmarks.gpu.cases import ModelCase
from fastervit_trt.benchmarks.gpu.job import Job, Report
from fastervit_trt.benchmarks.gpu.rows import FAILED, OK, SKIPPED, WRONG, Result
from fastervit_trt.benchmarks.studies.plain import random_model
from fastervit_trt.errors import FasterViTError

SMALL = "faster_vit_digits_s"
JOB = Job(stage="facts", checkout=".", build=".", output=".", models=[SMALL], batches=[2], seconds=0.01, device="cpu")


class PretendedRunner:
    """Runs PyTorch; ``refuses`` names a step that does not work, ``off`` is added to logits."""

    refuses = ""
    off = 0.0

    def _step(self, name: str) -> str:
        if self.refuses == name:
            raise FasterViTError(f"TensorRT-RTX refuses to {name}")
        return f"{name}d"

    def deserialise(self, plan: bytes) -> str:
        assert plan == b"plan"
        return self._step("deserialise")

    def create_context(self) -> str:
        return self._step("contextualise")

    def call(self, outputs: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        model, known = random_model(SMALL), dict[int, Tensor]()

        def run(images: Tensor) -> Tensor:
            if len(images) not in known:  # timing it would time PyTorch
                known[len(images)] = model(images) + self.off
            return known[len(images)].clone()

        return run


Find = Callable[..., dict[tuple[str, int | None, str], Result]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's graph; one batch for all, as none of it runs."""
    case = ModelCase(SMALL, 2, (224, 224))
    return gpu_facts.export_for(random_model(SMALL), case, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch, exported: Path) -> Find:
    """Run the stage; results by case, batch and step."""
    monkeypatch.setattr(gpu_facts, "export_for", lambda model, case, folder: exported)

    def run(done: Any = (), **runner: Any) -> dict[tuple[str, int | None, str], Result]:
        pretended = type("Runner", (PretendedRunner,), runner)
        monkeypatch.setattr(gpu_rtx, "rtx_module", lambda: types.SimpleNamespace(__version__="1.7.1"))
        monkeypatch.setattr(gpu_rtx, "RtxRunner", pretended)
        monkeypatch.setattr(gpu_rtx, "build_plan", lambda path, capability: b"plan")
        events: list[dict[str, Any]] = []
        gpu_facts.run(JOB, Report("facts", events.append, done))
        results = [Result(**event["result"]) for event in events if "result" in event]
        return {(result.case, result.batch, result.peer): result for result in results}

    return run


def test_an_engine_that_runs_is_compared_and_timed(find: Find) -> None:
    facts = find()
    small = {step: row for (case, batch, step), row in facts.items() if case == f"TensorRT-RTX, {SMALL}" and batch == 8}
    assert [small[f"CURRENT {step}"].status for step in ("build", "deserialise", "context", "execute")] == [OK] * 4
    assert small["import"].note == "1.7.1"
    assert small["CURRENT deserialise"].note == "deserialised"
    assert small["CURRENT execute"].error == 0
    assert small["SM80 CUDA graph"].throughput_img_per_s == pytest.approx(8e6 / small["SM80 CUDA graph"].time_us)  # type: ignore[operator]
    assert (f"TensorRT-RTX, {SMALL}", 2, "CURRENT execute") in facts  # then the model asked for


@pytest.mark.parametrize("step", ["deserialise", "contextualise"])
def test_the_first_step_that_fails_says_why_and_ends_it(find: Find, step: str) -> None:
    facts = find(refuses=step)
    last = [row for (case, _, _), row in facts.items() if case.startswith("TensorRT-RTX")][-1]
    assert (last.status, last.note) == (SKIPPED, f"TensorRT-RTX refuses to {step}")
    assert not any("execute" in name or batch == 2 for _, batch, name in facts)


def test_logits_of_another_function_are_wrong(find: Find) -> None:
    facts = find(off=0.1)
    row = facts[f"TensorRT-RTX, {SMALL}", 8, "CURRENT execute"]
    assert row.status == WRONG
    assert "logits are off by" in row.note
    assert not any("CUDA graph" in name for _, _, name in facts)


def test_a_step_that_killed_its_process_is_not_taken_again(find: Find) -> None:
    facts = find(done=[("facts", f"TensorRT-RTX, {SMALL}", 8, "CURRENT build")])
    assert (f"TensorRT-RTX, {SMALL}", 8, "CURRENT deserialise") not in facts
    assert facts[f"TensorRT-RTX, {SMALL}", 8, "SM80 execute"].status == OK


def test_without_tensorrt_rtx_nor_a_cuda_provider_both_say_so(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    monkeypatch.setattr(gpu_facts, "export_for", lambda model, case, folder: exported)

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'tensorrt_rtx'")

    monkeypatch.setattr(gpu_rtx, "rtx_module", missing)
    events: list[dict[str, Any]] = []
    gpu_facts.run(JOB, Report("facts", events.append))
    rows = {row["peer"]: row for event in events if (row := event.get("result"))}
    assert rows["import"]["note"] == "ModuleNotFoundError: No module named 'tensorrt_rtx'"
    assert rows["CUDA provider"]["status"] in (SKIPPED, OK, FAILED)
    assert "nvcc" in rows


LACKS = """
import pathlib, sys
from fastervit_trt.benchmarks.gpu import rtx as gpu_rtx
from fastervit_trt.errors import FasterViTError

path = pathlib.Path(sys.argv[1])
plan = gpu_rtx.build_plan(path, "SM80")
print(len(plan))
for step in (lambda: gpu_rtx.RtxRunner().deserialise(plan), lambda: gpu_rtx.build_plan(path, "CURRENT")):
    try:
        print("ok", step())
    except FasterViTError as error:
        print(error)
"""


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_rtx_itself_builds_a_plan_and_says_what_it_lacks(exported: Path) -> None:
    command = [sys.executable, "-c", LACKS, str(exported)]  # it may abort
    done = subprocess.run(command, capture_output=True, text=True)
    size, deserialise, build = done.stdout.splitlines()
    assert int(size) > 10_000
    assert re.match(r"TensorRT-RTX does not deserialise the plan: .*CUDA", deserialise)
    assert re.match(r"TensorRT-RTX builder, CURRENT: .*CUDA", build)
