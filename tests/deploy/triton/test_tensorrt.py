"""Repositories for TensorRT engines: configuration, plugins, images, refusals; the engines are a few bytes here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.triton.images import RELEASES, release_with
from fastervit_trt.deploy.triton.repository import WrittenRepository, write_repository
from fastervit_trt.errors import FasterViTError
from tests.deploy.triton.load_rules import problems, read_config
from tests.deploy.triton.repositories import engine_record, plugin_record, with_engines

NAME = "faster_vit_digits_s"
LIBRARY = b"\x7fELF a plugin library"


def config_of(written: WrittenRepository) -> Any:
    return read_config(written.models / NAME / "config.pbtxt")


def test_an_engine_goes_before_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    written = write_repository(with_engines(bundle, tmp_path / "bundle", engine_record()), tmp_path / "served")
    assert problems(written.models) == []
    assert written.backend == "tensorrt"
    config, version = config_of(written), written.models / NAME / "1"
    assert [path.name for path in version.iterdir()] == ["model.plan"]
    assert (version / "model.plan").read_bytes() == b"engine model.trt-sm90.engine"
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert config.max_batch_size == 8
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]  # what the profile was tuned for
    assert [sample.batch_size for sample in config.model_warmup] == [1, 4, 8]
    assert config.optimization.cuda.graphs
    assert not config.instance_group[0].profile
    assert not any("plugins" in option for option in written.command)
    assert not any("version-compatible" in option for option in written.command)


def test_profiles_are_in_one_instance_and_cover_every_batch(bundle: Bundle, tmp_path: Path) -> None:
    record = engine_record(profiles=[[1, 1, 4], [5, 16, 32]])
    written = write_repository(with_engines(bundle, tmp_path / "bundle", record), tmp_path / "served")
    assert problems(written.models) == []
    config = config_of(written)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 4, 16, 32]
    fewer = write_repository(with_engines(bundle, tmp_path / "b2", record), tmp_path / "fewer", max_batch=12)
    assert list(config_of(fewer).dynamic_batching.preferred_batch_size) == [1, 4, 12]


@pytest.mark.parametrize(
    ("profiles", "missing"), [([[4, 8, 16]], "1 to 3"), ([[1, 1, 1], [3, 4, 8]], "2,"), ([[8, 8, 8]], "1 to 7")]
)
def test_a_batch_without_profile_is_refused(
    bundle: Bundle, tmp_path: Path, profiles: list[list[int]], missing: str
) -> None:
    served = with_engines(bundle, tmp_path / "bundle", engine_record(profiles=profiles))
    with pytest.raises(FasterViTError, match=f"no profile for batches {missing}"):
        write_repository(served, tmp_path / "served")


def test_engines_of_several_gpus_are_told_apart_by_capability(bundle: Bundle, tmp_path: Path) -> None:
    records = [engine_record(), engine_record("model.trt-sm80.engine", compute_capability="8.0", gpu="NVIDIA A100")]
    served = with_engines(bundle, tmp_path / "bundle", *records)
    written = write_repository(served, tmp_path / "served")
    assert problems(written.models) == []
    config = config_of(written)
    assert dict(config.cc_model_filenames) == {"9.0": "sm90.plan", "8.0": "sm80.plan"}
    for capability, file in config.cc_model_filenames.items():
        content = (written.models / NAME / "1" / file).read_bytes()
        assert content == f"engine model.trt-sm{capability.replace('.', '')}.engine".encode()
    one = write_repository(served, tmp_path / "one", engine="model.trt-sm80.engine")
    assert (one.models / NAME / "1" / "model.plan").read_bytes() == b"engine model.trt-sm80.engine"


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([engine_record(stripped=True)], "has no weights, which Triton does not refit"),
        ([engine_record(), engine_record("b.engine")], "cannot tell apart (model.trt-sm90.engine, b.engine)"),
        (
            [engine_record(), engine_record("b.engine", compute_capability="8.0", version="10.3.0.30")],
            "name one with --engine",
        ),
        ([engine_record(plugins=plugin_record(LIBRARY))], "needs the plugin library with sha256"),
    ],
)
def test_engines_that_triton_could_not_run(
    bundle: Bundle, tmp_path: Path, records: list[dict[str, Any]], reason: str
) -> None:
    served = with_engines(bundle, tmp_path / "bundle", *records)
    with pytest.raises(FasterViTError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        write_repository(served, tmp_path / "served")
    assert not (tmp_path / "served").exists()


def test_an_engine_that_was_swapped_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    served = with_engines(bundle, tmp_path / "bundle", engine_record())
    (served.export_folder / "model.trt-sm90.engine").write_bytes(b"another")
    with pytest.raises(FasterViTError, match="is not the file that the manifest"):
        write_repository(served, tmp_path / "served")


def test_the_very_plugin_library_lies_beside_and_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    served = with_engines(bundle, tmp_path / "bundle", engine_record(plugins=plugin_record(LIBRARY)))
    (served.folder / "plugins").mkdir()
    library = served.folder / "plugins" / "libfastervit_plugins.so"
    library.write_bytes(b"\x7fELF another version")
    with pytest.raises(FasterViTError, match="needs the plugin library with sha256"):
        write_repository(served, tmp_path / "served")
    library.write_bytes(LIBRARY)
    written = write_repository(served, tmp_path / "served")
    assert problems(written.models) == []  # in the repository it would be a model without configuration
    copied = written.folder / "plugins" / "libfastervit_plugins.so"
    assert copied.read_bytes() == LIBRARY
    assert f"--backend-config=tensorrt,plugins={copied}" in written.command
    sums = dict(reversed(line.split("  ")) for line in (copied.parent / "SHA256SUMS").read_text().splitlines())
    assert sums["libfastervit_plugins.so"] == hashlib.sha256(LIBRARY).hexdigest()
    compose = yaml.safe_load((written.folder / "compose.yaml").read_text())
    option = "--backend-config=tensorrt,plugins=/opt/fastervit/plugins/libfastervit_plugins.so"
    assert option in compose["services"]["triton"]["command"]


def test_the_image_has_the_engines_tensorrt(bundle: Bundle, tmp_path: Path) -> None:
    served = with_engines(bundle, tmp_path / "bundle", engine_record(platform="linux-aarch64"))
    written = write_repository(served, tmp_path / "served")
    assert written.image == "nvcr.io/nvidia/tritonserver:26.05-py3"
    compose = yaml.safe_load((written.folder / "compose.yaml").read_text())["services"]["triton"]
    assert compose["build"]["args"]["TRITON_IMAGE"] == f"${{TRITON_IMAGE:-{written.image}}}"
    assert compose["platform"] == "linux/arm64"
    assert f"ARG TRITON_IMAGE={written.image}\n" in (written.folder / "Dockerfile").read_text()
    assert "26.05 holds 10.16.1.11" in (written.folder / "README.txt").read_text()


def test_an_unknown_tensorrt_is_said_and_compose_asks_for_an_image(bundle: Bundle, tmp_path: Path) -> None:
    served = with_engines(bundle, tmp_path / "bundle", engine_record(version="11.9.9.9"))
    written = write_repository(served, tmp_path / "served")
    assert written.image is None
    assert any("no Triton image is known that has TensorRT 11.9.9.9" in notice for notice in written.notices)
    assert "TensorRT 11.9.9.9" in (written.folder / "README.txt").read_text()
    compose = yaml.safe_load((written.folder / "compose.yaml").read_text())["services"]["triton"]
    assert compose["build"]["args"]["TRITON_IMAGE"].startswith("${TRITON_IMAGE:?")  # compose stops where it is unset
    named = write_repository(served, tmp_path / "named", image="registry.example/triton:11.9")
    assert named.image == "registry.example/triton:11.9"
    assert not any("no Triton image" in notice for notice in named.notices)


def test_engines_with_their_own_runtime(bundle: Bundle, tmp_path: Path) -> None:
    record = engine_record(version="10.15.1.29", version_compatible=True)
    written = write_repository(with_engines(bundle, tmp_path / "bundle", record), tmp_path / "served")
    assert "--backend-config=tensorrt,version-compatible=true" in written.command
    assert written.image == "nvcr.io/nvidia/tritonserver:26.05-py3"  # the next that is known
    compose = yaml.safe_load((written.folder / "compose.yaml").read_text())["services"]["triton"]
    assert "--backend-config=tensorrt,version-compatible=true" in compose["command"]


@pytest.mark.parametrize(
    ("version", "compatible", "tag"),
    [
        ("10.16.1.11", False, "26.05"),
        ("10.16.1", False, "26.05"),
        ("10.16.1.12", False, None),
        ("10.16", False, None),  # too little to be sure
        ("10.3.0.30", False, "24.08"),  # the table has three numbers of it
        ("10.13.3.9.post1", False, "25.10"),
        ("10.13.3.9", True, "25.10"),
        ("10.10.0.31", True, "25.10"),
        ("10.17.0.1", True, "26.07"),
        ("11.1.1.0", True, "26.08"),
        ("11.9.0.0", True, None),
        ("10.10.0.31", False, None),
    ],
)
def test_which_release_runs_an_engine(version: str, compatible: bool, tag: str | None) -> None:
    found = release_with(version, version_compatible=compatible)
    assert (None if found is None else found.tag) == tag


def test_releases_are_newest_first_and_have_a_source() -> None:
    assert [release.tag for release in RELEASES] == sorted((r.tag for r in RELEASES), reverse=True)
    assert all(release.source and release.tensorrt.count(".") >= 2 for release in RELEASES)


def test_a_large_batch_raises_the_servers_limit(bundle: Bundle, tmp_path: Path) -> None:
    """128 images are 77 MB, and Triton's HTTP takes 64 MiB unless told; before 25.10 it knows no such option."""
    record = engine_record(profiles=[[1, 64, 128]])
    written = write_repository(with_engines(bundle, tmp_path / "bundle", record), tmp_path / "served")
    (option,) = [option for option in written.command if option.startswith("--http-max-input-size=")]
    assert int(option.split("=")[1]) >= 128 * 3 * 224 * 224 * 4
    compose = yaml.safe_load((written.folder / "compose.yaml").read_text())["services"]["triton"]
    assert option in compose["command"]
    old = with_engines(bundle, tmp_path / "b2", engine_record(profiles=[[1, 64, 128]], version="10.3.0.26"))
    assert not any("max-input-size" in option for option in write_repository(old, tmp_path / "old").command)
