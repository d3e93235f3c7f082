"""The README is executed: its commands and its Python, as written; its links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastervit_trt.models import create_model
from tests.conftest import ROOT, Finished

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_commands_and_python_run_as_written(
    command: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # what the official file looks like, with random weights
    model = create_model("faster_vit_0_224")
    official = {"epoch": 309, "state_dict": model.state_dict(), "args": argparse.Namespace(model="faster_vit_0_224")}
    torch.save(official, "fastervit_0_224_1k.pth.tar")
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        finished = command(*shlex.split(line))
        assert finished.code == 0, f"{line}\n{finished.err}"
    assert Path("faster_vit_0_224-fp16/model.onnx").exists()
    assert Path("report/report.html").exists()
    for block in blocks("python"):  # they load what the commands have written
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "plugins/README.md",
        "engines/README.md",
        "benchmarks/README.md",
        "deploy/README.md",
        "benchmarks/published/README.md",
        "benchmarks/results/README.md",
    ],
)
def test_local_links_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / document).read_text())
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
