"""Repositories for ONNX Runtime, held to what Triton enforces and run as far as they run without the server."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fastervit_trt.artifacts import Manifest, sha256_file
from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.triton.repository import WrittenRepository, write_repository
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.onnx_cpu import OnnxCpuSession
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.preprocessing import preprocess_image
from tests.deploy.triton.load_rules import problems, read_config, read_repository
from tests.deploy.triton.python_backend import Request, python_step
from tests.deploy.triton.repositories import bundle_of, run_model

NAME = "faster_vit_digits_s"


@pytest.fixture(scope="module")
def written(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> WrittenRepository:
    return write_repository(bundle, tmp_path_factory.mktemp("triton") / "served")


@pytest.fixture(scope="module")
def backbone(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In the form of --features-only --batch 3: two maps, three images at once, no fewer and no more."""
    served = bundle_of(bundle.export_folder, bundle, tmp_path_factory.mktemp("backbone") / "bundle")
    shapes = {"images": [3, 3, 224, 224], "stage2": [3, 3, 14, 14], "stage3": [3, 3, 7, 7]}
    images, *maps = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()
    ]
    nodes = [
        onnx.helper.make_node("AveragePool", ["images"], [name], kernel_shape=[step, step], strides=[step, step])
        for name, step in (("stage2", 16), ("stage3", 32))
    ]
    graph = onnx.helper.make_graph(nodes, "backbone", [images], maps)
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save_model(model, served.export_folder / "model.onnx")
    outputs = [{"name": m.name, "dtype": "float32", "shape": ["batch", *shapes[m.name][1:]]} for m in maps]
    return relisted(served, "model.onnx", batch="3", outputs=outputs, golden=None)


def digits(count: int) -> tuple[list[bytes], np.ndarray]:
    """Encoded held-out digits, and what they are."""
    images, labels = load_digits_split("held_out")
    pictures = []
    for image in images[:count]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures, labels[:count]


def answers(written: WrittenRepository, requests: list[Request]) -> list[np.ndarray]:
    """What the ensemble would answer: its steps in order, tensors by the names that config.pbtxt connects."""
    configs = read_repository(written.models)
    first, second = configs[written.names[1]].ensemble_scheduling.step
    with python_step(written.models / first.model_name) as step:
        responses = step.execute(requests)
    connected = dict(first.output_map.items())
    (outer,) = second.input_map.values()
    logits = []
    for response in responses:
        (tensor,) = response.output_tensors()
        assert connected[tensor.name()] == outer
        logits.append(run_model(written, tensor.as_numpy())[0])
    return logits


def test_triton_would_load_it(written: WrittenRepository) -> None:
    assert problems(written.models) == []
    assert sorted(path.name for path in written.models.iterdir()) == [NAME, f"{NAME}_pictures", f"{NAME}_preprocess"]


def test_what_is_served_is_the_bundles_model(written: WrittenRepository, bundle: Bundle) -> None:
    config = read_config(written.models / NAME / "config.pbtxt")
    assert sha256_file(written.models / NAME / "1" / "model.onnx") == bundle.export.files["model.onnx"]["sha256"]
    assert [(t.name, list(t.dims)) for t in config.input] == [("images", [3, 224, 224])]
    assert [(t.name, list(t.dims), t.label_filename) for t in config.output] == [("logits", [10], "labels.txt")]
    assert config.max_batch_size == 8
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert not config.dynamic_batching.preferred_batch_size  # no size is better than another there
    assert {sample.batch_size for sample in config.model_warmup} == {1, 8}
    policy = config.dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 64
    assert policy.default_timeout_microseconds == 2_000_000
    assert (written.models / NAME / "labels.txt").read_text().splitlines() == list(bundle.labels)


def test_digits_are_recognised_from_encoded_pictures(written: WrittenRepository, bundle: Bundle) -> None:
    """Without the server, yet by what it would run: the Python step, then the graph, connected by config.pbtxt."""
    pictures, labels = digits(40)
    requests = [Request("picture", [pictures[0]]), Request("picture", pictures[1:8]), Request("picture", pictures[8:])]
    found = np.concatenate(answers(written, requests))
    assert np.mean(found.argmax(1) == labels) >= 0.9  # 97.2 % of all held-out ones
    how = Preprocessing(**bundle.export.preprocessing)
    images = [preprocess_image(image, how, (224, 224)) for image in load_digits_split("held_out")[0][:40]]
    (direct,) = OnnxCpuSession(bundle.export_folder / "model.onnx")(np.stack(images))
    np.testing.assert_allclose(found, direct, rtol=0, atol=1e-4 * np.abs(direct).max())


def test_every_option_arrives(bundle: Bundle, tmp_path: Path) -> None:
    written = write_repository(
        bundle,
        tmp_path / "served",
        device="gpu",
        instances=3,
        max_queue_delay_us=70,
        max_batch=5,
        queue_size=11,
        timeout_us=90,
        versions_kept=2,
        threads=4,
        decoders=6,
        max_pixels=1234,
        name="ziffern.v2",
    )
    assert problems(written.models) == []
    configs = read_repository(written.models)
    config = configs["ziffern.v2"]
    assert config.instance_group[0].count == 3
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert config.max_batch_size == configs["ziffern.v2_pictures"].max_batch_size == 5
    assert config.version_policy.latest.num_versions == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 70
    for name in ("ziffern.v2", "ziffern.v2_preprocess"):
        policy = configs[name].dynamic_batching.default_queue_policy
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (11, 90)
    assert configs["ziffern.v2_preprocess"].instance_group[0].count == 6
    assert configs["ziffern.v2_preprocess"].parameters["max_pixels"].string_value == "1234"
    # Beside the configuration for the GPU there is one for the CPU, taken by --model-config-name=cpu.
    cpu = read_config(written.models / "ziffern.v2" / "configs" / "cpu.pbtxt")
    assert cpu.instance_group[0].kind == cpu.instance_group[0].KIND_CPU
    assert cpu.parameters["intra_op_thread_count"].string_value == "4"
    assert cpu.max_batch_size == 5


def test_a_static_backbone(backbone: Bundle, tmp_path: Path) -> None:
    written = write_repository(backbone, tmp_path / "served")
    assert problems(written.models) == []
    configs = read_repository(written.models)
    assert {config.max_batch_size for config in configs.values()} == {0}
    assert list(configs[f"{NAME}_pictures"].input[0].dims) == [3]
    assert not any(output.label_filename for output in configs[NAME].output)
    with python_step(written.models / f"{NAME}_preprocess") as step:
        (response,) = step.execute([Request("picture", digits(3)[0], batched=False)])
    images = response.output_tensors()[0].as_numpy()
    maps = run_model(written, images)
    assert [found.shape for found in maps] == [(3, 3, 14, 14), (3, 3, 7, 7)]
    assert any("no fewer and no more" in notice for notice in written.notices)
    with pytest.raises(FasterViTError, match="takes 3 images at once, no fewer and no more"):
        write_repository(backbone, tmp_path / "other", max_batch=2)


def test_eight_bits_for_the_cpu_stay_there(bundle: Bundle, tmp_path: Path) -> None:
    target = {"name": "l4", "capability": "8.9"}
    quantisation = {"type": "int8", "base": "fp32", "form": "ONNX Runtime's CPU provider"}
    export = replace(bundle.export, precision="int8", graph={**bundle.export.graph, "quantisation": quantisation})
    served = replace(bundle, export=export, manifest=replace(bundle.manifest, target=target))
    written = write_repository(served, tmp_path / "served")
    assert problems(written.models) == []
    config = read_config(written.models / NAME / "config.pbtxt")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU  # though the target has a GPU
    assert not config.HasField("optimization")
    on_gpu = write_repository(served, tmp_path / "gpu", device="gpu")
    assert any("on a GPU fp16 is faster" in notice for notice in on_gpu.notices)


def test_weights_in_a_file_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    apart = bundle_of(bundle.export_folder, bundle, tmp_path / "bundle", labels=True)
    graph = apart.export_folder / "model.onnx"
    model = onnx.load(graph)
    onnx.save_model(model, graph, save_as_external_data=True, location="model.onnx.data", size_threshold=64)
    apart = relisted(apart, "model.onnx", "model.onnx.data")
    written = write_repository(apart, tmp_path / "served")
    version = written.models / NAME / "1"
    assert sorted(path.name for path in version.iterdir()) == ["model.onnx", "model.onnx.data"]
    images = np.random.default_rng(1).standard_normal((2, 3, 224, 224), dtype=np.float32)
    session = onnxruntime.InferenceSession(str(bundle.export_folder / "model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(run_model(written, images)[0], session.run(None, {"images": images})[0], atol=1e-5)


def relisted(bundle: Bundle, *names: str, **changes: Any) -> Bundle:
    """``bundle`` with files as they are now, and changes of the export's manifest."""
    content = json.loads((bundle.export_folder / "manifest.json").read_text())
    for name in names:
        data = (bundle.export_folder / name).read_bytes()
        content["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle.export_folder / "manifest.json").write_text(json.dumps({**content, **changes}))
    return replace(bundle, export=Manifest.read(bundle.export_folder))


def test_a_precision_that_onnx_runtime_has_no_kernels_for(exports: Path, bundle: Bundle, tmp_path: Path) -> None:
    bf16 = bundle_of(exports / "bf16", bundle, tmp_path / "bundle")
    with pytest.raises(FasterViTError, match="ONNX Runtime lacks kernels; export fp32 or fp16"):
        write_repository(bf16, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_eight_bit_floats_get_the_optimisations_that_keep_them_whole(bundle: Bundle, tmp_path: Path) -> None:
    fp8 = bundle_of(bundle.export_folder, bundle, tmp_path / "bundle")
    graph = {**fp8.export.graph, "quantisation": {"type": "fp8", "base": "fp16"}}
    written = write_repository(replace(fp8, export=replace(fp8.export, graph=graph)), tmp_path / "served")
    assert read_config(written.models / NAME / "config.pbtxt").optimization.graph.level == -1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_batch": 9}, "batches up to 8, so not --max-batch 9"),
        ({"max_batch": 0}, "so not --max-batch 0"),
        ({"name": "../up"}, "is no name for a model"),
        ({"name": "a/b"}, "is no name for a model"),
        ({"backend": "tensorrt"}, "Triton cannot run engines of TensorRT-RTX"),
        ({"backend": "tensorrt", "device": "cpu"}, "TensorRT engines run on GPUs"),
        ({"engine": "model.rtx-sm89.engine"}, "ONNX Runtime runs model.onnx"),
        ({"instances": 0}, "instances is 0 and must be at least 1"),
        ({"threads": 0}, "threads is 0"),
        ({"max_queue_delay_us": -1}, "queue_delay_us is -1"),
    ],
)
def test_what_cannot_be_served_leaves_nothing(
    bundle: Bundle, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(FasterViTError, match=reason.replace("(", r"\(")):
        write_repository(bundle, tmp_path / "served", **options)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_do_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    short = bundle_of(bundle.export_folder, bundle, tmp_path / "bundle", labels=True)
    (short.folder / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(FasterViTError, match=r"has 2 names, the model 10 classes"):
        write_repository(short, tmp_path / "served")


def test_a_file_that_was_swapped(bundle: Bundle, tmp_path: Path) -> None:
    swapped = bundle_of(bundle.export_folder, bundle, tmp_path / "bundle")
    with (swapped.export_folder / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(FasterViTError, match="is not the file that the manifest of export describes"):
        write_repository(swapped, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_an_earlier_repository_is_replaced_when_asked(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "served", name="first")
    with pytest.raises(FasterViTError, match="already exists"):
        write_repository(bundle, tmp_path / "served")
    written = write_repository(bundle, tmp_path / "served", overwrite=True)
    assert not (written.models / "first").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FasterViTError, match=r"holds no triton\.json"):
        write_repository(bundle, tmp_path / "mine", overwrite=True)


def test_the_record_lists_every_file(written: WrittenRepository) -> None:
    record = json.loads((written.folder / "triton.json").read_text())
    files = {p.relative_to(written.folder).as_posix(): sha256_file(p) for p in written.folder.rglob("*") if p.is_file()}
    del files["triton.json"]
    assert record["files"] == files
    assert record["names"] == list(written.names)
