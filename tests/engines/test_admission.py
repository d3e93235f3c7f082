"""What is checked before an engine is deserialised: real files and signatures, machines of every kind."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastervit_trt import __version__
from fastervit_trt.artifacts import Manifest, file_entry
from fastervit_trt.engines.admission import AdmittedEngine, admit, check_engines, rebuild_command
from fastervit_trt.engines.cache_key import BUILDER_SCHEMA
from fastervit_trt.engines.keys import Signed, public_key_line, trust_key
from fastervit_trt.engines.machine import Machine
from fastervit_trt.engines.signing import sign_record
from fastervit_trt.errors import FasterViTError

ENGINE = b"ftrt" + bytes(range(256)) * 40
L4 = Machine("tensorrt", "11.4.0.106", "NVIDIA L4", "8.9", "580.65", "linux-x86_64")
RTX_4090 = Machine("tensorrt-rtx", "1.7.1.116", "NVIDIA GeForce RTX 4090", "8.9", "580.65", "linux-x86_64")
RECORD: dict[str, Any] = {
    "file": "model.trt-sm89.engine",
    "runtime": "tensorrt",
    "version": "11.4.0.106",
    "compute_capability": "8.9",
    "gpu": "NVIDIA L4",
    "profiles": [[1, 8, 32]],
    "precision": "fp16",
    "hardware_compatibility": "none",
    "version_compatible": False,
    "stripped": False,
    "plugins": None,
    "platform": "linux-x86_64",
}
RTX: dict[str, Any] = {"runtime": "tensorrt-rtx", "version": "1.7.1.116", "gpu": None, "file": "model.rtx-sm89.engine"}


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for keys that is not the user's own."""
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


@dataclasses.dataclass
class Export:
    """An export folder with one engine, as the builder leaves it."""

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder)

    @property
    def record(self) -> dict[str, Any]:
        return self.manifest.engines[0]

    @property
    def engine(self) -> Path:
        return self.folder / self.record["file"]

    def change(self, **changes: Any) -> None:
        """Edit the record and leave the rest, its signature too, as it is."""
        content = json.loads((self.folder / "manifest.json").read_text())
        content["engines"][0].update(changes)
        (self.folder / "manifest.json").write_text(json.dumps(content))

    def admit(self, machine: Machine = L4, **options: Any) -> AdmittedEngine:
        return admit(self.folder, self.manifest, self.record, machine=machine, **options)

    def refusal(self, machine: Machine = L4, **options: Any) -> str:
        with pytest.raises(FasterViTError) as caught:
            self.admit(machine, **options)
        return str(caught.value)


def write_export(folder: Path, *, signed: bool = True, **changes: Any) -> Export:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(b"the graph")
    record = {**RECORD, "onnx_sha256": hashlib.sha256(b"the graph").hexdigest(), **changes}
    (folder / record["file"]).write_bytes(ENGINE)
    files = {name: file_entry(folder / name) for name in ("model.onnx", record["file"])}
    manifest = Manifest(
        model="faster_vit_digits_s",
        spec={},
        num_classes=10,
        resolution=(224, 224),
        precision="fp16",
        batch="1:8:32",
        input={"name": "images", "shape": ["batch", 3, 224, 224]},
        outputs=[],
        preprocessing={},
        weights={},
        graph={},
        verification={},
        engines=[sign_record(record, files) if signed else record],
        engines_skipped=None,
        files=files,
        versions={},
        created_utc="",
    )
    manifest.write(folder)
    return Export(folder)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    return write_export(tmp_path / "my export")  # a name that a shell would split


def rebuilt_by(message: str) -> list[str]:
    """The command that a message tells to type, as a shell takes it apart."""
    commands = [part for part in message.split("`")[1::2] if part.startswith("fastervit-engine build")]
    assert len(commands) == 1, message
    return shlex.split(commands[0])[2:]


# --- what is admitted ---


def test_an_engine_built_here_is_admitted(export: Export, capfd: pytest.CaptureFixture[str]) -> None:
    admitted = export.admit(batch=32)
    assert admitted.content == ENGINE and isinstance(admitted.content, bytes)
    assert (admitted.plugin_library, admitted.graph, admitted.host_code) == (None, None, False)
    assert admitted.verdict.signed is Signed.OWN
    export.engine.write_bytes(b"swapped after the check")
    assert admitted.content == ENGINE
    assert "ENGINE" not in repr(admitted) and len(repr(admitted)) < 1000
    assert capfd.readouterr().err == ""


def test_nothing_native_is_imported_to_tell(export: Export) -> None:
    code = f"""
import sys
from pathlib import Path
from fastervit_trt.artifacts import Manifest
from fastervit_trt.engines.admission import admit
folder = Path({str(export.folder)!r})
manifest = Manifest.read(folder)
try:
    admit(folder, manifest, manifest.engines[0])
except Exception as error:
    print(type(error).__name__)
print([name for name in sys.modules if name.split(".")[0] in ("tensorrt", "tensorrt_rtx", "onnxruntime")])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


# --- the file ---


def test_a_missing_engine_is_named(export: Export) -> None:
    export.engine.unlink()
    message = export.refusal()
    assert f"engine '{export.folder / RECORD['file']}' is missing" in message
    assert rebuilt_by(message) == [str(export.folder), "--runtime", "tensorrt"]


@pytest.mark.parametrize("position", [0, len(ENGINE) // 2, len(ENGINE) - 1])
@pytest.mark.parametrize("trust", [False, True])
def test_one_changed_bit_is_noticed(export: Export, position: int, trust: bool) -> None:
    content = bytearray(ENGINE)
    content[position] ^= 1
    export.engine.write_bytes(content)
    message = export.refusal(trust=trust)
    assert "is not the file that the manifest describes" in message and rebuilt_by(message)


@pytest.mark.parametrize("content", [ENGINE[:-1], ENGINE + b"\0", b""])
def test_another_length_is_told_in_bytes(export: Export, content: bytes) -> None:
    export.engine.write_bytes(content)
    assert f"has {len(content)} bytes, not the {len(ENGINE)} of the manifest" in export.refusal(trust=True)


def test_a_changed_manifest_does_not_help_a_changed_engine(export: Export) -> None:
    export.engine.write_bytes(b"evil" + ENGINE[4:])
    content = json.loads((export.folder / "manifest.json").read_text())
    content["files"][RECORD["file"]] = file_entry(export.engine)
    (export.folder / "manifest.json").write_text(json.dumps(content))
    for trust in (False, True):
        message = export.refusal(trust=trust)
        assert "runs code on this machine" in message and "was changed after it was signed" in message
        assert "--trust" not in message and rebuilt_by(message)


# --- the signature ---


def test_an_unsigned_engine_needs_trust(tmp_path: Path) -> None:
    export = write_export(tmp_path / "e", signed=False)
    message = export.refusal()
    assert "runs code on this machine, is not signed" in message and "--trust" in message and rebuilt_by(message)
    assert export.admit(trust=True).verdict.signed is Signed.UNSIGNED


def test_an_unknown_key_needs_trust_once_or_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Path
) -> None:
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "theirs"))
    export, line = write_export(tmp_path / "e"), public_key_line()
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(keys))
    message = export.refusal()
    assert f"unknown key '{export.record['signature']['key']}'" in message
    assert "`fastervit-engine trust KEYFILE`" in message and "--trust" in message
    assert export.admit(trust=True).verdict.signed is Signed.UNKNOWN
    trust_key(line)
    assert export.admit().verdict.signed is Signed.TRUSTED
    export.change(precision="int8")
    for trust in (False, True):
        assert "was changed after it was signed" in export.refusal(trust=trust)


# --- the runtime ---


@pytest.mark.parametrize(
    ("built", "here", "compatible", "loads"),
    [
        ("11.4.0.106", "11.4.0.106", False, True),
        ("11.4.0.106", "11.4.0.107", False, False),
        ("11.4.0.106", "11.4.1.1", False, False),
        ("11.4.0.106", "11.3.0.1", False, False),
        ("10.3.0.26", "10.3.0", False, True),  # as PyPI and JetPack number it
        ("10.3.0", "10.3.0.26", False, True),
        ("10.6.0", "10.6.0.post1", False, True),
        ("10.3.0.26", "10.13.3.9", False, False),
        ("11.0.0.1", "11.4.0.106", True, True),
        ("11.4.0.106", "11.4.0.106", True, True),
        ("11.4.0.106", "11.0.0.1", True, False),
        ("10.3.0.26", "11.4.0.106", True, True),
        ("10.16.0.1", "10.3.0", True, False),
        ("10.3.0.26", "10.3.0", True, True),
        ("11.0.0.1", "10.16.0.1", True, False),
        ("8.6.1.6", "11.4.0.106", True, False),
        ("11.4.0.106", "12.0.0.1", True, False),  # until NVIDIA says so
    ],
)
def test_which_versions_load_which(tmp_path: Path, built: str, here: str, compatible: bool, loads: bool) -> None:
    export = write_export(tmp_path / "e", version=built, version_compatible=compatible)
    machine = dataclasses.replace(L4, version=here)
    if loads:
        assert export.admit(machine).host_code is compatible
    else:
        message = export.refusal(machine)
        assert f"was built by TensorRT {built} and loads in" in message and f"this is {here}" in message
        assert rebuilt_by(message) == [str(export.folder), "--runtime", "tensorrt"]


@pytest.mark.parametrize("here", ["1.7.0.100", "1.7.2.1", "1.8.0.1"])
@pytest.mark.parametrize("compatible", [False, True])
def test_rtx_engines_load_in_their_own_version_only(tmp_path: Path, here: str, compatible: bool) -> None:
    export = write_export(tmp_path / "e", **RTX, version_compatible=compatible)
    assert export.admit(RTX_4090).content == ENGINE
    message = export.refusal(dataclasses.replace(RTX_4090, version=here))
    assert f"TensorRT-RTX 1.7.1.116 and loads in that version only, this is {here}" in message
    assert rebuilt_by(message) == [str(export.folder), "--runtime", "rtx", "--compute-capability", "8.9"]


def test_what_is_not_installed_is_named_with_its_command(tmp_path: Path) -> None:
    for changes, machine, extra in (({}, L4, "gpu"), (RTX, RTX_4090, "cpu")):
        export = write_export(tmp_path / extra, **changes)
        message = export.refusal(dataclasses.replace(machine, version=None))
        assert f"is not installed: pip install 'fastervit-trt[{extra}]'" in message


# --- the GPU ---


@pytest.mark.parametrize(
    ("level", "here", "fits"),
    [
        ("none", "8.9", True),
        ("none", "8.6", False),
        ("none", "9.0", False),
        ("same-capability", "8.9", True),
        ("same-capability", "12.0", False),
        ("ampere+", "8.0", True),
        ("ampere+", "8.9", True),
        ("ampere+", "12.0", True),
        ("ampere+", "7.5", False),
    ],
)
def test_which_gpus_fit(tmp_path: Path, level: str, here: str, fits: bool) -> None:
    export = write_export(tmp_path / "e", hardware_compatibility=level)
    machine = dataclasses.replace(L4, gpu="Other", capability=here)
    if fits:
        assert export.admit(machine).content == ENGINE
    else:
        needs = "8.0 or later" if level == "ampere+" else "8.9"
        message = export.refusal(machine)
        assert f"is for compute capability {needs}, Other has {here}" in message and rebuilt_by(message)


def test_rtx_plans_run_on_the_capability_they_were_compiled_for(tmp_path: Path) -> None:
    export = write_export(tmp_path / "e", **RTX, hardware_compatibility="ampere+")
    message = export.refusal(dataclasses.replace(RTX_4090, gpu="RTX 5090", capability="12.0"))
    assert "is for compute capability 8.9, RTX 5090 has 12.0" in message
    assert rebuilt_by(message)[-1] == "12.0"  # what this machine needs


def test_without_a_gpu_an_engine_is_no_use(export: Export) -> None:
    message = export.refusal(dataclasses.replace(L4, gpu=None, capability=None))
    assert "needs a GPU and none was found here" in message and "model.onnx" in message


@pytest.mark.parametrize(
    ("changes", "machine", "warned"),
    [
        ({}, L4, False),
        ({}, dataclasses.replace(L4, gpu="NVIDIA L40S"), True),
        ({"hardware_compatibility": "same-capability"}, dataclasses.replace(L4, gpu="NVIDIA L40S"), False),
        (RTX, RTX_4090, False),
        ({"gpu": None}, L4, False),
    ],
)
def test_another_gpu_model_is_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], machine: Machine, warned: bool
) -> None:
    export = write_export(tmp_path / "e", **changes)
    assert export.admit(machine).content == ENGINE
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == warned
    if warned:
        assert "was tuned on 'NVIDIA L4' and this is 'NVIDIA L40S'" in lines[0] and rebuilt_by(lines[0])


def test_engines_belong_to_a_platform(tmp_path: Path) -> None:
    arm = dataclasses.replace(L4, platform="linux-aarch64")
    message = write_export(tmp_path / "e").refusal(arm)
    assert "was built on 'linux-x86_64', this is linux-aarch64" in message and rebuilt_by(message)
    windows = dataclasses.replace(RTX_4090, platform="windows-x86_64")
    assert write_export(tmp_path / "r", **RTX).admit(windows).content == ENGINE
    unknown = {k: v for k, v in RECORD.items() if k != "platform"}
    export = write_export(tmp_path / "u", signed=False, **unknown)
    export.change(platform=None)
    assert export.admit(arm, trust=True).content == ENGINE


# --- the profile ---


@pytest.mark.parametrize(
    ("profiles", "batch", "ranges", "asked"),
    [
        ([[1, 8, 32]], 64, "1–32", "1:64:64"),
        ([[4, 4, 4]], 1, "4", "1:1:4"),
        ([[1, 1, 1], [8, 16, 32]], 4, "1, 8–32", "1:4:32"),
        ([[1, 1, 1], [8, 16, 32]], 33, "1, 8–32", "1:33:33"),
    ],
)
def test_a_batch_outside_the_profiles(
    tmp_path: Path, profiles: list[list[int]], batch: int, ranges: str, asked: str
) -> None:
    export = write_export(tmp_path / "e", profiles=profiles)
    message = export.refusal(batch=batch)
    assert f"takes batches of {ranges}, not {batch}" in message
    assert rebuilt_by(message)[-2:] == ["--batch", asked]
    for low, _, high in profiles:
        assert export.admit(batch=low).content == export.admit(batch=high).content == ENGINE
    assert export.admit(batch=None).content == ENGINE


# --- the plugins ---


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that would end the process that loads it as a library, were it one."""
    path = tmp_path / "libfastervit_plugins.so"
    path.write_bytes(b"\x7fELF nothing to load")
    monkeypatch.setenv("FASTERVIT_TRT_PLUGINS", str(path))
    return path


def plugins_of(library: Path, version: str = __version__) -> dict[str, Any]:
    return {
        "file": library.name,
        "sha256": file_entry(library)["sha256"],
        "version": version,
        "operators": ["WindowAttention"],
    }


def test_the_plugin_library_is_the_one_it_was_built_with(tmp_path: Path, library: Path) -> None:
    export = write_export(tmp_path / "e", plugins=plugins_of(library))
    assert export.admit().plugin_library == library
    library.write_bytes(library.read_bytes() + b"x")
    message = export.refusal(trust=True)
    assert f"'{library}' is another plugin library" in message and "FASTERVIT_TRT_PLUGINS" in message
    assert rebuilt_by(message)
    library.unlink()
    assert "Plugin library not found" in export.refusal()


def test_plugins_of_another_version_are_refused_by_version(tmp_path: Path, library: Path) -> None:
    export = write_export(tmp_path / "e", plugins=plugins_of(library, "0.0.9"))
    message = export.refusal()
    assert f"needs the plugin library of version '0.0.9', this is {__version__}" in message and rebuilt_by(message)


# --- stripped engines ---


def test_a_stripped_engine_takes_weights_from_the_very_graph(tmp_path: Path) -> None:
    export = write_export(tmp_path / "e", stripped=True)
    assert export.admit().graph == export.folder / "model.onnx"
    (export.folder / "model.onnx").write_bytes(b"the grapf")
    message = export.refusal(trust=True)
    assert "model.onnx', where engine" in message and "is missing or was changed" in message
    (export.folder / "model.onnx").unlink()
    assert "is missing or was changed" in export.refusal(trust=True)


def test_a_stripped_engine_of_another_graph_is_refused(tmp_path: Path) -> None:
    export = write_export(tmp_path / "e", stripped=True, onnx_sha256="0" * 64)
    assert "takes its weights from another model.onnx than the manifest's" in export.refusal()


def test_weights_beside_the_graph_are_checked_too(tmp_path: Path) -> None:
    export = write_export(tmp_path / "e", signed=False, stripped=True)
    data = export.folder / "model.onnx.data"
    data.write_bytes(b"weights")
    content = json.loads((export.folder / "manifest.json").read_text())
    content["files"][data.name] = file_entry(data)
    (export.folder / "manifest.json").write_text(json.dumps(content))
    assert export.admit(trust=True).content == ENGINE
    data.write_bytes(b"weightz")
    assert "model.onnx.data', where engine" in export.refusal(trust=True)


def test_a_whole_engine_does_not_need_the_graph(export: Export) -> None:
    (export.folder / "model.onnx").unlink()
    assert export.admit().content == ENGINE


# --- the record ---


@pytest.mark.parametrize("name", [*sorted(RECORD.keys() - {"platform", "precision"}), "onnx_sha256"])
def test_a_record_that_lacks_something_is_refused(tmp_path: Path, name: str) -> None:
    export = write_export(tmp_path / "e")
    record = {k: v for k, v in export.record.items() if k != name}
    with pytest.raises(FasterViTError, match=rf"the record of engine .* lacks a valid '{name}'"):
        admit(export.folder, export.manifest, record, trust=True, machine=L4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file": "../model.trt-sm89.engine"}, "names no file that the manifest lists"),
        ({"file": "manifest.json"}, "names no file that the manifest lists"),
        ({"file": ""}, "names no file that the manifest lists"),
        ({"file": "a\x1b[2Jb"}, "lacks a valid 'file'"),
        ({"runtime": "openvino"}, "names a runtime, version or GPU that this version does not know"),
        ({"hardware_compatibility": "hopper+"}, "names a runtime, version or GPU that this version does not know"),
        ({"version": "eleven"}, "names a runtime, version or GPU that this version does not know"),
        ({"compute_capability": "89"}, "names a runtime, version or GPU that this version does not know"),
        ({"profiles": []}, "has no valid profiles"),
        ({"profiles": [[1, 8]]}, "has no valid profiles"),
        ({"profiles": [[8, 1, 32]]}, "has no valid profiles"),
        ({"profiles": [["1", 8, 32]]}, "has no valid profiles"),
        ({"stripped": 0}, "lacks a valid 'stripped'"),
        ({"builder_schema": BUILDER_SCHEMA + 1}, "was written by a newer fastervit-trt (schema"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    export = write_export(tmp_path / "e")
    export.change(**change)
    message = export.refusal(trust=True)
    assert reason in message and "\x1b" not in message and "fastervit-engine build" in message


def test_the_rebuild_command_survives_a_shell(tmp_path: Path) -> None:
    command = rebuild_command(tmp_path / "it's; rm -rf x", RECORD)
    assert shlex.split(command) == ["fastervit-engine", "build", f"{tmp_path}/it's; rm -rf x", "--runtime", "tensorrt"]


# --- all of it ---


def test_verify_lists_every_problem_of_every_engine(tmp_path: Path, keys: Path) -> None:
    export = write_export(tmp_path / "e")
    rtx_record = {**RECORD, "onnx_sha256": "0" * 64, **RTX}
    (export.folder / RTX["file"]).write_bytes(ENGINE)
    content = json.loads((export.folder / "manifest.json").read_text())
    content["engines"].append(rtx_record)
    content["engines"].append({"file": "x", "runtime": "tensorrt"})
    content["files"][RTX["file"]] = file_entry(export.folder / RTX["file"])
    (export.folder / "manifest.json").write_text(json.dumps(content))

    (trt, _, _) = check_engines(export.folder, machine=L4)
    assert (trt.file, trt.runtime, trt.problems, trt.warnings) == (RECORD["file"], "tensorrt", (), ())
    assert trt.verdict is not None and trt.verdict.signed is Signed.OWN

    export.engine.write_bytes(b"evil" + ENGINE[4:])
    other = dataclasses.replace(L4, version="10.3.0", capability="7.5")
    (trt, _, damaged) = check_engines(export.folder, machine=other)
    assert [next(w for w in ("version", "capability", "describes") if w in p) for p in trt.problems] == [
        "version",
        "capability",
        "describes",
    ]
    assert len(damaged.problems) == 1 and "lacks a valid 'version'" in damaged.problems[0] and damaged.verdict is None

    (_, rtx, _) = check_engines(export.folder, machine=RTX_4090)
    assert len(rtx.problems) == 1 and "is not signed" in rtx.problems[0]
    (_, rtx, _) = check_engines(export.folder, machine=RTX_4090, trust=True)
    assert rtx.problems == ()
    (export.folder / RTX["file"]).unlink()
    (_, rtx, _) = check_engines(export.folder, machine=RTX_4090, trust=True)
    assert len(rtx.problems) == 1 and "is missing" in rtx.problems[0]
