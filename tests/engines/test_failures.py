"""Failures of builds told in the model's words: messages of TensorRT that users met, and processes that died."""

from __future__ import annotations

import signal

import pytest

from fastervit_trt.engines.failures import Failure, block_of_node
from tests.engines.builds import SOURCES

NODES = (
    "patch_embed.conv_down.0/Conv_0",
    "stages.2.blocks.0.attn/WindowAttention_0",
    "stages.2.blocks.0.mlp/Add_1",
    "stages.2.blocks.0.mlp/Add_12",
    "stages.3.blocks.1.norm1/LayerNormalization_0",
    "norm/Cast_0",  # part of the next one's name
    "stages.3.norm/Cast_0",
    "head/Gemm_0",
)


def told(failure: Failure, builder: str = "TensorRT", target: str = "this GPU") -> str:
    line = failure.describe(builder, target, NODES, "the last resort")
    assert "\n" not in line and len(line) < 700
    return line


def of_builder(*reasons: str) -> Failure:
    return Failure("builder", tuple({"node": "", "operator": "", "reason": reason} for reason in reasons))


# --- TensorRT 10 and 11, as posted ---

# NVIDIA/TensorRT issue 4258: 10.3, RTX 4060 and Jetson.
MEMORY = (
    "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
    "Error Code: 9: Skipping tactic 0x0000000000000000 due to exception [tunable_graph.cpp:create:117] autotuning: "
    "User allocator error allocating 15485030400-byte buffer",
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node "
    "{ForeignNode[stages.2.blocks.0.attn/WindowAttention_0...head/Gemm_0]}.)",
)
# NVIDIA/TensorRT issue 4254, RTX 4090.
BUFFER = (
    "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size was 16581132288 bytes.)"
)
# ultralytics/ultralytics issue 22271: Orin AGX. A warning; the error after it says only that there is no kernel.
SKIPPED = (
    "UNSUPPORTED_STATE: Skipping tactic 44 due to insufficient memory on requested size of 1048576000 detected for "
    "tactic 0x6e2a3c7a7fc5e4e1."
)
NO_KERNEL = (
    "[optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (Could not find any implementation for node {}.)"
)


@pytest.mark.parametrize(
    "reasons",
    [
        MEMORY,
        MEMORY[:1],
        MEMORY[1:],
        (BUFFER,),
        (NO_KERNEL.format("head/Gemm_0"), SKIPPED),
        # NVIDIA/TensorRT issue 3355 (Orin NX) and, as it was spelt in 8.2, 2035
        ("Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use tactic.",),
        ("Skipping tactic 0 due to insuficient memory on requested size of 29147520 detected for tactic 0.",),
        ("Requested amount of GPU memory (15485030400 bytes) could not be allocated.",),
        ("out of memory",),
    ],
)
def test_messages_of_memory_that_ran_out_are_known(reasons: tuple[str, ...]) -> None:
    failure = of_builder(*reasons)
    assert failure.out_of_memory
    message = told(failure)
    assert message.endswith("; close other programs, lower the largest --batch, or build where there is more memory")
    assert SOURCES.search(message) is None


def test_memory_is_told_with_the_blocks_it_ran_out_in() -> None:
    assert told(of_builder(*MEMORY)) == (
        "TensorRT cannot build stages.2.blocks.0.attn to head in an engine for this GPU: Cuda Runtime (out of memory); "
        "Skipping tactic 0x0000000000000000 due to exception autotuning: User allocator error allocating "
        "15485030400-byte buffer; Could not find any implementation for node "
        "{ForeignNode[stages.2.blocks.0.attn/WindowAttention_0...head/Gemm_0]}.; close other programs, lower the "
        "largest --batch, or build where there is more memory"
    )


@pytest.mark.parametrize(
    ("reason", "said", "step"),
    [
        (
            NO_KERNEL.format("{ForeignNode[head/Gemm_0]}"),
            "cannot build head in an engine for this GPU: Could not find any implementation for node "
            "{ForeignNode[head/Gemm_0]}.",
            "allow more: --workspace MIB, or try another --precision",
        ),
        (  # with a workspace, as 8.x said
            "Internal Error (Could not find any implementation for node head/Gemm_0 due to insufficient workspace.)",
            "Could not find any implementation for node head/Gemm_0 due to insufficient workspace.",
            "allow more: --workspace MIB",
        ),
        (  # NVIDIA/TensorRT issue 4511, 10.12; 4830 is alike, in 10.14 and 11.2
            "Error Code: 9: Skipping tactic 0x0000000000000000 due to exception "
            "[myelin_graph.h:attachExceptionMsgToGraph:1139] MyelinCheckException: host_instr.cpp:2806: CHECK(0) "
            "failed.",
            "Skipping tactic 0x0000000000000000 due to exception MyelinCheckException: CHECK(0) failed.",
            "its compiler is at fault: try a later release, or another --precision",
        ),
        (  # NVIDIA/TensorRT issue 2913, a warning; as error of 11.4 on a machine without a driver
            "CUDA initialization failure with error: 35. Please check your CUDA installation:",
            "CUDA initialization failure with error: 35.",
            "update the driver, or give this process the GPU",
        ),
        (
            "createInferRuntime: Error Code 6: API Usage Error (CUDA initialization failure with error: 35 In "
            "checkCudaInstallation at /_src/runtime/dispatch/runtime.cpp:960)",
            "for this GPU: CUDA initialization failure with error: 35;",
            "update the driver, or give this process the GPU",
        ),
        (  # NVIDIA/TensorRT issue 3953, 10.1
            "[builder.cpp::buildSerializedNetwork::858] Error Code 2: Internal Error (Assertion mConfig.caskKlibMapPtr "
            "failed. )",
            "Assertion mConfig.caskKlibMapPtr failed.",
            "the last resort",
        ),
        (
            "No space left on device while writing model.engine",
            "No space left on device while writing model.engine",
            "free some room or choose another --output",
        ),
    ],
)
def test_other_messages_have_their_own_next_step(reason: str, said: str, step: str) -> None:
    failure = of_builder(reason)
    assert not failure.out_of_memory
    message = told(failure)
    assert said in message and message.endswith(f"; {step}")
    assert SOURCES.search(message) is None


def test_an_operator_the_parser_of_tensorrt_lacks_is_named() -> None:
    # open-mmlab/mmdeploy issue 2758, TensorRT 10; the parser's description is its last part
    reason = 'creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    error = {"node": "stages.2.blocks.0.attn/WindowAttention_0/Softmax_0", "operator": "Softmax", "reason": reason}
    later = {"node": "", "operator": "", "reason": "Network must have at least one output"}
    assert told(Failure("parser", (error, later))) == (
        f"TensorRT parser refuses Softmax in stages.2.blocks.0.attn (node '{error['node']}'): {reason}; the last resort"
    )


def test_a_file_that_is_no_graph_is_not_blamed_on_a_node() -> None:
    error = {"node": "", "operator": "", "reason": "Failed to parse the ONNX model."}
    message = told(Failure("parser", (error,)))
    assert message == "TensorRT parser cannot read the graph: Failed to parse the ONNX model.; the last resort"


@pytest.mark.parametrize(
    ("reason", "blocks"),
    [
        ("node stages.2.blocks.0.mlp/Add_12 + PWN(x)", "stages.2.blocks.0.mlp"),
        ("node stages.2.blocks.0.mlp/Add_1.", "stages.2.blocks.0.mlp"),
        ("{ForeignNode[stages.2.blocks.0.mlp/Add_1...stages.2.blocks.0.mlp/Add_12]}", "stages.2.blocks.0.mlp"),
        (
            "{ForeignNode[stages.2.blocks.0.attn/WindowAttention_0...stages.3.blocks.1.norm1/LayerNormalization_0]}",
            "stages.2.blocks.0.attn to stages.3.blocks.1.norm1",
        ),
        ("node stages.3.norm/Cast_0", "stages.3.norm"),
        ("node head/Gemm_0, then patch_embed.conv_down.0/Conv_0", "head to patch_embed.conv_down.0"),
        ("Add_1 | stages.2.blocks.0.attn/WindowAttention_0 (WindowAttention)", "stages.2.blocks.0.attn"),
    ],
)
def test_blocks_are_found_by_the_nodes_a_message_names(reason: str, blocks: str) -> None:
    assert told(of_builder(reason)).startswith(f"TensorRT cannot build {blocks} in an engine for this GPU: ")


def test_a_message_without_nodes_names_no_block() -> None:
    assert told(of_builder("no such luck")) == (
        "TensorRT cannot build an engine for this GPU: no such luck; the last resort"
    )


@pytest.mark.parametrize(
    ("node", "block"),
    [
        ("stages.2.blocks.3.hat_attn/CarrierAttention_0/Gemm_0", "stages.2.blocks.3.hat_attn"),
        ("Gemm_0 | stages.2.blocks.3.hat_attn/CarrierAttention_0 (CarrierAttention)", "stages.2.blocks.3.hat_attn"),
        ("Cast_0", ""),
        ("", ""),
    ],
)
def test_the_block_of_a_node_is_what_precedes_the_slash(node: str, block: str) -> None:
    assert block_of_node(node) == block


# --- processes that died ---


@pytest.mark.parametrize(
    ("code", "last_words", "ending", "memory"),
    [
        (-signal.SIGKILL, "", "killed by SIGKILL", True),
        (-signal.SIGABRT, "  what():  std::bad_alloc", "killed by SIGABRT", True),
        (-signal.SIGABRT, "NvMapMemAllocInternalTagged: 1075072515 error 12", "killed by SIGABRT", True),
        (1, "MemoryError: out of memory", "exit code 1", True),
        (-signal.SIGSEGV, "", "killed by SIGSEGV", False),
        (-signal.SIGABRT, "  what():  invalid argument", "killed by SIGABRT", False),
        (-40, "", "killed by signal 40", False),  # real-time signals have no names
        (1, "ModuleNotFoundError: No module named 'onnx_ir'", "exit code 1", False),
        (0, "", "exit code 0", False),
    ],
)
def test_how_a_process_ended_is_told(code: int, last_words: str, ending: str, memory: bool) -> None:
    failure = Failure.of_dead_process(code, last_words)
    assert failure.out_of_memory is memory
    step = "close other programs" if memory else "the last resort"
    said = last_words.strip() or "no reason given"
    assert told(failure).startswith(f"TensorRT ended without an answer ({ending}): {said}; {step}")


# --- what happens before and after the build ---


@pytest.mark.parametrize(
    ("stage", "reason", "said"),
    [
        (
            "plugins",
            "IPluginRegistry::loadLibrary: Error Code 6: API Usage Error (Unable to load library: /p.so: /p.so: file "
            "too short In Impl at /_src/runtime/dispatch/libLoader.cpp:305)",
            "cannot load the plugin library: Unable to load library: /p.so: /p.so: file too short; build it again, or "
            "pass --plugins off",
        ),
        (
            "import",
            "ImportError: libcudart.so.13: cannot open shared object file",
            "is installed but cannot be loaded: ImportError: libcudart.so.13: cannot open shared object file; install "
            "it again",
        ),
        (
            "api",
            "AttributeError: no attribute 'x'",
            "has another Python API than the releases known here: AttributeError: no attribute 'x'; install a release "
            "named in README.md",
        ),
        (
            "inspection",
            "no reason given",
            "cannot load the engine it has just built for this GPU: no reason given; the last resort",
        ),
    ],
)
def test_every_stage_has_its_words(stage: str, reason: str, said: str) -> None:
    answer = {"stage": stage, "errors": [{"node": "", "operator": "", "reason": reason}]}
    assert told(Failure.from_answer(answer)) == f"TensorRT {said}"


def test_long_reasons_are_cut() -> None:
    message = told(of_builder("x" * 1000, "y"))
    assert "…; the last resort" in message and "x" * 250 in message


def test_repeated_and_empty_reasons_are_told_once() -> None:
    assert told(of_builder("twice", "twice")).count("twice") == 1
    assert "no reason given" in told(of_builder("  \n "))
    assert "no reason given" in told(Failure("builder", ()))


def test_an_absent_driver_is_told_only_where_nothing_else_is() -> None:
    driver = "Error Code 1: Cuda Runtime (CUDA driver version is insufficient for CUDA runtime version)"
    assert "driver" not in told(of_builder(f"{driver}\nthe reason")).split(";")[0]
    message = told(of_builder(driver))
    assert "CUDA driver version is insufficient" in message and message.endswith("give this process the GPU")


def test_what_later_lines_say_tells_the_next_step() -> None:
    message = told(of_builder("Compilation failed.\n  out of shared memory"))
    assert message == (
        "TensorRT cannot build an engine for this GPU: Compilation failed.; allow more: --shared-memory KIB, at least "
        "48"
    )
