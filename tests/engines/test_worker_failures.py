"""Failures as the worker answers them: the stage they came in, and the reasons that TensorRT or Python gave."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from fastervit_trt.engines.worker import BuildError, build
from fastervit_trt.export import graph as graph_module
from tests.engines.worker_builds import ENGINE, RELEASES, TENSORRT, Build

NO_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)


def failing(
    build: Build, member: str, value: Any, *messages: str, severity: str = "ERROR", raising: bool = False
) -> Build:
    """Make ``member`` give ``value`` after TensorRT has logged ``messages``."""
    trt, loggers = build.trt, []

    def made(this: Any, logger: Any) -> None:
        loggers.append(logger)

    def fail(*arguments: Any) -> Any:
        logger = loggers[0] if loggers else arguments[1]
        for message in messages:
            logger.log(getattr(trt.ILogger.Severity, severity), message)
        return value

    trt.returns["Builder.__init__"] = made
    trt.returns[member] = fail
    return build


@pytest.mark.parametrize("release", RELEASES)
def test_parser_errors_name_node_operator_and_the_calls_around(
    release: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = build_of(release)
    build.trt.returns |= {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 2,
        "ParserError.local_function_stack": ["stages.2.blocks.0.attn/WindowAttention_0 (WindowAttention)"],
        "ParserError.node_name": "Softmax_0",
        "ParserError.node_operator": "Softmax",
        "ParserError.desc": "no such axis",
    }
    failure = answer_of(build)["failure"]
    error = {
        "node": "stages.2.blocks.0.attn/WindowAttention_0/Softmax_0",
        "operator": "Softmax",
        "reason": "no such axis",
    }
    assert failure == {"stage": "parser", "errors": [error, error]}
    assert build.calls("OnnxParser.get_error") == [(0,), (1,)]
    assert not Path(build.job.engine).exists()


@pytest.mark.parametrize("release", RELEASES)
def test_the_builders_last_words_are_its_reasons(
    release: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = build_of(release)
    said = ["first", "second", "second", "third", "fourth"]
    failing(build, "Builder.build_serialized_network", None, *said)
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "builder"
    assert [error["reason"] for error in failure["errors"]] == ["second", "third", "fourth"]
    assert not Path(build.job.engine).exists()


def test_warnings_are_no_reasons(build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]) -> None:
    build = failing(build_of("11.4"), "Builder.build_serialized_network", None, "be careful", severity="WARNING")
    failure = answer_of(build)["failure"]
    assert [error["reason"] for error in failure["errors"]] == ["no reason given"]


def test_why_no_kernel_was_found_is_in_the_last_warning(build_of: Callable[..., Build]) -> None:
    build = build_of("10.3")
    loggers: list[Any] = []
    build.trt.returns["Builder.__init__"] = lambda this, logger: loggers.append(logger)
    severity = build.trt.ILogger.Severity

    def fail(*arguments: Any) -> None:
        skipped = "Skipping tactic {} due to insufficient memory on requested size of 4229 detected for tactic 0x74."
        for number in (12, 13):
            loggers[0].log(severity.WARNING, skipped.format(number))
        loggers[0].log(severity.WARNING, "something else")
        loggers[0].log(severity.ERROR, "Could not find any implementation for node Conv_0.")

    build.trt.returns["Builder.build_serialized_network"] = fail
    with pytest.raises(BuildError) as caught:
        build.run()
    kernel, memory = [error["reason"] for error in caught.value.errors]
    assert kernel.startswith("Could not find any implementation") and memory.startswith("Skipping tactic 13")


def test_memory_that_ran_out_on_a_gpu_is_told(
    build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    message = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
    build = failing(build_of("10.3"), "Builder.build_serialized_network", None, message)
    assert answer_of(build)["failure"]["errors"][0]["reason"] == message


@pytest.mark.parametrize(("release", "said"), [("1.7", []), ("11.4", [NO_DRIVER])])
def test_an_absent_driver_matters_only_to_builds_for_this_gpu(
    release: str, said: list[str], build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = failing(build_of(release), "Builder.build_serialized_network", None, NO_DRIVER, "the reason")
    errors = answer_of(build)["failure"]["errors"]
    assert [error["reason"] for error in errors] == [*said, "the reason"]


@pytest.mark.parametrize("severity", ["WARNING", "ERROR"])
def test_no_builder_because_of_cuda_is_no_other_api(
    severity: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = build_of("10.16")
    cuda = "CUDA initialization failure with error: 35. Please check your CUDA installation"

    def no_builder(this: Any, logger: Any) -> TypeError:
        logger.log(getattr(build.trt.ILogger.Severity, severity), cuda)
        return TypeError("pybind11::init(): factory function returned nullptr")

    build.trt.returns["Builder.__init__"] = no_builder
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "builder"
    assert [error["reason"] for error in failure["errors"]] == [cuda]


@pytest.mark.parametrize("release", TENSORRT)
def test_a_plugin_library_that_does_not_load_says_why(
    release: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]]
) -> None:
    build = build_of(release, plugin_library="/opt/plugins.so")
    failing(build, "IPluginRegistry.load_library", None, "Unable to load library: /opt/plugins.so: file too short")
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "plugins"
    assert failure["errors"][0]["reason"].endswith("file too short")
    assert build.parsed == []


def test_the_real_registry_says_why_a_library_does_not_load(build_of: Callable[..., Build], tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    (tmp_path / "plugins.so").write_text("no library")
    job = replace(build_of("1.7").job, plugin_library=str(tmp_path / "plugins.so"))
    with pytest.raises(BuildError) as caught:
        build(rtx, job, lambda kind, content: None)
    assert caught.value.stage == "plugins"
    assert f"{tmp_path / 'plugins.so'}: file too short" in caught.value.errors[0]["reason"]


@pytest.mark.parametrize("release", TENSORRT)
def test_an_engine_that_cannot_be_loaded_fails_the_inspection(
    release: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], tmp_path: Path
) -> None:
    build = build_of(release, inspection=str(tmp_path / "inspection.json"))
    build.trt.returns["Builder.build_serialized_network"] = ENGINE
    failing(build, "Runtime.deserialize_cuda_engine", None, "magic tag does not match")
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "inspection"
    assert failure["errors"][0]["reason"] == "magic tag does not match"


@pytest.mark.parametrize("place", ["missing/model.engine", "scratch"])
def test_an_engine_that_cannot_be_written_fails_the_build(
    place: str, build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], tmp_path: Path
) -> None:
    build = build_of("11.4", engine=str(tmp_path / place))
    build.trt.returns["Builder.build_serialized_network"] = ENGINE
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "builder"
    reason = failure["errors"][0]["reason"]
    assert reason in ("No such file or directory while writing model.engine", "Is a directory while writing scratch")


def test_a_disk_full_of_the_flat_graph_fails_the_build(
    build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: ir.Model, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx.data")

    monkeypatch.setattr(graph_module, "save_onnx", full)
    failure = answer_of(build_of("10.3"))["failure"]
    assert failure["stage"] == "builder"
    assert failure["errors"][0]["reason"] == "No space left on device ('model.onnx.data')"


@pytest.mark.parametrize(
    ("error", "stage", "reason"),
    [
        (MemoryError(), "builder", "out of memory"),
        (AttributeError("no attribute 'x'"), "api", "AttributeError: no attribute 'x'"),
        (TypeError("incompatible arguments"), "api", "TypeError: incompatible arguments"),
    ],
)
def test_exceptions_of_a_build_are_answers(
    error: Exception,
    stage: str,
    reason: str,
    build_of: Callable[..., Build],
    answer_of: Callable[[Build], dict[str, Any]],
) -> None:
    build = build_of("11.4")
    build.trt.returns["Builder.build_serialized_network"] = error
    failure = answer_of(build)["failure"]
    assert failure == {"stage": stage, "errors": [{"node": "", "operator": "", "reason": reason}]}


def test_a_release_that_lost_a_call_is_told_by_its_name(
    build_of: Callable[..., Build], answer_of: Callable[[Build], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = build_of("11.4")
    monkeypatch.delattr(build.trt, "OnnxParser")
    failure = answer_of(build)["failure"]
    assert failure["stage"] == "api"
    assert "OnnxParser" in failure["errors"][0]["reason"]


@pytest.mark.parametrize("missing", [ImportError("libcudart.so.13 not found"), FileNotFoundError("libnvinfer.so.10")])
def test_a_broken_installation_is_no_other_api(
    missing: Exception,
    build_of: Callable[..., Build],
    answer_of: Callable[[Build], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise missing

    monkeypatch.setattr("fastervit_trt.engines.worker.importlib.import_module", fail)
    failure = answer_of(build_of("11.4"))["failure"]
    assert failure["stage"] == "import"
    assert failure["errors"][0]["reason"] == f"{type(missing).__name__}: {missing}"
