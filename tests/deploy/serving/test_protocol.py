"""NVIDIA's own client finds what it finds in Triton, and every answer is ONNX Runtime's."""

from __future__ import annotations

import gzip
import json
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from tests.deploy.conftest import LABELS
from tests.deploy.serving.running import Direct, Running, assert_close, some_images

client_library = pytest.importorskip("tritonclient.http")
utilities = pytest.importorskip("tritonclient.utils")


@pytest.fixture(scope="module")
def client(served: Running) -> Any:
    with client_library.InferenceServerClient(served.address) as client:
        yield client


def given(images: np.ndarray, binary: bool = True) -> list[Any]:
    tensor = client_library.InferInput("images", images.shape, "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return [tensor]


def asked(**options: Any) -> list[Any]:
    return [client_library.InferRequestedOutput("logits", **options)]


def body_of(images: np.ndarray, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A binary request written by hand, and its headers."""
    parameters = {"binary_data_size": images.nbytes}
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "parameters": parameters}
    text = json.dumps({"inputs": [tensor]} | more).encode()
    return text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def test_a_client_finds_server_models_and_versions(client: Any, served: Running) -> None:
    names = [served.model, f"{served.model}_pictures"]
    assert client.is_server_live() and client.is_server_ready()
    assert {"binary_tensor_data", "classification"} <= set(client.get_server_metadata()["extensions"])
    assert [entry["name"] for entry in client.get_model_repository_index()] == names
    assert all(client.is_model_ready(name, version) for name in names for version in ("", "1"))
    tensor, picture = (client.get_model_metadata(name, "1") for name in names)
    assert tensor["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]
    assert picture["inputs"] == [{"name": "picture", "datatype": "BYTES", "shape": [-1, 1]}]
    assert tensor["outputs"] == picture["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert not client.is_model_ready("another") and not client.is_model_ready(served.model, "2")
    for name, version in (("another", ""), (served.model, "2")):
        with pytest.raises(utilities.InferenceServerException, match=r"there is no model|has no version") as refusal:
            client.get_model_metadata(name, version)
        assert refusal.value.status() == "404"


def test_the_configuration_is_a_model_configuration_of_tritons(client: Any, served: Running) -> None:
    protobuf = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import json_format

    inputs = {served.model: ("TYPE_FP32", [3, 224, 224]), f"{served.model}_pictures": ("TYPE_STRING", [1])}
    for name, (kind, dims) in inputs.items():
        config = json_format.ParseDict(client.get_model_config(name), protobuf.ModelConfig())  # refuses unknown fields
        (tensor,) = config.input
        assert (config.name, config.max_batch_size) == (name, 8)
        assert (protobuf.DataType.Name(tensor.data_type), list(tensor.dims)) == (kind, dims)
        assert config.output[0].label_filename == "labels.txt"
        assert config.dynamic_batching.default_queue_policy.max_queue_size == 256


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tensors_in_json_and_binary_mean_the_same(
    client: Any, served: Running, direct: Direct, binary_in: bool, binary_out: bool
) -> None:
    images = some_images(1)
    result = client.infer(
        served.model, given(images, binary_in), outputs=asked(binary_data=binary_out), request_id="x7"
    )
    assert result.get_response()["id"] == "x7"
    assert ("data" in result.get_output("logits")) == (not binary_out)
    assert_close(result.as_numpy("logits").astype(np.float32), direct(images))


def test_all_outputs_are_binary_where_the_request_says_so(served: Running, direct: Direct) -> None:
    images = some_images(1)
    for named, binary in ((None, True), ({}, True), ({"binary_data": False}, False), ({"binary_data": True}, True)):
        outputs = [] if named is None else [{"name": "logits", "parameters": named}]
        body, headers = body_of(images, outputs=outputs, parameters={"binary_data_output": True})
        status, answered, answer = served.ask("POST", served.infer_path(), body, headers)
        length = answered.get("inference-header-content-length")
        assert status == 200 and (length is not None) == binary
        if length is not None:
            assert_close(np.frombuffer(answer[int(length) :], "<f4")[None], direct(images))


def test_more_images_than_a_batch_come_back_in_order(client: Any, served: Running, direct: Direct) -> None:
    images = some_images(19)
    assert_close(client.infer(served.model, given(images)).as_numpy("logits"), direct(images))


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_with_value_index_and_label(client: Any, served: Running, direct: Direct, binary: bool) -> None:
    images = some_images(2)
    result = client.infer(served.model, given(images), outputs=asked(class_count=3, binary_data=binary))
    texts = result.as_numpy("logits")
    assert texts.shape == (2, 3) and result.get_output("logits")["datatype"] == "BYTES"
    for row, logits in zip(texts, direct(images), strict=True):
        got = [(t.decode() if isinstance(t, bytes) else t).split(":") for t in row]
        best = np.argsort(-logits)[:3]
        assert [(int(index), label) for _, index, label in got] == [(i, LABELS[i]) for i in best]
        assert np.abs(np.array([float(value) for value, _, _ in got]) - logits[best]).max() < 1e-4
    (all_of_them,) = client.infer(served.model, given(images[:1]), outputs=asked(class_count=99)).as_numpy("logits")
    assert len(all_of_them) == 10


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(client: Any, served: Running, direct: Direct, algorithm: str) -> None:
    images = some_images(2)
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    assert_close(client.infer(served.model, given(images), **options).as_numpy("logits"), direct(images))
    body, headers = body_of(images, parameters={"binary_data_output": True})
    status, answered, answer = served.ask("POST", served.infer_path(), body, headers | {"Accept-Encoding": algorithm})
    assert status == 200 and answered["content-encoding"] == algorithm
    plain = gzip.decompress(answer) if algorithm == "gzip" else zlib.decompress(answer)
    assert_close(np.frombuffer(plain[-80:], "<f4").reshape(2, 10), direct(images))
    status, answered, _ = served.ask("POST", served.infer_path(), body, headers | {"Accept-Encoding": "br, gzip;q=0"})
    assert status == 200 and "content-encoding" not in answered


def test_nan_is_answered_where_the_format_can_and_harms_nobody_else(
    client: Any, served: Running, direct: Direct
) -> None:
    images = some_images(3)
    images[1] = np.nan
    logits = client.infer(served.model, given(images)).as_numpy("logits")
    assert np.isnan(logits[1]).any()
    assert_close(logits[[0, 2]], direct(images[[0, 2]]))
    body, headers = body_of(images)
    assert "NaN" in served.refusal(400, body, headers)
    texts = client.infer(served.model, given(images), outputs=asked(class_count=2)).as_numpy("logits")
    assert texts.shape == (3, 2)


def test_statistics_count_images_and_executions(client: Any, served: Running) -> None:
    before, after = client.get_inference_statistics(served.model), None
    client.infer(served.model, given(some_images(5)))
    with pytest.raises(utilities.InferenceServerException):
        client.infer(served.model, given(some_images(1)[:, :, :9]))
    after = client.get_inference_statistics(served.model)
    (old,), (new,) = before["model_stats"], after["model_stats"]
    assert new["inference_count"] - old["inference_count"] == 5
    assert new["execution_count"] - old["execution_count"] == 1
    assert new["inference_stats"]["success"]["count"] - old["inference_stats"]["success"]["count"] == 1
    assert new["inference_stats"]["fail"]["count"] - old["inference_stats"]["fail"]["count"] == 1
    assert 0 < new["inference_stats"]["compute_infer"]["ns"] <= new["inference_stats"]["success"]["ns"]
    executions = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in new["batch_stats"]}
    assert sum(executions.values()) == new["execution_count"]
    assert served.metric(f'nv_inference_count{{model="{served.model}"') == new["inference_count"]
    assert served.metric(f'fastervit_batch_size_executions{{model="{served.model}",version="1",images="5"') >= 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"datatype": "FP16"}, "takes FP32 only"),
        ({"shape": [1, 3, 224]}, "the model takes \\[-1, 3, 224, 224\\]"),
        ({"shape": [0, 3, 224, 224]}, "1 or more"),
        ({"shape": [2, 3, 224, 224]}, "602112 bytes of binary data"),
        ({"shape": [1, 3, 224, True]}, "list of at most 8 sizes"),
        ({"shape": [1, 3, -224, 224]}, "list of at most 8 sizes"),
        ({"name": "pixels"}, "its input is 'images'"),
        ({"parameters": {"binary_data_size": 602111}}, "1 bytes follow"),
        ({"parameters": {"binary_data_size": 602113}}, "602112 came"),
        ({"parameters": {"shared_memory_region": "x"}}, "shared memory"),
        ({"data": [1.0]}, "either 'data' or"),
    ],
)
def test_a_wrong_tensor_is_told_what_is_wrong(served: Running, change: dict[str, Any], says: str) -> None:
    images = some_images(1)
    tensor = {"name": "images", "shape": [1, 3, 224, 224], "datatype": "FP32"}
    tensor |= {"parameters": {"binary_data_size": images.nbytes}} | change
    text = json.dumps({"inputs": [tensor]}).encode()
    message = served.refusal(400, text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))})
    assert re.search(says, message), message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "no JSON"),
        (b"[]", "JSON object"),
        (b'{"inputs":[]}', "names 0 tensors"),
        (b'{"inputs":[%s]}' % b",".join([b"{}"] * 17), "names 17 tensors"),
        (b"[" * 100_000, "no JSON"),
        (b'{"inputs":[{"name":"\\ud800","shape":[1],"datatype":"FP32","data":[0]}]}', "its input is"),
        (b'{"inputs":[{"name":"images","shape":[1,3,224,224],"datatype":"FP32","data":[NaN]}]}', "NaN"),
        (b'{"inputs":[{"name":"images","shape":[1,3,224,224],"datatype":"FP32","data":[1e39]}]}', "no FP32"),
        (b'{"inputs":[{"name":"images","shape":[1,3,224,224],"datatype":"FP32","data":["1"]}]}', "than numbers"),
        (b'{"inputs":[{"name":"images","shape":[1,3,224,224],"datatype":"FP32","data":[[1],[1,2]]}]}', "ragged"),
        (b'{"inputs":[{"name":"images","shape":[1,3,224,224],"datatype":"FP32","data":[1]}]}', "150528"),
        (b'{"inputs":[{}],"id":7}', "'name' must be a text"),
        (b'{"inputs":[%s]}' % b",".join([b'{"name":"images","shape":[],"datatype":"FP32","data":[]}'] * 2), "2 times"),
    ],
)
def test_a_wrong_body_is_told_what_is_wrong(served: Running, text: bytes, says: str) -> None:
    assert says in served.refusal(400, text)


def test_wrong_outputs_paths_methods_and_encodings(served: Running) -> None:
    images = some_images(1)
    for outputs, says in (
        ([{"name": "probabilities"}], "it has logits"),
        ([{"name": "logits"}] * 2, "asked for twice"),
        ([{"name": "logits", "parameters": {"classification": -1}}], "number of classes"),
        ([{"name": "logits", "parameters": {"shared_memory_region": "x"}}], "shared memory"),
    ):
        body, headers = body_of(images, outputs=outputs)
        assert says in served.refusal(400, body, headers)
    body, headers = body_of(images)
    assert "there is no model" in served.refusal(404, body, headers, "/v2/models/another/infer")
    assert "has no version '2'" in served.refusal(404, body, headers, f"/v2/models/{served.model}/versions/2/infer")
    assert "Not Found" in served.refusal(404, body, headers, "/v2/model/infer")
    assert "Method Not Allowed" in served.refusal(405, body, headers, "/v2")
    assert "br" in served.refusal(415, body, headers | {"Content-Encoding": "br"})
    assert "multipart" in served.refusal(415, body, headers | {"Content-Type": "multipart/form-data; boundary=x"})
    for length in ("-1", "9999999", "x", "²"):
        assert "no length" in served.refusal(400, body, {"Inference-Header-Content-Length": length})


def test_what_is_not_supported_says_so(client: Any) -> None:
    for call in (
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        lambda: client.register_system_shared_memory("name", "/key", 8),
        lambda: client.load_model("another"),
        client.get_trace_settings,
    ):
        with pytest.raises(utilities.InferenceServerException, match="does not support") as refusal:
            call()
        assert refusal.value.status() == "501"


def test_binary_strings_that_are_cut_off_are_refused(served: Running) -> None:
    for binary, says in (
        (b"\x05\x00\x00\x00abcd", "element 0 of input 'picture' is cut off"),
        (b"\x00\x00", "element 0 of input 'picture' is cut off"),
        (struct.pack("<I", 2**32 - 1), "element 0 of input 'picture' is cut off"),
        (b"\x00" * 8, "more than the 1 elements"),
        (b"", "has 0 elements"),
    ):
        parameters = {"binary_data_size": len(binary)}
        tensor = {"name": "picture", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters}
        text = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        message = served.refusal(400, text + binary, headers, served.infer_path("_pictures"))
        assert says in message
