"""What TensorRT's parser and builder refuse, told in the model's words: block, operator, reason, next step."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ABSENT_DRIVER", "Failure", "block_of_node"]

_REASON_LENGTH = 300
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|insuff?icient memory|memory is insufficient|not enough memory|cannot allocate memory"
    r"|could not allocate|could not be allocated|allocator error|cuda(Error)?MemoryAllocation|bad_?alloc"
    r"|NvMapMem\w+.* error 12\b",  # ENOMEM, from a Jetson's driver
    re.IGNORECASE,
)
# TensorRT-RTX complains about the absence of a driver, which a build ahead of time does not need.
ABSENT_DRIVER = re.compile(
    r"Cuda Runtime.*(driver version is insufficient|no CUDA-capable device|cudaError (35|100)\b)"
)
_LESS_MEMORY = "close other programs, lower the largest --batch, or build where there is more memory"
# Pattern in the reason → what to do; the first that fits.
_NEXT_STEPS = (
    (r"CUDA initialization failure|driver version is insufficient", "update the driver, or give this process the GPU"),
    (r"workspace limit|insufficient workspace", "allow more: --workspace MIB"),
    (r"smem_limit|shared memory", "allow more: --shared-memory KIB, at least 48"),
    (_OUT_OF_MEMORY.pattern, _LESS_MEMORY),
    (r"must be of same type|type mismatch|inconsistent types", "the graph mixes types; export the model again"),
    (r"MyelinCheckException|NVRTC", "its compiler is at fault: try a later release, or another --precision"),
    (r"Could not find any implementation", "allow more: --workspace MIB, or try another --precision"),
    (r"not supported (on|by|for)|HW-specific datatypes|No kernel|no implementation", "try another --precision"),
    (r"No space left|while writing", "free some room or choose another --output"),
)
# Stage that is not about the graph → what failed, what to do.
_OTHER_STAGES = {
    "import": ("is installed but cannot be loaded", "install it again"),
    "plugins": ("cannot load the plugin library", "build it again, or pass --plugins off"),
    "api": ("has another Python API than the releases known here", "install a release named in README.md"),
}
# Where in TensorRT's sources and which call failed: nothing a user can act on.
_PLACES = re.compile(
    r"\bI[A-Z]\w+::\w+: |^\w+: (?=Error Code)|Error Code:? \d+: |\[\w+\.(cpp|cu|h|hpp):[^\]]*\] ?"
    r"|\b\w+\.(cpp|cu|h|hpp):\d+: | ?\bIn \S+ at \S+:\d+"
)
_KIND = re.compile(r"(?:Internal Error|API Usage Error|Myelin) \((.*)")  # the message is in its parentheses
_KILLED = 9  # SIGKILL is what Linux sends where memory ran out, and nobody else sends it to a builder


@dataclass(frozen=True)
class Failure:
    """Why a build failed.

    Attributes:
        stage: import, plugins, parser, builder, inspection, api, or "ended" for a process that died.
        errors: node, operator and reason of each, as far as TensorRT says.
    """

    stage: str
    errors: tuple[Mapping[str, str], ...]
    exit_code: int | None = None

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> Failure:
        """From what a worker answered."""
        return cls(answer["stage"], tuple(answer["errors"]))

    @classmethod
    def of_dead_process(cls, code: int, last_words: str) -> Failure:
        """From the exit code, negative for a signal, and the last line on standard error."""
        return cls("ended", ({"node": "", "operator": "", "reason": last_words},), code)

    @property
    def out_of_memory(self) -> bool:
        """Whether a build that needs less may succeed."""
        if self.exit_code == -_KILLED:
            return True
        return any(_OUT_OF_MEMORY.search(error["reason"]) for error in self.errors)

    def describe(self, builder: str, target: str, nodes: Iterable[str], fallback: str) -> str:
        """One line.

        Args:
            builder: e.g. "TensorRT-RTX".
            target: what it was built for, e.g. "compute capability 8.9".
            nodes: names of the graph's nodes, to find the block a message of the builder is about.
            fallback: what to do where the reason suggests nothing.
        """
        errors = self.errors or ({"node": "", "operator": "", "reason": ""},)
        if self.stage == "parser":
            errors = errors[:1]  # the others often follow from it
        said = "; ".join(error["reason"] for error in errors)
        reason = "; ".join(dict.fromkeys(_readable(error["reason"]) for error in errors))
        step = _next_step(reason) or _next_step(said) or fallback
        if self.stage == "parser":
            what = _refusal(errors[0]["node"], errors[0]["operator"])
        elif self.stage == "ended":
            what = f"ended without an answer ({_exit_reason(self.exit_code or 0)})"
            if self.out_of_memory:
                step = _LESS_MEMORY
        elif self.stage in _OTHER_STAGES:
            what, step = _OTHER_STAGES[self.stage]
        elif self.stage == "inspection":
            what = f"cannot load the engine it has just built for {target}"
        else:
            blocks = _named_blocks(said, nodes)
            what = f"cannot build {f'{blocks} in ' if blocks else ''}an engine for {target}"
        return f"{builder} {what}: {_shorter(reason)}; {step}"


def block_of_node(name: str) -> str:
    """``"stages.2.blocks.3.hat_attn/CarrierAttention_0/Gemm_0"`` → ``"stages.2.blocks.3.hat_attn"``.

    Also of a name as TensorRT keeps it in engines: ``"Gemm_0 | stages.2.blocks.3.hat_attn/CarrierAttention_0 (…)"``.
    """
    outer = name.split(" | ")[-1].split(" ")[0]
    return outer.partition("/")[0] if "/" in outer else ""


def _next_step(text: str) -> str | None:
    return next((step for pattern, step in _NEXT_STEPS if re.search(pattern, text, re.IGNORECASE)), None)


def _refusal(node: str, operator: str) -> str:
    if not node:
        return "parser cannot read the graph"
    return f"parser refuses {operator or 'a node'} in {block_of_node(node) or 'the graph'} (node '{node}')"


def _named_blocks(reason: str, nodes: Iterable[str]) -> str:
    """The block whose nodes a message names; where TensorRT names the ends of what it fused, the first and the last."""
    blocks: dict[int, str] = {}
    for name in sorted((name for name in nodes if "/" in name), key=len, reverse=True):  # the whole before its parts
        if (place := reason.find(name)) >= 0:
            blocks[place] = block_of_node(name)
            reason = reason.replace(name, " " * len(name))
    named = list(dict.fromkeys(block for _, block in sorted(blocks.items())))
    return " to ".join(dict.fromkeys((named[0], named[-1]))) if named else ""


def _readable(reason: str) -> str:
    """The line that says something: not where in TensorRT's sources, not what an absent driver causes."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    useful = [line for line in lines if not ABSENT_DRIVER.search(line) and not line.startswith("Invalid Node")]
    text = _PLACES.sub("", (useful or lines or ["no reason given"])[0])
    if (inner := _KIND.fullmatch(text)) is not None:
        text = inner[1]
        if text.count(")") > text.count("("):
            text = text[: text.rindex(")")]
    return text.strip()


def _shorter(text: str) -> str:
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 1]}…"


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # real-time signals have no names
        return f"killed by signal {-code}"
