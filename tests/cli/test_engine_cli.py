"""``fastervit-engine`` as a user meets it, and what ``fastervit-export`` is told about engines."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt import building
from fastervit_trt.artifacts import Manifest
from fastervit_trt.cli import export as export_module
from fastervit_trt.engines.api import unavailable_reason
from fastervit_trt.engines.audit import Audit
from fastervit_trt.engines.build import BuildRequest, BuiltEngine
from fastervit_trt.engines.keys import Signed
from fastervit_trt.engines.rtx import rtx_unavailable_reason
from fastervit_trt.engines.signing import verify_record
from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange
from fastervit_trt.workflow import ExportRequest
from tests.conftest import Finished

Command = Callable[..., Finished]
pytestmark = pytest.mark.skipif(rtx_unavailable_reason() is not None, reason=str(rtx_unavailable_reason()))
ENGINE, AUDIT, OTHER = "model.rtx-sm89.engine", "model.rtx-sm89.audit.json", "model.rtx-sm86.engine"
RTX = ("--runtime", "rtx", "--compute-capability")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing built before, and no GPU, whatever the machine."""
    monkeypatch.setenv("FASTERVIT_TRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def folder(exports: Path, tmp_path: Path) -> Path:
    """A float16 export with an engine for 8.9."""
    return Path(shutil.copytree(exports / "fp16", tmp_path / "fp16"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*")}


def edit(folder: Path, **changes: Any) -> None:
    """Change the record of the first engine and leave its signature."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"][0].update(changes)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flat(text: str) -> str:
    """Without the columns and line breaks of a table."""
    return " ".join(text.split())


# build
def test_an_engine_is_added_and_all_else_stays(command: Command, folder: Path) -> None:
    before, files = Manifest.read(folder), content(folder)
    done = command("fastervit-engine", "build", folder, *RTX, "8.6")
    assert done.code == 0, done.err
    assert re.search(r"engine: model\.rtx-sm86\.engine, .* built in \d", done.out)
    assert "proven: multiplications 100% fp16; attentions: 2 in parts, 1 one kernel" in done.out
    after = Manifest.read(folder)
    after.check_files(folder)
    assert {path.name for path in folder.iterdir()} == {*after.files, "manifest.json"}
    assert set(after.files) - set(before.files) == {OTHER, "model.rtx-sm86.audit.json"}
    assert {name: entry for name, entry in after.files.items() if name in before.files} == before.files
    assert {name: data for name, data in content(folder).items() if name in before.files} == {
        name: data for name, data in files.items() if name != "manifest.json"
    }
    assert replace(after, engines=[], files={}) == replace(before, engines=[], files={})
    assert [engine["file"] for engine in after.engines] == [ENGINE, OTHER]
    assert after.engines[0] == before.engines[0]
    assert [verify_record(engine, after.files).signed for engine in after.engines] == [Signed.OWN] * 2
    again = command("fastervit-engine", "build", folder, *RTX, "8.6")
    assert "from the cache (building took" in again.out
    assert "8.6 engine from the cache" in again.err
    assert Manifest.read(folder).files[OTHER] == after.files[OTHER]
    anew = command("fastervit-engine", "build", folder, *RTX, "8.6", "--no-cache")
    assert "built in" in anew.out
    assert "cache" not in anew.out + anew.err
    assert len(Manifest.read(folder).engines) == 2


def test_profiles_and_limits_are_recorded_and_every_profile_audited(command: Command, folder: Path) -> None:
    done = command("fastervit-engine", "build", folder, "--batch", "1,2:4:8", "--workspace", 512)
    assert done.code == 0, done.err
    (record,) = Manifest.read(folder).engines
    assert (record["profiles"], record["options"]) == ([[1, 1, 1], [2, 4, 8]], {"workspace_mib": 512})
    shown = command("fastervit-engine", "audit", folder, "--output", folder.parent / "audit.json").out
    assert re.findall(r"^(model\S+, profile \d), for sm89: \d+ launches$", shown, re.M) == [
        f"{ENGINE}, profile 0",
        f"{ENGINE}, profile 1",
    ]
    first, second = map(Audit.from_record, json.loads((folder.parent / "audit.json").read_text())[ENGINE])
    assert first.launches > second.launches  # of one image the head is a kernel more
    against = command("fastervit-engine", "audit", folder, "--against", folder).out.splitlines()
    assert against == ["no difference, profile 0", "no difference, profile 1"]


def fails(*arguments: Any) -> BuiltEngine:
    raise AssertionError("built")


def second_fails(request: BuildRequest, *arguments: Any) -> BuiltEngine:
    if request.compute_capability == "8.6":
        raise FasterViTError("no room")
    return REAL(request, *arguments)


def interrupts(request: BuildRequest, *arguments: Any) -> BuiltEngine:
    raise KeyboardInterrupt


REAL = building.build_engine


@pytest.mark.parametrize(
    ("arguments", "builder", "code", "message"),
    [
        (("--workspace", 1), REAL, 2, r"cannot build an engine for compute capability 8\.9: .*allow more: --workspace"),
        (("--level", 3), REAL, 2, r"TensorRT-RTX has no --level"),
        (("--compute-capability", "8.9,8.6", "--batch", 8), second_fails, 2, "no room"),
        ((), interrupts, 130, "interrupted; nothing half-written was kept"),
    ],
    ids=["builder", "option", "second", "interrupt"],
)
def test_a_build_that_fails_leaves_the_export_as_it_was(
    command: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    builder: Callable[..., BuiltEngine],
    code: int,
    message: str,
) -> None:
    before = content(folder)
    monkeypatch.setattr(building, "build_engine", builder)
    failed = command("fastervit-engine", "build", folder, *arguments)
    assert failed.code == code
    assert re.search(message, failed.error)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir() if path.name != "cache"] == ["fp16"]


def test_an_interrupt_at_the_last_moment_leaves_the_export_as_it_was(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = content(folder), Manifest.write

    def interrupted(manifest: Manifest, place: Path) -> None:
        write(manifest, place)
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "write", interrupted)
    assert command("fastervit-engine", "build", folder, *RTX, "8.6").code == 130
    assert content(folder) == before


def refused(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The message of a build that is refused before anything is built."""
    monkeypatch.setattr(building, "build_engine", fails)
    before = content(folder)
    finished = command("fastervit-engine", "build", folder, *arguments)
    assert (finished.code, content(folder)) == (2, before)
    return finished.error


def test_a_changed_graph_is_refused(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    message = refused(command, folder, monkeypatch)
    assert "model.onnx' is not the file the manifest describes; export the model again" in message


def test_what_a_gpu_or_tensorrt_lacks_is_refused(
    command: Command, exports: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bf16 = Path(shutil.copytree(exports / "bf16", tmp_path / "bf16"))
    assert "compute capability 7.5 has no bf16" in refused(command, bf16, monkeypatch, *RTX, "7.5")
    assert "TensorRT-RTX has no compute capability '9.0'" in refused(command, folder, monkeypatch, *RTX, "9.0")
    assert "knows no plugins" in refused(command, folder, monkeypatch, *RTX, "8.9", "--plugins", "on")
    assert "runtime 'trt' is none of" in refused(command, folder, monkeypatch, "--runtime", "trt")
    assert "there is nothing to build with" in refused(command, folder, monkeypatch, "--runtime", "none")
    if unavailable_reason("tensorrt") is not None:
        assert "TensorRT is not installed" in refused(command, folder, monkeypatch, "--runtime", "tensorrt")


def test_a_graph_for_another_runtime_is_refused(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graph"]["quantisation"] = {"type": "int8", "base": "fp32", "form": "ONNX Runtime's CPU provider"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "is made for ONNX Runtime's CPU provider alone" in refused(command, folder, monkeypatch)
    manifest["graph"]["quantisation"] = {"type": "fp8", "base": "fp16", "form": None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "compute capability 8.6 has no fp8" in refused(command, folder, monkeypatch, *RTX, "8.6")


def test_no_export_is_said(command: Command, tmp_path: Path) -> None:
    for subcommand in ("build", "audit", "verify"):
        assert "is no export: it has no manifest.json" in command("fastervit-engine", subcommand, tmp_path).error


# audit
def test_an_audit_is_readable_and_written_as_json(command: Command, folder: Path, tmp_path: Path) -> None:
    shown = command("fastervit-engine", "audit", folder, "--output", tmp_path / "audit.json")
    assert shown.code == 0, shown.err
    lines = [flat(line) for line in shown.out.splitlines()]
    (audit,) = map(Audit.from_record, json.loads((tmp_path / "audit.json").read_text())[ENGINE])
    assert lines[0] == f"{ENGINE}, for sm89: {audit.launches} launches"
    for stage in audit.stages:
        shares = "100% fp16 " if stage.macs else ""
        assert any(line.startswith(f"{stage.stage} {stage.launches} {shares}") for line in lines)
    for attention in audit.attentions:
        assert f"{attention.block} {attention.form} {len(attention.kernels)}" in lines
    assert "__myl" not in shown.out
    detailed = command("fastervit-engine", "audit", folder / ENGINE, "--blocks").out
    assert {block.block for block in audit.blocks} <= {line.split(" ")[0] for line in detailed.splitlines()}
    assert "_gemm_mha_v2" in detailed
    again = ("fastervit-engine", "audit", folder, "--output", tmp_path / "audit.json")
    assert "already exists" in command(*again).error
    assert command(*again, "--overwrite").code == 0


def test_engines_are_compared(command: Command, exports: Path, folder: Path) -> None:
    same = command("fastervit-engine", "audit", folder, "--against", exports / "fp16" / ENGINE)
    assert (same.code, same.out) == (0, "no difference\n")
    other = command("fastervit-engine", "audit", folder / ENGINE, "--against", exports / "fp32").out.splitlines()
    assert "head: runs in fp32 → fp16" in other
    assert "stages.3.blocks.0.attn: attention in 8 parts → one kernel" in other
    assert "stages.3.blocks.0.attn: launches 8 → 2" in other
    assert command("fastervit-engine", "build", folder, *RTX, "8.6").code == 0
    several = command("fastervit-engine", "audit", folder, "--against", exports / "fp32")
    assert f"has 2 engines; name one of {ENGINE}, {OTHER} in it" in several.error


def test_an_audit_that_is_not_the_exports_is_refused(command: Command, folder: Path) -> None:
    shutil.copy(folder / ENGINE, folder / "copy.engine")
    listed = command("fastervit-engine", "audit", folder / "copy.engine").error
    assert "the manifest lists no engine 'copy.engine'; build one with: fastervit-engine build" in listed
    (folder / AUDIT).write_text((folder / AUDIT).read_text().replace("fp16", "fp32"))
    assert (
        f"{AUDIT}' is not what the manifest describes; build again:"
        in command("fastervit-engine", "audit", folder).error
    )


# verify, key, trust
def test_a_machine_without_gpu_would_load_none(command: Command, folder: Path) -> None:
    assert command("fastervit-engine", "build", folder, *RTX, "8.6").code == 0
    finished = command("fastervit-engine", "verify", folder)
    assert finished.code == 2
    assert finished.error == f"error: 2 of 2 engines would not load here: {ENGINE}, {OTHER}"
    first, why, second, why_too = finished.out.splitlines()
    own = command("fastervit-engine", "key").out.split()[1]
    for name, line, reason in ((ENGINE, first, why), (OTHER, second, why_too)):
        assert re.fullmatch(rf"{re.escape(name)}: own key {re.escape(own)} SHA256:\S+", line)
        assert reason.startswith(f"  engine '{folder / name}' needs a GPU and none was found here; ")


def test_tampering_is_seen(command: Command, folder: Path) -> None:
    def problems() -> list[str]:
        finished = command("fastervit-engine", "verify", folder)
        assert finished.code == 2
        return [line for line in finished.out.splitlines()[1:] if "needs a GPU" not in line]

    assert problems() == []
    engine = bytearray((folder / ENGINE).read_bytes())
    engine[len(engine) // 2] ^= 1
    (folder / ENGINE).write_bytes(engine)
    (changed,) = problems()
    assert f"engine '{folder / ENGINE}' is not the file that the manifest describes; build it again with" in changed
    edit(folder, profiles=[[1, 4, 800]])
    assert any("was changed after it was signed" in problem for problem in problems())
    (folder / ENGINE).unlink()
    assert any("is missing though the manifest lists it" in problem for problem in problems())


def test_an_engine_is_loaded_where_its_key_is_trusted(
    command: Command, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = command("fastervit-engine", "key").out.strip()
    (tmp_path / "server.pub").write_text(line)
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "elsewhere"))

    def verified(*arguments: str) -> str:
        return command("fastervit-engine", "verify", exports / "fp16", *arguments).out

    assert "signed by unknown key" in verified()
    assert "signed by" not in verified("--trust")
    assert "signed by unknown key" in verified()  # --trust is for once
    trusted = command("fastervit-engine", "trust", tmp_path / "server.pub").out
    fingerprint = trusted.split()[1]
    assert re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", fingerprint)
    assert "trusted key" in verified()
    own, *others = command("fastervit-engine", "key").out.splitlines()
    assert own != line
    assert others == [trusted.strip()]
    assert "trusted key" in command("fastervit-engine", "trust", line).out + verified()
    assert "is no public key" in command("fastervit-engine", "trust", "nonsense").error


# cache
def test_the_cache_is_listed_and_cleared(command: Command, folder: Path, tmp_path: Path) -> None:
    assert command("fastervit-engine", "cache").out.startswith("0.0 MB of at most 20000 MB in ")
    for options in (("8.6",), ("8.9", "--batch", 8)):
        assert command("fastervit-engine", "build", folder, *RTX, *options).code == 0
    first, second, total = command("fastervit-engine", "cache").out.splitlines()
    assert re.search(r"^ *\d+\.\d MB  20\d\d-.*tensorrt-rtx \S+ 8\.6 fp16, batch 1:4:8$", first)
    assert second.endswith("8.9 fp16, batch 8")
    size = float(total.split()[0])
    assert size == pytest.approx(sum(float(line.split()[0]) for line in (first, second)), abs=0.2)
    cleared = command("fastervit-engine", "cache", "--clear").out
    assert cleared == f"removed {size} MB from {tmp_path / 'cache' / 'engines'}\n"
    assert command("fastervit-engine", "cache").out.startswith("0.0 MB of")
    assert "built in" in command("fastervit-engine", "build", folder, *RTX, "8.6").out


# an export of before, and what an export is told
def test_an_engine_of_an_earlier_version_is_refused_and_can_be_built_again(command: Command, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = ("file", "runtime", "version", "compute_capability", "layers", "build_seconds", "build_peak_rss_mib")
    manifest["engines"] = [{name: value for name, value in manifest["engines"][0].items() if name in kept}]
    del manifest["files"][AUDIT]
    (folder / AUDIT).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    old = command("fastervit-engine", "verify", folder)
    assert old.code == 2
    rebuild = ["fastervit-engine", "build", str(folder), *RTX, "8.9"]
    assert f"build it again with `{shlex.join(rebuild)}`" in old.out
    assert "build again: fastervit-engine build" in command("fastervit-engine", "audit", folder).error
    assert command(*rebuild).code == 0
    _, only = command("fastervit-engine", "verify", folder).out.splitlines()
    assert "needs a GPU" in only
    assert command("fastervit-engine", "audit", folder).code == 0
    Manifest.read(folder).check_files(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ExportRequest]:
    """What ``fastervit-export`` would do, which is not done."""
    requests: list[ExportRequest] = []

    def stop(request: ExportRequest) -> Manifest:
        requests.append(request)
        raise FasterViTError("stopped")

    monkeypatch.setattr(export_module, "export_model", stop)
    return requests


MODEL = ("--model", "faster_vit_digits_s", "--pretrained", "--batch", "1:4:8")


def test_an_export_is_told_which_engines_to_build(command: Command, asked: list[ExportRequest]) -> None:
    lines: list[tuple[str, ...]] = [
        ("--runtime", "rtx", "--compute-capability", "8.6,12.0", "--no-cache", "--plugins", "off"),
        ("--runtime", "none"),
        (),
    ]
    for line in lines:
        assert command("fastervit-export", *MODEL, *line).error == "error: stopped"
    first, none, default = (request.engines for request in asked)
    assert [(r.runtime, r.compute_capability, r.plugins, r.use_cache) for r in first.requests] == [
        ("tensorrt-rtx", capability, "off", False) for capability in ("8.6", "12.0")
    ]
    assert (none.requests, none.skipped) == ((), "not asked for")
    (request,) = default.requests
    assert (request.runtime, request.compute_capability, request.plugins) == ("tensorrt-rtx", "8.9", "auto")
    assert (request.use_cache, request.profiles, asked[0].batch) == (True, (), BatchRange(1, 4, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runtime", "rtx", "--plugins", "on"), "TensorRT-RTX knows no plugins; leave out --plugins on"),
        (("--plugins", "on"), "TensorRT-RTX knows no plugins"),  # auto is RTX here
        (("--plugins", "yes"), "--plugins 'yes' is none of auto, on and off"),
        (("--runtime", "cuda"), "runtime 'cuda' is none of auto, tensorrt, rtx and none"),
        (("--compute-capability", "9.0"), "TensorRT-RTX has no compute capability '9.0'"),
    ],
)
def test_what_an_export_cannot_build_is_said_before_it_begins(
    command: Command, asked: list[ExportRequest], arguments: tuple[str, ...], message: str
) -> None:
    finished = command("fastervit-export", *MODEL, *arguments)
    assert finished.code == 2
    assert message in finished.error
    assert asked == []
