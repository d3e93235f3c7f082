"""A detector and a segmenter, which takes two images at once, behind the endpoint; Triton's own client asks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as client_library

from fastervit_trt.deploy.bundle.opened import opened_bundle
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.preprocessing import preprocess_image
from fastervit_trt.models.scenes.data import scene
from tests.deploy.serving.running import Running, running

OUTPUTS = {"detector": ["boxes", "scores", "labels"], "segmenter": ["masks"]}


@pytest.fixture(scope="module")
def servers(task_bundles: Path) -> Iterator[dict[str, Running]]:
    with ExitStack() as stack:
        bundles = {name: stack.enter_context(opened_bundle(task_bundles / name)).bundle for name in OUTPUTS}
        yield {name: stack.enter_context(running(bundle)) for name, bundle in bundles.items()}


def scenes(server: Running, count: int) -> np.ndarray:
    """Images as the model takes them."""
    how = Preprocessing(**server.serving.service.bundle.export.preprocessing)
    return np.stack([preprocess_image(scene(n, "validation").picture, how, (128, 128)) for n in range(count)])


def direct(server: Running, images: np.ndarray) -> list[np.ndarray]:
    with Engine.load(server.serving.service.bundle.export_folder, backend="ort-cpu", threads=1) as engine:
        return [np.concatenate(rows) for rows in zip(*(engine(image[None]) for image in images), strict=True)]


def given(name: str, array: np.ndarray, datatype: str) -> list[client_library.InferInput]:
    tensor = client_library.InferInput(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


@pytest.mark.parametrize("task", OUTPUTS)
def test_it_says_what_it_yields(servers: dict[str, Running], task: str) -> None:
    server = servers[task]
    shapes = {"boxes": [30, 4], "scores": [30], "labels": [30], "masks": [128, 128]}
    with client_library.InferenceServerClient(server.address) as client:
        for name in (server.model, f"{server.model}_pictures"):
            outputs = client.get_model_metadata(name)["outputs"]
            assert [(o["name"], o["datatype"], o["shape"]) for o in outputs] == [
                (output, "FP32", [-1, *shapes[output]]) for output in OUTPUTS[task]
            ]
            config = client.get_model_config(name)
            assert [(o["name"], o["dims"]) for o in config["output"]] == [(o, shapes[o]) for o in OUTPUTS[task]]
            assert not any("label_filename" in output for output in config["output"])


@pytest.mark.parametrize("task", OUTPUTS)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_any_number_of_images(servers: dict[str, Running], task: str, count: int) -> None:
    """Also where the graph takes two at once: what is missing is filled up, and nobody sees it."""
    server = servers[task]
    images = scenes(server, count)
    with client_library.InferenceServerClient(server.address) as client:
        answer = client.infer(server.model, given("images", images, "FP32"))
    for name, wanted in zip(OUTPUTS[task], direct(server, images), strict=True):
        found = answer.as_numpy(name)
        assert found.shape == wanted.shape
        if name in ("masks", "labels"):
            assert (found != wanted).mean() < 0.001
        else:
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", OUTPUTS)
def test_several_pictures(servers: dict[str, Running], task: str) -> None:
    server, pictures, images = servers[task], [], []
    how = Preprocessing(**server.serving.service.bundle.export.preprocessing)
    for number in range(3):
        picture = scene(number, "validation").picture.resize((150, 220))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        pictures.append([buffer.getvalue()])
        images.append(preprocess_image(picture, how, (128, 128)))
    with client_library.InferenceServerClient(server.address) as client:
        answer = client.infer(f"{server.model}_pictures", given("picture", np.array(pictures, object), "BYTES"))
    name = OUTPUTS[task][0]
    np.testing.assert_allclose(answer.as_numpy(name), direct(server, np.stack(images))[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("task", OUTPUTS)
def test_there_is_nothing_to_rank(servers: dict[str, Running], task: str) -> None:
    server = servers[task]
    image = scenes(server, 1)
    tensor = {"name": "images", "shape": [1, 3, 128, 128], "datatype": "FP32"}
    tensor |= {"parameters": {"binary_data_size": image.nbytes}}
    for output in OUTPUTS[task]:
        for classes, status in ((0, 200), (2, 400)):
            asked = [{"name": output, "parameters": {"classification": classes}}]
            text = json.dumps({"inputs": [tensor], "outputs": asked}).encode()
            headers = {"Inference-Header-Content-Length": str(len(text))}
            got, _, answer = server.ask("POST", server.infer_path(), text + image.tobytes(), headers)
            assert got == status, answer
        assert json.loads(answer)["error"] == (
            f"output '{output}' holds no logits that 'classification' could rank; ask for it without that parameter"
        )
