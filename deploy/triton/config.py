"""What is served, and how, in; the ``config.pbtxt`` of the model, of its Python step and of their ensemble out.

Fields: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto; what they do:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastervit_trt.deploy.triton.pbtxt import Fields, Symbol, entries, pbtxt
from fastervit_trt.deploy.triton.served import Served
from fastervit_trt.models.tasks.heads import LOGITS

__all__ = ["LABELS", "PICTURE", "Service", "cpu_config", "model_config", "pictures_config", "step_config"]

LABELS = "labels.txt"
PICTURE = "picture"  # the encoded JPEG or PNG
_QUEUED_BATCHES = 8  # per instance: what waits longer than it takes to run these is better refused
_LEAST_QUEUE = 64  # requests; a small batch is no reason to refuse bursts
_PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx"}


@dataclass(frozen=True)
class Service:
    """How it is served.

    Attributes:
        instances: of the model on each GPU, or on the CPU; each has activations of its own.
        queue_delay_us: how long a request may wait for others to share its batch.
        queue_size: requests that may wait; more are refused at once. By default what eight batches per instance hold.
        timeout_us: after which a waiting request is refused; a request may ask for less.
        versions: newest versions that are loaded; those before them stay on the disk, unused.
        threads: of each instance on a CPU; ONNX Runtime's choice by default, all cores.
        decoders: processes that decode pictures.
        max_pixels: of a picture, and of what it is enlarged to; more is refused before it is decoded.
    """

    instances: int
    queue_delay_us: int
    queue_size: int | None
    timeout_us: int
    versions: int
    threads: int | None
    decoders: int
    max_pixels: int


def model_config(served: Served, service: Service, *, labels: bool) -> str:
    """Of the model itself, tensors in and out.

    Args:
        labels: whether ``labels.txt`` lies beside it.
    """
    return pbtxt(_model(served, service, labels=labels, device=served.device))


def cpu_config(served: Served, service: Service, *, labels: bool) -> str:
    """The same model on a CPU, for ``--model-config-name=cpu``."""
    return pbtxt(_model(served, service, labels=labels, device="cpu"))


def step_config(served: Served, service: Service, name: str, how: Mapping[str, Any]) -> str:
    """Of the Python step: encoded pictures in, the model's input out.

    Args:
        how: the export's preprocessing, and "resolution".
    """
    parameters = {"preprocessing": json.dumps(how, sort_keys=True), "max_pixels": str(service.max_pixels)}
    fields: dict[str, Any] = {
        "name": name,
        "backend": "python",
        "max_batch_size": served.batch,
        "input": [_picture(served)],
        "output": [_tensor(served.input, (*served.batch_axis, *served.image))],
        "version_policy": _versions(service),
        # Processes, since Python runs one thread at a time.
        "instance_group": [{"count": service.decoders, "kind": Symbol("KIND_CPU")}],
        # A queue with the model's limits; decoding gains nothing by company, so each process takes one at a time.
        "dynamic_batching": None if not served.batch else {"preferred_batch_size": [1], **_queue(served, service)},
        "parameters": entries({key: {"string_value": value} for key, value in parameters.items()}),
    }
    return pbtxt(fields)


def pictures_config(served: Served, service: Service, name: str, step: str, *, labels: bool) -> str:
    """Of the ensemble: encoded pictures in, the model's outputs out."""
    steps = [
        {
            "model_name": step,
            "model_version": -1,
            "input_map": entries({PICTURE: PICTURE}),
            "output_map": entries({served.input: served.input}),
        },
        {
            "model_name": served.name,
            "model_version": -1,
            "input_map": entries({served.input: served.input}),
            "output_map": entries({output.name: output.name for output in served.outputs}),
        },
    ]
    fields: dict[str, Any] = {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": served.batch,
        "input": [_picture(served)],
        "output": _outputs(served, labels=labels),
        "version_policy": _versions(service),
        "ensemble_scheduling": {"step": steps},
    }
    return pbtxt(fields)


def _model(served: Served, service: Service, *, labels: bool, device: str) -> Fields:
    backend = served.backend
    return {
        "name": served.name,
        "platform": _PLATFORMS[backend],
        "backend": backend,
        "default_model_filename": "model.onnx" if backend == "onnxruntime" else next(iter(served.files)),
        "cc_model_filenames": entries(served.capabilities),
        "max_batch_size": served.batch,
        "input": [_tensor(served.input, (*served.batch_axis, *served.image))],
        "output": _outputs(served, labels=labels),
        "version_policy": _versions(service),
        "instance_group": [_instances(served, service, device)],
        "dynamic_batching": _batching(served, service),
        "optimization": _optimisation(served),
        "parameters": _parameters(served, service, device),
        "model_warmup": _warm_up(served),
        "response_cache": {"enable": False},  # pictures hardly ever come twice
    }


def _tensor(name: str, dims: tuple[int, ...], kind: str = "TYPE_FP32") -> dict[str, Any]:
    return {"name": name, "data_type": Symbol(kind), "dims": list(dims)}


def _picture(served: Served) -> Fields:
    return _tensor(PICTURE, served.batch_axis or (1,), "TYPE_STRING")


def _outputs(served: Served, *, labels: bool) -> list[Fields]:
    """Labels serve the classification extension, which ranks logits."""
    return [
        {
            **_tensor(output.name, (*served.batch_axis, *output.shape)),
            "label_filename": LABELS if labels and output.name == LOGITS else None,
        }
        for output in served.outputs
    ]


def _versions(service: Service) -> Fields:
    return {"latest": {"num_versions": service.versions}}


def _instances(served: Served, service: Service, device: str) -> Fields:
    """All profiles in one instance: Triton then takes the one that a batch is nearest to."""
    profiles = [str(number) for number in range(served.profiles)] if served.profiles > 1 else []
    kind = Symbol("KIND_GPU" if device == "gpu" else "KIND_CPU")
    return {"count": service.instances, "kind": kind, "profile": profiles}


def _batching(served: Served, service: Service) -> Fields | None:
    """Requests put together, and refused when too many wait; a static graph takes requests one by one.

    Preferred sizes are for TensorRT, whose profiles make some sizes faster; otherwise Triton's documentation advises
    against them (docs/user_guide/batcher.md, "Preferred Batch Sizes").
    """
    if not served.batch:
        return None
    return {
        "preferred_batch_size": list(served.preferred),
        "max_queue_delay_microseconds": service.queue_delay_us,
        **_queue(served, service),
    }


def _queue(served: Served, service: Service) -> Fields:
    size = service.queue_size or max(_LEAST_QUEUE, _QUEUED_BATCHES * served.batch * service.instances)
    policy = {
        "timeout_action": Symbol("REJECT"),
        "default_timeout_microseconds": service.timeout_us,
        "allow_timeout_override": True,
        "max_queue_size": size,
    }
    return {"default_queue_policy": policy}


def _optimisation(served: Served) -> Fields | None:
    """CUDA graphs of batch 1, the preferred sizes and the largest, which is what Triton captures unless told otherwise
    (tensorrt_backend/src/instance_state.cc, InitializeGraphSpecs); other sizes are launched kernel by kernel.
    """
    if served.backend == "tensorrt":
        return {"cuda": {"graphs": True}}
    return None if served.optimisation is None else {"graph": {"level": served.optimisation}}


def _parameters(served: Served, service: Service, device: str) -> list[Fields]:
    """ONNX Runtime's threads: instances beside each other share the cores only if told how many each may take."""
    if served.backend != "onnxruntime" or device != "cpu":
        return []
    parameters = {"intra_op_thread_count": service.threads or 0, "inter_op_thread_count": 1, "execution_mode": 0}
    return entries({key: {"string_value": str(value)} for key, value in parameters.items()})


def _warm_up(served: Served) -> list[Fields]:
    """Zeros in the smallest, the preferred and the largest batch: one request per image, as clients send them."""
    dims = [*served.batch_axis, *served.image]
    inputs = entries({served.input: {"data_type": Symbol("TYPE_FP32"), "dims": dims, "zero_data": True}})
    sizes = sorted({1, *served.preferred, served.batch}) if served.batch else [1]
    return [{"name": f"batch-{size}", "batch_size": size, "inputs": inputs, "count": 1} for size in sizes]
