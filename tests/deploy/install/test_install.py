"""Bundles installed for real: unpacked, run by ONNX Runtime or built by TensorRT-RTX, verified, with a receipt."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastervit_trt.artifacts import Manifest, sha256_file
from fastervit_trt.deploy.bundle.manifest import BUNDLE_FILE
from fastervit_trt.deploy.bundle.opened import opened_bundle, unpack_bundle
from fastervit_trt.deploy.install.install import verify_installed
from fastervit_trt.deploy.install.proof import prove
from fastervit_trt.deploy.install.provision import BuildWish
from fastervit_trt.deploy.install.receipt import Receipt
from fastervit_trt.deploy.targets.here import Here
from fastervit_trt.engines.keys import Signed, public_key_line, trust_key
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.errors import FasterViTError
from tests.deploy.bundles import flip_weight, read_tree, signed_again
from tests.deploy.install.conftest import SECONDS, Install
from tests.engines.builds import builds

Packed = Callable[[str, str], Path]


def verified(folder: Path, *, trust: bool = False) -> Any:
    return verify_installed(folder, trust=trust, seconds=SECONDS, step=lambda text: nullcontext())


def test_a_bundle_runs_where_it_is_installed(packed: Packed, installed: Install, tmp_path: Path) -> None:
    done = installed(packed("fp32", "cpu"))
    folder, receipt = tmp_path / "deployed", done.receipt
    assert Receipt.read(folder) == Receipt(**json.loads(json.dumps(receipt, default=vars)))
    assert (receipt.target, receipt.rehearsal, receipt.engine) == ("cpu", [], None)
    assert receipt.bundle["name"] == "faster_vit_digits_s-fp32-cpu"
    assert receipt.bundle["signer"]["signed"] == "own key"
    assert receipt.bundle["sha256"] == sha256_file(folder / "origin" / BUNDLE_FILE)
    assert receipt.machine["platform"] == Here.detect().platform
    arrival = receipt.arrival
    assert (arrival["backend"], arrival["file"]) == ("ort-cpu", "model.onnx")
    assert arrival["golden"]["share_of_budget"] <= 1
    assert arrival["precision"]["state"] == "proven"
    assert arrival["smoke"]["batch"] == 4
    with opened_bundle(folder) as opened:
        assert opened.bundle.manifest.files["receipt.json"]["role"] == "receipt"
    assert verified(folder).golden.passed
    sums = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True
    )
    assert sums.returncode == 0, sums.stdout
    with Engine.load(folder / "export") as engine:
        assert engine(np.zeros((1, 3, 224, 224), np.float32))[0].shape == (1, 10)


def test_a_flipped_weight_does_not_arrive(packed: Packed, installed: Install, tmp_path: Path) -> None:
    folder = tmp_path / "flipped"
    unpack_bundle(packed("fp32", "cpu"), folder)
    flip_weight(folder / "export/model.onnx")
    with pytest.raises(FasterViTError, match=r"export/model\.onnx"):  # its hash
        installed(folder)
    signed_again(folder)  # by somebody who is trusted: hash and signature are right
    with pytest.raises(FasterViTError, match=r"does not compute here what the model computes: worst point: logits\["):
        installed(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flipped"], "nothing half-installed"


@pytest.mark.parametrize("bit", [6, 12, 14])
def test_a_bit_of_a_float16_weight(packed: Packed, installed: Install, tmp_path: Path, bit: int) -> None:
    """One bit of one weight, from a sixteenth of it in the mantissa to the exponent."""
    folder = tmp_path / "flipped"
    unpack_bundle(packed("fp16", "cpu"), folder)

    def flip(value: np.ndarray) -> np.ndarray:
        assert value.dtype == np.float16
        return (value.view(np.uint16) ^ np.uint16(1 << bit)).view(np.float16)

    flip_weight(folder / "export/model.onnx", flip)
    signed_again(folder)
    with pytest.raises(FasterViTError, match="does not compute here"):
        installed(folder)


def test_a_deployment_that_changed_since_is_found(packed: Packed, installed: Install, tmp_path: Path) -> None:
    installed(packed("fp32", "cpu"))
    folder = tmp_path / "deployed"
    shutil.copytree(folder, tmp_path / "copy")
    flip_weight(tmp_path / "copy/export/model.onnx")
    with pytest.raises(FasterViTError, match=r"model\.onnx"):
        verified(tmp_path / "copy")
    signed_again(tmp_path / "copy")
    with pytest.raises(FasterViTError, match="does not compute here"):
        verified(tmp_path / "copy")
    receipt = json.loads((folder / "receipt.json").read_text())
    receipt["arrival"]["smoke"]["throughput_img_per_s"] = 1e6
    (folder / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(FasterViTError, match=r"receipt\.json"):
        verified(folder)


def test_another_machines_key_signs_what_is_installed_there(
    packed: Packed, installed: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, packer = packed("fp32", "cpu"), public_key_line()
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "target-keys"))
    with pytest.raises(FasterViTError, match="fastervit-deploy trust"):
        installed(bundle)
    assert not (tmp_path / "deployed").exists()
    trust_key(packer)
    done = installed(bundle)
    assert done.receipt.bundle["signer"]["signed"] == "trusted key"
    with opened_bundle(tmp_path / "deployed") as opened:
        assert opened.verdict.signed is Signed.OWN
    monkeypatch.setenv("FASTERVIT_TRT_KEYS", str(tmp_path / "others-keys"))
    with pytest.raises(FasterViTError, match="fastervit-deploy trust"):
        verified(tmp_path / "deployed")
    assert verified(tmp_path / "deployed", trust=True).golden.passed


def test_a_machine_that_is_not_the_target(packed: Packed, installed: Install, tmp_path: Path) -> None:
    bundle = packed("fp16", "jetson-orin-jp6")
    with pytest.raises(FasterViTError, match=r"not Jetson Orin, JetPack 6: .*linux-aarch64, this is linux.*--rehearse"):
        installed(bundle)
    assert not (tmp_path / "deployed").exists()
    done = installed(bundle, rehearse=True)
    assert done.receipt.engine is None
    assert any("no engine was run" in reason for reason in done.receipt.rehearsal)
    assert any("linux-aarch64" in reason for reason in done.receipt.rehearsal)
    assert done.arrival.backend == "ort-cpu"
    assert done.arrival.golden.passed


@builds
def test_an_rtx_engine_is_built_ahead_of_time_in_a_rehearsal(
    packed: Packed, installed: Install, tmp_path: Path
) -> None:
    done = installed(packed("fp16", "rtx-50"), rehearse=True)
    engine = done.receipt.engine
    assert engine is not None
    assert (engine["file"], engine["compute_capability"]) == ("model.rtx-sm120.engine", "12.0")
    assert engine["origin"] in ("built", "cache")
    assert (tmp_path / "deployed/export/model.rtx-sm120.engine").is_file()
    assert done.receipt.memory is not None
    assert done.receipt.memory["needed_host"] >= 400
    assert done.arrival.file == "model.onnx"  # that, and not the engine, is what ran
    assert any("no engine was run" in reason for reason in done.receipt.rehearsal)
    assert verified(tmp_path / "deployed").golden.passed


@builds
def test_an_engine_that_came_along_is_not_built_again(packed: Packed, installed: Install) -> None:
    done = installed(packed("fp16", "rtx-40"), rehearse=True)
    assert done.receipt.engine is not None
    assert done.receipt.engine["origin"] == "bundle"
    again = installed(
        packed("fp16", "rtx-40"), rehearse=True, overwrite=True, build=BuildWish(rebuild=True, workspace_mib=64)
    )
    assert again.receipt.engine is not None
    assert again.receipt.engine["origin"] in ("built", "cache")
    assert again.receipt.engine["options"] == {"workspace_mib": 64}


def test_too_slow_is_not_arrived(packed: Packed, installed: Install, tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match=r"runs [\d.]+ images/s here, 1e\+09 were asked for; fastervit"):
        installed(packed("fp32", "cpu"), least_throughput=1e9)
    assert not (tmp_path / "deployed").exists()


def test_a_deployment_is_a_bundle_again(packed: Packed, installed: Install, tmp_path: Path) -> None:
    first = installed(packed("fp32", "cpu"))
    origin = read_tree(tmp_path / "deployed/origin")
    again = installed(tmp_path / "deployed", output=tmp_path / "second")
    assert again.receipt.bundle["signer"]["signed"] == "own key"
    assert read_tree(tmp_path / "second/origin") == origin
    assert again.receipt.bundle["sha256"] == sha256_file(first.folder / BUNDLE_FILE)


def test_an_earlier_deployment_stays_until_the_new_one_has_proved_itself(
    packed: Packed, installed: Install, tmp_path: Path
) -> None:
    installed(packed("fp32", "cpu"))
    before = read_tree(tmp_path / "deployed")
    with pytest.raises(FasterViTError, match="already exists"):
        installed(packed("fp16", "cpu"))
    with pytest.raises(FasterViTError, match="were asked for"):
        installed(packed("fp16", "cpu"), overwrite=True, least_throughput=1e9)
    assert read_tree(tmp_path / "deployed") == before
    assert installed(packed("fp16", "cpu"), overwrite=True).receipt.bundle["name"].endswith("fp16-cpu")


def test_a_receipt_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match="is not installed"):
        Receipt.read(tmp_path)
    for text, said in (("{", "is damaged"), ('{"schema": 9}', "newer version"), ('{"schema": 1}', "is damaged")):
        (tmp_path / "receipt.json").write_text(text)
        with pytest.raises(FasterViTError, match=said):
            Receipt.read(tmp_path)


def test_precision_is_what_the_session_says(exports: Path) -> None:
    fp32 = prove(exports / "fp32", Manifest.read(exports / "fp32"), "model.onnx")
    assert fp32.state == "proven"
    assert set(fp32.products) == {"fp32"}
    fp16 = prove(exports / "fp16", Manifest.read(exports / "fp16"), "model.onnx")
    assert fp16.state == "emulated"  # its CPU provider computes them in float32
    assert set(fp16.products) == {"fp32"}
    manifest = Manifest.read(exports / "fp32")
    claimed = {"type": "int8-cpu", "base": "fp32", "blocks": ["stages.0.blocks.0.conv1"]}
    nothing_in_8_bits = replace(manifest, graph={**manifest.graph, "quantisation": claimed})
    assert prove(exports / "fp32", nothing_in_8_bits, "model.onnx").state == "emulated"


@builds
def test_an_engines_precision_is_what_its_audit_says(exports: Path) -> None:
    manifest = Manifest.read(exports / "fp16")
    (record,) = manifest.engines
    proof = prove(exports / "fp16", manifest, record["file"])
    assert proof.state == "proven"
    assert max(proof.products, key=lambda kind: proof.products[kind]) == "fp16"
    doubted = replace(manifest, engines=[{**record, "audit": {**record["audit"], "proven": False}}])
    assert prove(exports / "fp16", doubted, record["file"]).state == "not proven"
