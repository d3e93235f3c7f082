"""Repositories of a detector (any batch) and of a segmenter (two images at once): what Triton would load and run."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.bundle.opened import opened_bundle
from fastervit_trt.deploy.triton.repository import WrittenRepository, write_repository
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.preprocessing import preprocess_image
from fastervit_trt.models.scenes.data import scene
from tests.deploy.triton.load_rules import problems, read_repository
from tests.deploy.triton.python_backend import Request, python_step
from tests.deploy.triton.repositories import run_model

SHAPES = {"detector": {"boxes": [30, 4], "scores": [30], "labels": [30]}, "segmenter": {"masks": [2, 128, 128]}}
Written = dict[str, tuple[Bundle, WrittenRepository]]


@pytest.fixture(scope="module")
def written(task_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    with ExitStack() as stack:
        bundles = {name: stack.enter_context(opened_bundle(task_bundles / name)).bundle for name in SHAPES}
        folder = tmp_path_factory.mktemp("triton")
        yield {name: (bundle, write_repository(bundle, folder / name)) for name, bundle in bundles.items()}


@pytest.mark.parametrize("task", SHAPES)
def test_triton_would_load_it(written: Written, task: str) -> None:
    bundle, repository = written[task]
    assert problems(repository.models) == []
    model = bundle.export.model
    configs = read_repository(repository.models)
    for name in (model, f"{model}_pictures"):
        config = configs[name]
        assert {tensor.name: list(tensor.dims) for tensor in config.output} == SHAPES[task]
        assert all(tensor.data_type == config.output[0].data_type for tensor in config.output)
        assert config.max_batch_size == (4 if task == "detector" else 0)
    assert [list(tensor.dims) for tensor in configs[model].input] == [
        [3, 128, 128] if task == "detector" else [2, 3, 128, 128]
    ]


@pytest.mark.parametrize("task", SHAPES)
def test_names_of_classes_are_the_clients(written: Written, task: str) -> None:
    """Triton ranks values with a file of labels, and here are no logits to rank."""
    bundle, repository = written[task]
    assert not list(repository.models.rglob("labels.txt"))
    assert not any(
        tensor.label_filename for config in read_repository(repository.models).values() for tensor in config.output
    )
    assert (repository.folder / "labels.txt").read_text().splitlines() == list(bundle.labels)


@pytest.mark.parametrize("task", SHAPES)
def test_pictures_are_squashed_and_found_as_in_python(written: Written, task: str) -> None:
    bundle, repository = written[task]
    encoded, prepared = [], []
    for number in range(2):
        picture = scene(number, "validation").picture.resize((220, 150), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
        how = Preprocessing(**bundle.export.preprocessing)
        assert how.crop_mode == "squash"
        prepared.append(preprocess_image(picture, how, (128, 128)))
    with python_step(repository.models / f"{bundle.export.model}_preprocess") as step:
        (response,) = step.execute([Request("picture", encoded, batched=task == "detector")])
    images = response.output_tensors()[0].as_numpy()
    assert images.tobytes() == np.stack(prepared).tobytes()
    with Engine.load(bundle.export_folder, backend="ort-cpu") as engine:
        expected = engine(images)
    for found, wanted in zip(run_model(repository, images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


def test_the_golden_set_and_how_to_ask_lie_beside_it(written: Written) -> None:
    for task, shown in (("detector", "the 5 surest boxes"), ("segmenter", "the classes of most pixels")):
        bundle, repository = written[task]
        text = (repository.folder / "README.txt").read_text()
        assert f"--model {bundle.export.model} PICTURE.jpg    {shown}; " in text
        assert f"--model {bundle.export.model} --golden golden" in text
        record = json.loads((repository.folder / "golden" / "golden.json").read_text())
        for output in record["outputs"].values():
            file = repository.folder / "golden" / output["file"]
            assert file.read_bytes() == (bundle.export_folder / output["file"]).read_bytes()
