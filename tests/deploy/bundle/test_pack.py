"""Bundles packed from real exports: what is in them, for which target, and that equal ones are equal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fastervit_trt.artifacts import Manifest, file_entry
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE, EXPORT_FOLDER, SIGNATURE_FILE, Bundle, BundleManifest
from fastervit_trt.deploy.bundle.opened import opened_bundle, unpack_bundle
from fastervit_trt.deploy.bundle.pack import PackRequest, pack, sign_folder
from fastervit_trt.deploy.bundle.suitability import portable_engines
from fastervit_trt.deploy.targets.table import TARGETS, get_target
from fastervit_trt.engines.keys import Signed, public_key_line, trust_key
from fastervit_trt.errors import FasterViTError
from fastervit_trt.plugins import library
from tests.deploy.bundles import flip_weight, read_tree, signed_again
from tests.deploy.conftest import LABELS
from tests.deploy.targets.machines import container


def packed(exports: Path, output: Path, target: str = "cpu", precision: str = "fp32", **options: object) -> Path:
    request = PackRequest(exports / precision, get_target(target), output)
    pack(replace(request, **options))  # type: ignore[arg-type]
    return output


def test_everything_a_target_needs_is_in_the_bundle(exports: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    folder = packed(exports, tmp_path / "bundle", labels=labels)
    with opened_bundle(folder) as opened:
        bundle = opened.bundle
        assert opened.verdict.signed is Signed.OWN
    files = bundle.manifest.files
    assert set(read_tree(folder)) == {*files, BUNDLE_FILE, SIGNATURE_FILE}
    assert {entry["role"] for entry in files.values()} == {
        *("graph", "golden", "manifest", "labels", "preprocessing", "licence", "document")
    }
    assert bundle.labels == tuple(LABELS)
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    assert preprocessing["interpolation"] == "bicubic"
    assert preprocessing["input"] == bundle.export.input
    assert bundle.manifest.target["name"] == "cpu"
    assert bundle.manifest.name == "faster_vit_digits_s-fp32-cpu"
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": OK") == len(files) - 1
    assert "fastervit-trt[cpu]" in (folder / "README.txt").read_text()


def test_equal_bundles_are_equal_byte_for_byte(exports: Path, tmp_path: Path) -> None:
    first = packed(exports, tmp_path / "a.tar.zst")
    copy = tmp_path / "exports" / "fp32"
    shutil.copytree(exports / "fp32", copy)
    for number, path in enumerate(sorted(copy.iterdir(), reverse=True)):
        os.utime(path, (number, number))
        path.chmod(0o600)
    before = os.umask(0o077)
    try:
        second = packed(tmp_path / "exports", tmp_path / "elsewhere" / "b.tar.zst")
    finally:
        os.umask(before)
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    unpack_bundle(first, tmp_path / "unpacked")
    assert read_tree(tmp_path / "unpacked") == read_tree(packed(exports, tmp_path / "folder"))


def test_a_flat_graph_where_the_target_needs_one(exports: Path, tmp_path: Path) -> None:
    source = exports / "fp16"
    assert onnx.load(source / "model.onnx").functions
    folder = packed(exports, tmp_path / "orin", "jetson-orin-jp6", "fp16")
    graph = folder / EXPORT_FOLDER / "model.onnx"
    model = onnx.load(graph)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    manifest = Manifest.read(folder / EXPORT_FOLDER)
    assert manifest.graph["fusion"]["nodes"] == len(model.graph.node)
    assert manifest.files["model.onnx"] == file_entry(graph)
    assert manifest.engines == []
    images = np.load(folder / EXPORT_FOLDER / "golden-images.npy")
    before, after = (
        onnxruntime.InferenceSession(path).run(None, {"images": images})[0] for path in (source / "model.onnx", graph)
    )
    np.testing.assert_allclose(after, before, atol=2e-3)
    assert onnx.load(source / "model.onnx").functions, "the export itself stays as it was"


def test_engines_go_where_they_run(exports: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(exports / "fp16")
    (engine,) = manifest.engines or pytest.skip("TensorRT-RTX is not installed")
    request = PackRequest(exports / "fp16", get_target("rtx-40"), tmp_path / "ada")
    done = pack(request)
    assert done.left_out == {}
    assert (tmp_path / "ada" / EXPORT_FOLDER / engine["file"]).is_file()
    assert done.manifest.files[f"{EXPORT_FOLDER}/{engine['file']}"]["role"] == "engine"
    assert done.manifest.files[f"{EXPORT_FOLDER}/model.rtx-sm89.audit.json"]["role"] == "audit"
    for target, reason in (("rtx-50", "for compute capability 8.9, rtx-50 has 12.0"), ("l4", "l4 runs TensorRT")):
        other = pack(PackRequest(exports / "fp16", get_target(target), tmp_path / target))
        assert other.left_out == {engine["file"]: reason}
        inside = Manifest.read(tmp_path / target / EXPORT_FOLDER)
        assert (inside.engines, inside.engines_skipped) == ([], f"none runs on {target}")
        assert not list((tmp_path / target / EXPORT_FOLDER).glob("*.engine"))
        assert not list((tmp_path / target / EXPORT_FOLDER).glob("*.audit.json"))


L4_ENGINE = {
    "file": "model.trt-sm89.engine",
    "runtime": "tensorrt",
    "version": "10.16.1.11",
    "compute_capability": "8.9",
    "gpu": "NVIDIA L4",
    "platform": "linux-x86_64",
    "hardware_compatibility": "none",
    "plugins": None,
}


@pytest.mark.parametrize(
    ("target", "change", "reason"),
    [
        ("l4", {}, None),
        ("l40s", {}, "timed on NVIDIA L4, which is not l40s"),
        ("l40s", {"hardware_compatibility": "ampere+"}, None),
        ("h100", {"hardware_compatibility": "ampere+"}, None),
        ("h100", {}, "for compute capability 8.9, h100 has 9.0"),
        ("l4", {"platform": "windows-x86_64"}, "built on windows-x86_64, l4 is linux-x86_64"),
        ("l4", {"version": "9.3.0"}, "built with 9.3.0, l4 has 10.3 to before 12"),
        ("l4", {"plugins": {"sha256": "ab"}}, None),
        ("l4", {"plugins": {"sha256": "cd"}}, "the plugin library that it needs does not go along"),
        ("rtx-40", {}, "rtx-40 runs TensorRT-RTX"),
    ],
)
def test_which_engines_are_portable(exports: Path, target: str, change: dict[str, object], reason: str | None) -> None:
    manifest = replace(Manifest.read(exports / "fp16"), engines=[{**L4_ENGINE, **change}])
    found = portable_engines(manifest, get_target(target), flattened=False, library="ab")
    assert found.left_out.get("model.trt-sm89.engine") == reason
    assert len(found.engines) == (reason is None)
    assert portable_engines(manifest, get_target(target), flattened=True, library="ab").engines == ()


def test_plugins_go_as_sources_or_as_the_library_of_that_processor(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x86 = tmp_path / "libfastervit_plugins.so"
    x86.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + container((2, 89), (2, 120)))
    monkeypatch.setenv(library.VARIABLE, str(x86))
    there = packed(exports, tmp_path / "l4", "l4", "fp16")
    assert (there / "plugins/libfastervit_plugins.so").read_bytes() == x86.read_bytes()
    assert not (there / "plugins/source").exists()
    thor = packed(exports, tmp_path / "thor", "jetson-thor", "fp16")
    assert (thor / "plugins/source/CMakeLists.txt").is_file()
    read_me = (thor / "README.txt").read_text()
    assert "cmake -S plugins/source" in read_me
    budget = Manifest.read(thor / EXPORT_FOLDER).verification["budget"]
    assert f" export/golden-images.npy --golden export \\\n        --tolerance {budget:.6g}\n" in read_me
    assert not list(thor.rglob("*.so"))
    with opened_bundle(thor) as opened:
        assert opened.bundle.manifest.plugin is not None
        assert opened.bundle.manifest.plugin["kind"] == "sources"
    with pytest.raises(FasterViTError, match="library for linux-x86_64, jetson-thor is linux-aarch64"):
        packed(exports, tmp_path / "no", "jetson-thor", "fp16", plugins="library")
    hopper = packed(exports, tmp_path / "h100", "h100", "fp16")  # for which the library holds no code
    assert (hopper / "plugins/source").is_dir() and not list(hopper.rglob("*.so"))
    with pytest.raises(FasterViTError, match=r"library for sm89, sm120, h100 has compute capability 9\.0"):
        packed(exports, tmp_path / "no", "h100", "fp16", plugins="library")
    assert not (packed(exports, tmp_path / "none", "l4", "fp16", plugins="none") / "plugins").exists()
    with pytest.raises(FasterViTError, match="takes no plugins"):
        packed(exports, tmp_path / "no", "rtx-40", "fp16", plugins="library")
    assert not (tmp_path / "no").exists()


def test_what_a_target_cannot_run_is_refused_before_anything_is_written(exports: Path, tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match="is in bf16, which CPU lacks; export the model with --precision fp32 or"):
        packed(exports, tmp_path / "out.tar.zst", "cpu", "bf16")
    manifest = Manifest.read(exports / "fp32")
    old = tmp_path / "old"
    shutil.copytree(exports / "fp32", old / "fp32")
    replace(manifest, golden=None).write(old / "fp32")
    with pytest.raises(FasterViTError, match=r"has no golden set.*export the model again"):
        packed(old, tmp_path / "out.tar.zst")
    quantised = {"type": "int8-cpu", "base": "fp32", "form": "ONNX Runtime's CPU provider", "blocks": []}
    replace(manifest, graph={**manifest.graph, "quantisation": quantised}).write(old / "fp32")
    with pytest.raises(FasterViTError, match="made for ONNX Runtime's CPU provider alone, l4 runs TensorRT"):
        packed(old, tmp_path / "out.tar.zst", "l4")
    with pytest.raises(FasterViTError, match="h2000"):
        get_target("h2000")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]


def test_a_graph_that_left_its_golden_set_is_not_packed(exports: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(exports / "fp32", wrong / "fp32")
    flip_weight(wrong / "fp32/model.onnx")
    with pytest.raises(FasterViTError, match="not the file the manifest describes"):
        packed(wrong, tmp_path / "out")
    manifest = Manifest.read(wrong / "fp32")
    files = {**manifest.files, "model.onnx": file_entry(wrong / "fp32/model.onnx")}
    replace(manifest, files=files).write(wrong / "fp32")
    with pytest.raises(FasterViTError, match=r"does not compute what its golden set says, worst point: logits\[\d\]"):
        packed(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"), [("a\nb\n", "has 2 lines, faster_vit_digits_s 10 classes"), ("\n" * 10, "some of them empty")]
)
def test_labels_must_be_as_many_as_classes(exports: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(FasterViTError, match=said):
        packed(exports, tmp_path / "out", labels=tmp_path / "labels")
    with pytest.raises(FasterViTError, match="cannot be read"):
        packed(exports, tmp_path / "out", labels=tmp_path / "none")
    assert not (tmp_path / "out").exists()


def test_the_notice_of_nvidias_weights_goes_along(exports: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(exports / "fp32", theirs / "fp32")
    manifest = Manifest.read(theirs / "fp32")
    weights = {"kind": "official", "path": "fastervit_0_224_1k.pth.tar", "sha256": "ab"}
    replace(manifest, weights=weights, notices=["NVIDIA publishes"]).write(theirs / "fp32")
    folder = packed(theirs, tmp_path / "out")
    with opened_bundle(folder) as opened:
        assert opened.bundle.manifest.notices == ["NVIDIA publishes"]
        assert any("License-NC" in licence["name"] for licence in opened.bundle.manifest.licences)
    text = (folder / "LICENSES/NVIDIA-FasterViT-weights.txt").read_text()
    assert "not\ncommercially" in text or "not commercially" in text
    assert "fastervit_0_224_1k.pth.tar" in text
    own = packed(exports, tmp_path / "own")
    assert not (own / "LICENSES/NVIDIA-FasterViT-weights.txt").exists()
    assert (own / "LICENSES/LICENSE").read_text().strip().startswith("Apache License")


def test_an_output_that_exists_stays(exports: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.zst"
    archive.write_bytes(b"precious")
    with pytest.raises(FasterViTError, match="already exists"):
        packed(exports, archive)
    assert archive.read_bytes() == b"precious"
    packed(exports, archive, overwrite=True)
    with opened_bundle(archive) as opened:
        assert opened.bundle.manifest.name == "faster_vit_digits_s-fp32-cpu"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(FasterViTError, match=r"holds no bundle\.json, so it is not replaced"):
        packed(exports, tmp_path / "mine", overwrite=True)


def test_every_target_takes_a_bundle(exports: Path, tmp_path: Path) -> None:
    for name in TARGETS:
        folder = packed(exports, tmp_path / name, name, "fp32")
        with opened_bundle(folder) as opened:
            assert opened.bundle.manifest.target == json.loads(json.dumps(TARGETS[name].record()))
        shutil.rmtree(folder)


class TestOpened:
    """What stands between a path and a bundle."""

    @pytest.fixture
    def folder(self, exports: Path, tmp_path: Path) -> Path:
        return packed(exports, tmp_path / "bundle")

    def test_a_changed_byte_is_found_wherever_it_is(self, folder: Path, tmp_path: Path) -> None:
        for name in (
            "export/model.onnx",
            "export/golden-logits.npy",
            "preprocessing.json",
            "bundle.json",
            "bundle.sig",
        ):
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            content = bytearray((copy / name).read_bytes())
            content[len(content) // 2] ^= 1
            (copy / name).write_bytes(content)
            with pytest.raises(FasterViTError), opened_bundle(copy, trust=True):
                pytest.fail(f"{name} was taken")
            shutil.rmtree(copy)

    def test_an_export_that_says_otherwise_than_the_bundle_is_refused(self, folder: Path) -> None:
        export = folder / EXPORT_FOLDER
        manifest = Manifest.read(export)
        files = {**manifest.files, "model.onnx": {**manifest.files["model.onnx"], "sha256": "0" * 64}}
        replace(manifest, files=files).write(export)
        bundle = json.loads((folder / BUNDLE_FILE).read_text())
        bundle["files"]["export/manifest.json"].update(file_entry(export / "manifest.json"))
        sign_folder(folder, BundleManifest(**bundle))
        with pytest.raises(FasterViTError, match="is not the file that the export's manifest describes"):
            opened_bundle(folder).__enter__()

    def test_another_signer_has_to_be_trusted(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        packer = public_key_line()
        monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "target-keys"))
        with pytest.raises(FasterViTError, match="fastervit-deploy trust"):
            opened_bundle(folder).__enter__()
        with opened_bundle(folder, trust=True) as opened:
            assert opened.verdict.signed is Signed.UNKNOWN
        trust_key(packer)
        with opened_bundle(folder) as opened:
            assert opened.verdict.signed is Signed.TRUSTED
        (folder / SIGNATURE_FILE).unlink()
        with pytest.raises(FasterViTError, match="is not signed"):
            opened_bundle(folder).__enter__()

    def test_what_is_no_bundle_says_so(self, exports: Path, folder: Path, tmp_path: Path) -> None:
        for path, said in (
            (tmp_path / "none", "there is no bundle"),
            (exports / "fp32", r"it has no bundle\.json"),
            (folder / "README.txt", "neither a folder nor a .tar.zst"),
        ):
            with pytest.raises(FasterViTError, match=said), opened_bundle(path):
                pass
        newer = json.loads((folder / BUNDLE_FILE).read_text())
        newer["schema"] = 99
        (folder / BUNDLE_FILE).write_text(json.dumps(newer))
        (folder / SIGNATURE_FILE).unlink()
        with pytest.raises(FasterViTError, match="has schema 99, this version reads up to 1"):
            opened_bundle(folder, trust=True).__enter__()

    def test_unpacking_leaves_nothing_of_a_refused_bundle(self, folder: Path, tmp_path: Path) -> None:
        (folder / "export/model.onnx").write_bytes(b"other")
        with pytest.raises(FasterViTError):
            unpack_bundle(folder, tmp_path / "to")
        assert not (tmp_path / "to").exists()

    def test_a_folder_that_is_there_is_not_touched(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/file").write_text("precious")
        for path in (folder, tmp_path / "none.tar.zst", folder / "README.txt"):
            with pytest.raises(FasterViTError, match="already exists"):
                unpack_bundle(path, tmp_path / "mine")
        assert read_tree(tmp_path / "mine") == {"file": b"precious"}

    def test_reading_is_from_the_copy_that_was_checked(self, folder: Path, tmp_path: Path) -> None:
        opened = unpack_bundle(folder, tmp_path / "to")
        assert isinstance(opened.bundle, Bundle)
        assert opened.bundle.folder == tmp_path / "to"
        signed_again(tmp_path / "to")
        with opened_bundle(tmp_path / "to"):
            pass
