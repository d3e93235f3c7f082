"""What TensorRT's parser and builder refuse, told in the model's words: block, operator, reason, next step."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Failure", "block_of_node"]

_REASON_LENGTH = 300
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|insufficient memory|cuda(Error)?MemoryAllocation|bad_?alloc|cannot allocate memory"
    r"|could not allocate|not enough memory",
    re.IGNORECASE,
)
# Pattern in the reason → what to do; the first that fits.
_NEXT_STEPS = (
    (r"workspace limit", "allow more: --workspace MIB"),
    (r"smem_limit|shared memory", "allow more: --shared-memory KIB, at least 48"),
    (_OUT_OF_MEMORY.pattern, "close other programs, lower the largest --batch, or build where there is more memory"),
    (r"must be of same type|type mismatch|inconsistent types", "the graph mixes types; export the model again"),
    (
        r"No importer registered|NoSuchOperator|not supported.*operator|unsupported operator",
        "export again with --inline",
    ),
    (r"GEMM is not supported|is not supported (on|by|for)|No kernel|no implementation", "try another --precision"),
    (r"No space left|while writing", "free some room or choose another --output"),
)
# Where in TensorRT's sources and which call failed: nothing a user can act on.
_PLACES = re.compile(r"I[A-Z]\w+::\w+: |Error Code \d+: |\[\w+\.(cpp|h|hpp):\d+(: \w+)?\] ?|^\w+\.(cpp|h|hpp):\d+: ")
_KILLED = 9  # SIGKILL is what Linux sends where memory ran out, and nobody else sends it to a builder


@dataclass(frozen=True)
class Failure:
    """Why a build failed.

    Attributes:
        stage: parser, builder, plugins, inspection, api, or "ended" for a process that died.
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
        error = self.errors[0] if self.errors else {"node": "", "operator": "", "reason": ""}
        reason = _readable(error["reason"])
        step = next((step for pattern, step in _NEXT_STEPS if re.search(pattern, error["reason"])), fallback)
        if self.stage == "parser":
            node, block = error["node"], block_of_node(error["node"]) or "the graph"
            what = f"parser refuses {error['operator'] or 'a node'} in {block} (node '{node}')"
        elif self.stage == "ended":
            what, reason = f"ended without an answer ({_exit_reason(self.exit_code or 0)})", reason or "no message"
            if self.out_of_memory:
                step = next(step for pattern, step in _NEXT_STEPS if pattern == _OUT_OF_MEMORY.pattern)
        elif self.stage == "plugins":
            what, step = "cannot load the plugin library", "build it again, or pass --plugins off"
        elif self.stage == "api":
            what, step = "has another Python API than the releases known here", "install a release named in README.md"
        elif self.stage == "inspection":
            what = f"cannot load the engine it has just built for {target}"
        else:
            block = _named_block(error["reason"], nodes)
            what = f"cannot build {f'{block} in ' if block else ''}an engine for {target}"
        return f"{builder} {what}: {reason}; {step}"


def block_of_node(name: str) -> str:
    """``"stages.2.blocks.3.hat_attn/CarrierAttention_0/Gemm_0"`` → ``"stages.2.blocks.3.hat_attn"``.

    Also of a name as TensorRT keeps it in engines: ``"Gemm_0 | stages.2.blocks.3.hat_attn/CarrierAttention_0 (…)"``.
    """
    outer = name.split(" | ")[-1].split(" ")[0]
    return outer.partition("/")[0] if "/" in outer else ""


def _named_block(reason: str, nodes: Iterable[str]) -> str:
    """The block whose node a message names; the node with the longest name where there are several."""
    found = sorted((name for name in nodes if "/" in name and name in reason), key=len)
    return block_of_node(found[-1]) if found else ""


def _readable(reason: str) -> str:
    """The line that says something: not where in TensorRT's sources, not what an absent driver causes."""
    lines = [line.strip() for line in reason.splitlines()]
    useful = [line for line in lines if line and "Cuda Runtime" not in line and not line.startswith("Invalid Node")]
    return _shorter(_PLACES.sub("", useful[0]) if useful else "no reason given")


def _shorter(text: str) -> str:
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 1]}…"


def _exit_reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
