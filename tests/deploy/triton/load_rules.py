"""What Triton enforces when it loads a repository, as an independent reading of its sources.

Each rule is one of triton-inference-server/core (model_config_utils.cc, ensemble_scheduler/ensemble_utils.cc,
backend_model_instance.cc) or of the TensorRT and ONNX Runtime backends; messages are ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx", "python": ""}
FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "python": "model.py"}
INSTANCE = pb.ModelInstanceGroup


def read_config(path: Path) -> Any:
    """The real message; an unknown field, a wrong type or bad syntax is an error here."""
    return text_format.Parse(path.read_text(), pb.ModelConfig())


def read_repository(models: Path) -> dict[str, Any]:
    return {folder.name: read_config(folder / "config.pbtxt") for folder in sorted(models.iterdir())}


def problems(models: Path) -> list[str]:
    """Everything that would keep Triton from loading the repository."""
    configs = read_repository(models)
    found = []
    for name, config in configs.items():
        found += [f"{name}: {problem}" for problem in _of_model(models / name, config)]
        if config.HasField("ensemble_scheduling"):
            found += [f"{name}: {problem}" for problem in _of_ensemble(config, configs)]
    return found


def _of_model(folder: Path, config: Any) -> list[str]:
    found = []
    if config.name != folder.name:
        found.append(f"is named {config.name!r}")
    versions = [path.name for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    if not versions or any(version.startswith("0") for version in versions):
        found.append("has no folder of a version")
    if config.version_policy.latest.num_versions < 1:
        found.append("serves no version")
    if config.max_batch_size < 0:
        found.append("negative max_batch_size")
    for tensor in (*config.input, *config.output):
        if not tensor.name or not tensor.dims or any(size < 1 for size in tensor.dims) or not tensor.data_type:
            found.append(f"tensor {tensor.name!r} is not described")
    for output in config.output:
        if output.label_filename and not (folder / output.label_filename).is_file():
            found.append(f"{output.label_filename} is missing")
    if not config.HasField("ensemble_scheduling"):
        found += [*_of_backend(folder, config, versions), *_of_batching(config), *_of_warm_up(config)]
    return found


def _of_backend(folder: Path, config: Any, versions: list[str]) -> list[str]:
    found = []
    if config.platform != PLATFORMS.get(config.backend):
        found.append(f"platform {config.platform!r} does not fit backend {config.backend!r}")
    default = config.default_model_filename or FILES[config.backend]
    for version in versions:
        for file in {default, *config.cc_model_filenames.values()}:
            if not (folder / version / file).is_file():
                found.append(f"{version}/{file} is missing")
    if len(config.instance_group) < 1:
        found.append("no instances")
    for group in config.instance_group:
        allowed = {"tensorrt": {INSTANCE.KIND_GPU}, "python": {INSTANCE.KIND_CPU}}
        if group.kind not in allowed.get(config.backend, {INSTANCE.KIND_GPU, INSTANCE.KIND_CPU}):
            found.append(f"kind {group.kind} of backend {config.backend}")
        if group.count < 1 or (group.kind != INSTANCE.KIND_GPU and group.gpus):
            found.append("instances that cannot be")
        if not all(profile.isdigit() for profile in group.profile):
            found.append("a profile is no number")
    return found


def _of_batching(config: Any) -> list[str]:
    if not config.HasField("dynamic_batching"):
        return []
    found = [] if config.max_batch_size > 0 else ["dynamic batching of a model that takes no batches"]
    batching = config.dynamic_batching
    if any(not 0 < size <= config.max_batch_size for size in batching.preferred_batch_size):
        found.append("a preferred batch is larger than the largest")
    policy = batching.default_queue_policy
    if policy.max_queue_size and policy.timeout_action != pb.ModelQueuePolicy.REJECT:
        found.append("a queue that holds timed out requests")
    return found


def _of_warm_up(config: Any) -> list[str]:
    """The samples are requests of one image each, put together."""
    found, inputs = [], {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        if not 1 <= sample.batch_size <= max(1, config.max_batch_size):
            found.append(f"warm-up of batch {sample.batch_size}")
        if set(sample.inputs) != set(inputs):
            found.append(f"warm-up of {sorted(sample.inputs)}")
        for name, value in sample.inputs.items():
            if list(value.dims) != list(inputs[name].dims) or value.data_type != inputs[name].data_type:
                found.append(f"warm-up of {name} in another shape or type")
            if value.WhichOneof("input_data_type") is None:
                found.append(f"warm-up of {name} without data")
    return found


def _of_ensemble(config: Any, configs: dict[str, Any]) -> list[str]:
    found = []
    if config.platform != "ensemble" or config.backend:
        found.append("is no ensemble")
    for field in ("instance_group", "model_warmup"):
        if len(getattr(config, field)):
            found.append(f"has {field}")
    if config.HasField("optimization"):
        found.append("has optimization")
    known = {tensor.name: _shape(config, tensor) for tensor in config.input}
    used: set[str] = set()
    for step in config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            found.append(f"step {step.model_name} is missing")
            continue
        if 0 < model.max_batch_size < config.max_batch_size:
            found.append(f"step {step.model_name} takes smaller batches")
        inputs, outputs = ({t.name: _shape(model, t) for t in tensors} for tensors in (model.input, model.output))
        if set(step.input_map) != set(inputs) or not step.output_map or not set(step.output_map) <= set(outputs):
            found.append(f"step {step.model_name} is not connected")
            continue
        for inner, outer in step.input_map.items():
            used.add(outer)
            if known.get(outer) != inputs[inner]:
                found.append(f"{outer} is {known.get(outer)}, step {step.model_name} takes {inputs[inner]}")
        for inner, outer in step.output_map.items():
            if outer in known:
                found.append(f"{outer} is written twice")
            known[outer] = outputs[inner]
    for output in config.output:
        if known.get(output.name) != _shape(config, output):
            found.append(f"output {output.name} is {known.get(output.name)}, not {_shape(config, output)}")
    unused = set(known) - used - {output.name for output in config.output}
    return [*found, *(f"{name} is not used" for name in sorted(unused))]


def _shape(config: Any, tensor: Any) -> tuple[int, tuple[int, ...]]:
    """Type and full shape, with the batch that Triton adds."""
    return tensor.data_type, (*((-1,) if config.max_batch_size > 0 else ()), *tensor.dims)
