"""``fastervit-deploy`` as a user types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastervit_trt.deploy.targets.table import TARGETS
from tests.conftest import Finished
from tests.deploy.conftest import LABELS

Command = Callable[..., Finished]


@pytest.fixture
def bundle(exports: Path, command: Command, tmp_path: Path) -> Path:
    """An archive of the smallest export in fp32 for a CPU."""
    output = tmp_path / "digits.tar.zst"
    done = command("fastervit-deploy", "pack", exports / "fp32", "--target", "cpu", "--output", output)
    assert done.code == 0, done.err
    return output


def test_targets_are_listed_with_their_sources(command: Command) -> None:
    listed = command("fastervit-deploy", "targets")
    assert listed.code == 0
    for name in TARGETS:
        assert any(line.split()[:1] == [name] for line in listed.out.splitlines()), name
    one = command("fastervit-deploy", "targets", "jetson-orin-jp6")
    assert "flat graph: yes" in one.out
    assert "https://" in one.out
    assert all(fact.source in one.out for fact in TARGETS["jetson-orin-jp6"].facts)
    wrong = command("fastervit-deploy", "targets", "h2000")
    assert wrong.code == 2
    assert "h2000" in wrong.error and "h200" in wrong.error


def test_from_an_export_to_a_verified_installation(
    exports: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("\n".join(LABELS))
    packed = command("fastervit-deploy", "pack", exports / "fp32", "--target", "cpu", "--labels", "labels.txt")
    assert packed.code == 0, packed.err
    assert "signed by " in packed.out and "SHA256:" in packed.out
    checked = command("fastervit-deploy", "verify", "faster_vit_digits_s-fp32-cpu.tar.zst")
    assert checked.code == 0, checked.err
    assert "files as they were signed, own key" in checked.out
    installed = command("fastervit-deploy", "install", "faster_vit_digits_s-fp32-cpu.tar.zst", "--seconds", 0.1)
    assert installed.code == 0, installed.err
    assert "golden outputs: within the budget on 3 images" in installed.out
    assert "images/s" in installed.out
    again = command("fastervit-deploy", "verify", "faster_vit_digits_s-fp32-cpu", "--seconds", 0.1)
    assert again.code == 0, again.err
    assert "golden outputs: within the budget" in again.out
    receipt = json.loads(Path("faster_vit_digits_s-fp32-cpu/receipt.json").read_text())
    assert receipt["target"] == "cpu"
    twice = command("fastervit-deploy", "install", "faster_vit_digits_s-fp32-cpu.tar.zst")
    assert twice.error.startswith("error: output ") and "already exists" in twice.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pack", "{exports}/none", "--target", "cpu"), "is no export"),
        (("pack", "{exports}/fp32", "--target", "toaster"), "toaster"),
        (("pack", "{exports}/fp32", "--target", "cpu", "--plugins", "maybe"), "--plugins 'maybe' is none of"),
        (("pack", "{exports}/bf16", "--target", "cpu"), "which CPU lacks"),
        (("pack", "{exports}/fp32", "--target", "cpu", "--labels", "{exports}/none.txt"), "cannot be read"),
        (("install", "{exports}/fp32"), "is no bundle"),
        (("install", "{tmp}/none.tar.zst"), "there is no bundle"),
        (("install", "{bundle}", "--batch", "8:1"), "batch"),
        (("install", "{bundle}", "--min-throughput", "1e9", "--seconds", "0.1"), "were asked for"),
        (("install", "{bundle}", "--plugins", "maybe"), "--plugins 'maybe'"),
        (("verify", "{bundle}x"), "there is no bundle"),
        (("triton", "{exports}/fp32", "--repository", "{tmp}/models"), "is no bundle"),
        (("serve", "{exports}/fp32"), "is no bundle"),
        (("trust", "no key"), "no public key"),
    ],
)
def test_one_line_and_exit_code_2(
    exports: Path,
    bundle: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [text.format(exports=exports, bundle=bundle, tmp=tmp_path) for text in arguments]
    done = command("fastervit-deploy", *filled)
    assert done.code == 2
    assert said in done.error
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name], "nothing half-written"


def test_keys_are_printed_written_and_trusted(command: Command, tmp_path: Path) -> None:
    shown = command("fastervit-deploy", "key", "--output", tmp_path / "packer.pub")
    assert shown.code == 0
    assert (tmp_path / "packer.pub").read_text().strip() == shown.out.splitlines()[0]
    assert command("fastervit-deploy", "key", "--output", tmp_path / "packer.pub").code == 2
    trusted = command("fastervit-deploy", "trust", tmp_path / "packer.pub")
    assert trusted.out.startswith("trusted: SHA256:")


def test_a_changed_archive_is_refused(bundle: Path, command: Command, tmp_path: Path) -> None:
    content = bytearray(bundle.read_bytes())
    content[len(content) // 2] ^= 0x10
    bundle.write_bytes(content)
    for verb in ("verify", "install", "triton"):
        options = ["--repository", tmp_path / "models"] if verb == "triton" else []
        done = command("fastervit-deploy", verb, bundle, *options)
        assert done.code == 2, verb
        assert "digits.tar.zst" in done.error
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]


def test_doctor_says_what_is_wrong_for_a_target(command: Command) -> None:
    here = command("fastervit-deploy", "doctor", "--target", "cpu")
    assert here.code == 0, here.out + here.err
    if shutil.which("nvidia-smi") is None:
        missing = command("fastervit-deploy", "doctor", "--target", "h100")
        assert missing.code == 2
        assert "h100" in missing.error
        assert "driver" in missing.out


def test_a_repository_for_triton(bundle: Path, command: Command, tmp_path: Path) -> None:
    done = command("fastervit-deploy", "triton", bundle, "--repository", tmp_path / "models")
    assert done.code == 0, done.err
    assert list((tmp_path / "models").rglob("config.pbtxt"))
    assert "tritonserver" in done.out
