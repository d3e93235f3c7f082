"""Accuracy of an artifact is taken on the images it was asked on, beside PyTorch's outputs for the very same ones."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastervit_trt.accuracy import Accuracy
from fastervit_trt.artifacts import Manifest
from fastervit_trt.benchmarks import reference as module
from fastervit_trt.benchmarks.evaluate import Reference, check_dataset, evaluate
from fastervit_trt.benchmarks.reference import reference_outputs
from fastervit_trt.engines.runtime import Engine
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import Preprocessing
from fastervit_trt.models.datasets import LabelledImages, open_dataset
from fastervit_trt.models.digits.data import load_digits_split
from fastervit_trt.models.factory import ModelSpec
from fastervit_trt.models.source import WeightSource, build_model, save_model

IMAGES = 40
RAW = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
SIZE = (32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 held-out digits as files, 4 per class."""
    root = tmp_path_factory.mktemp("digits")
    pictures, labels = load_digits_split("held_out")
    for label in range(10):
        (root / str(label)).mkdir()
        for number in np.flatnonzero(labels == label)[:4]:
            pictures[number].save(root / str(label) / f"{number:04}.png")
    return root


@pytest.fixture
def manifest(exports: Path) -> Manifest:
    return Manifest.read(exports / "fp32")


def greys(folder: Path, count: int) -> LabelledImages:
    """Even pictures 0, 1, … of ``count`` classes, one each."""
    for i in range(count):
        (folder / f"{i:02}").mkdir(parents=True)
        Image.new("L", (8, 8), i).save(folder / f"{i:02}" / "grey.png")
    return open_dataset(str(folder))


def one_hot(images: np.ndarray, classes: int) -> np.ndarray:
    """The class of an image is its grey level."""
    return np.eye(classes, dtype=np.float32)[np.rint(images.mean((1, 2, 3)) * 255).astype(int)]


def test_an_export_is_judged_as_pytorch_would_judge_it(exports: Path, manifest: Manifest, tmp_path: Path) -> None:
    data = open_dataset("digits")
    data = replace(data, images=data.images[:IMAGES], labels=data.labels[:IMAGES])
    done: list[int] = []
    reference = reference_outputs(manifest, data, tmp_path, done.append, threads=1)
    assert done == [32, IMAGES, IMAGES]
    model, _ = build_model(ModelSpec.from_record(manifest.spec), WeightSource.from_record(manifest.weights))
    how = Preprocessing(**manifest.preprocessing)
    images, _ = next(data.batches(IMAGES, how, manifest.resolution))
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(reference.outputs[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    with Engine.load(exports / "fp16", backend="ort-cpu", threads=1) as engine:
        done.clear()
        found = evaluate(engine, data, how, manifest.resolution, 8, reference, done.append)
        logits = engine(images)[0]
    assert done == [8, 16, 24, 32, 40]
    np.testing.assert_array_equal(found.right, logits.argmax(1) == data.labels)
    assert found.accuracy.images == IMAGES
    assert found.right is not None
    assert isinstance(found.accuracy, Accuracy)
    assert found.accuracy.top1 == found.right.mean() > 0.8
    assert found.accuracy.agreement == np.mean(logits.argmax(1) == expected.argmax(1))
    assert found.accuracy.sqnr_db is not None
    assert 40 < found.accuracy.sqnr_db < 120  # fp16 against fp32
    assert (found.accuracy.non_finite, found.unreadable, found.dataset_sha256) == (0, (), data.sha256())


def test_without_a_reference_there_is_no_agreement(tmp_path: Path) -> None:
    data = greys(tmp_path, 12)
    found = evaluate(lambda images: (one_hot(images, 12),), data, RAW, SIZE, 5)
    assert isinstance(found.accuracy, Accuracy)
    assert (found.accuracy.top1, found.accuracy.agreement, found.accuracy.sqnr_db) == (1.0, None, None)


@pytest.mark.parametrize("bad", [0, 5, 11])
def test_an_unreadable_image_shifts_nothing(tmp_path: Path, bad: int) -> None:
    data = greys(tmp_path, 12)
    whole = data.sha256()
    reference = Reference((np.eye(12, dtype=np.float32),), np.ones(12, bool))
    path = data.images[bad]
    assert isinstance(path, Path)
    path.write_bytes(b"")
    done: list[int] = []
    found = evaluate(lambda images: (one_hot(images, 12),), data, RAW, SIZE, 3, reference, done.append)
    assert isinstance(found.accuracy, Accuracy)
    assert found.right is not None
    assert (found.accuracy.images, found.accuracy.top1, found.accuracy.agreement) == (11, 1.0, 1.0)
    assert (found.accuracy.sqnr_db, found.right.tolist()) == (200.0, [True] * 11)
    assert [image.index for image in found.unreadable] == [bad]
    assert done[-1] == 12
    assert found.dataset_sha256 == data.sha256(without=[bad]) not in (whole, data.sha256())


def test_an_unreadable_image_is_unknown_to_the_reference(manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    (whole,) = reference_outputs(manifest, open_dataset(str(folder)), tmp_path, threads=1).outputs
    for number in (0, 20, IMAGES - 1):  # each alone: one of 40 is what is tolerated
        data = open_dataset(str(folder))
        path = data.images[number]
        assert isinstance(path, Path)
        content = path.read_bytes()
        path.write_bytes(b"")
        try:
            reference = reference_outputs(manifest, data, tmp_path, threads=1)
        finally:
            path.write_bytes(content)
        (logits,) = reference.outputs
        others = [i for i in range(IMAGES) if i != number]
        assert logits.shape == (IMAGES, 10)
        assert np.flatnonzero(~reference.known).tolist() == [number]
        np.testing.assert_allclose(logits[others], whole[others], rtol=0, atol=1e-4 * np.abs(whole).max())
    how = Preprocessing(**manifest.preprocessing)
    with pytest.raises(FasterViTError, match=r"can be read now, but could not .* delete '.*\.npy' and measure again"):
        evaluate(lambda x: (np.zeros((len(x), 10), np.float32),), data, how, manifest.resolution, 16, reference)


def test_the_reference_is_computed_once(
    manifest: Manifest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, built = open_dataset(str(folder)), 0
    real = module.build_model

    def counted(spec: ModelSpec, source: WeightSource) -> object:
        nonlocal built
        built += 1
        return real(spec, source)

    monkeypatch.setattr(module, "build_model", counted)
    threads, done = torch.get_num_threads(), list[int]()
    first = np.array(reference_outputs(manifest, data, tmp_path, threads=threads + 1).outputs[0])
    (again,) = reference_outputs(manifest, data, tmp_path, done.append).outputs
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)
    assert (built, done, torch.get_num_threads()) == (1, [IMAGES], threads)
    reference_outputs(replace(manifest, precision="int8"), data, tmp_path)  # the same model
    assert built == 1
    other = {**manifest.preprocessing, "crop_pct": 0.875}
    (file,) = tmp_path.iterdir()
    reference_outputs(replace(manifest, preprocessing=other), data, tmp_path, threads=1)
    assert built == 2
    assert len(list(tmp_path.iterdir())) == 2
    assert file.exists()


def test_other_pictures_other_weights_other_sizes_are_other_references(manifest: Manifest, folder: Path) -> None:
    data = open_dataset(str(folder))
    source = WeightSource.from_record(manifest.weights)
    keys = {
        module._key(manifest, source, data),
        module._key(manifest, replace(source, sha256="0" * 64), data),
        module._key(manifest, WeightSource.random(1), data),
        module._key(manifest, WeightSource.random(2), data),
        module._key(replace(manifest, resolution=(96, 64)), source, data),
        module._key(replace(manifest, spec={**manifest.spec, "ct_size": 1}), source, data),
        module._key(manifest, source, replace(data, labels=data.labels[::-1])),
    }
    assert len(keys) == 7


@pytest.mark.parametrize("damage", ["one bit", "cut", "empty", "another shape"])
def test_a_damaged_reference_is_made_again(manifest: Manifest, folder: Path, tmp_path: Path, damage: str) -> None:
    data = open_dataset(str(folder))
    expected = np.array(reference_outputs(manifest, data, tmp_path, threads=1).outputs[0])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "cut": whole[:middle],
            "empty": b"",
            "another shape": whole.replace(b"'shape': (40,)", b"'shape': (20,)"),
        }[damage]
    )
    np.testing.assert_array_equal(reference_outputs(manifest, data, tmp_path, threads=1).outputs[0], expected)
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_no_reference(
    manifest: Manifest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        reference_outputs(manifest, open_dataset(str(folder)), tmp_path, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_gone_changed_or_broken_is_an_error(
    manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    data, file = open_dataset(str(folder)), tmp_path / "model.safetensors"
    gone = replace(manifest, weights={"kind": "checkpoint", "path": str(file)})
    with pytest.raises(FasterViTError, match=r"model\.safetensors' does not exist"):
        reference_outputs(gone, data, tmp_path / "cache")
    model, _ = build_model(ModelSpec.from_record(manifest.spec), WeightSource.random(0))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name == "head.bias")[3] = float("nan")
    save_model(model, file)
    with pytest.raises(FasterViTError, match=r"are not finite for image 0 of '.*'; its checkpoint is broken"):
        reference_outputs(gone, data, tmp_path / "cache")
    changed = replace(manifest, weights={**gone.weights, "sha256": "0" * 64})
    with pytest.raises(FasterViTError, match="has changed since it was exported"):
        reference_outputs(changed, data, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_what_are_no_logits_of_these_images_is_refused(tmp_path: Path) -> None:
    data = greys(tmp_path, 12)
    with pytest.raises(FasterViTError, match=r"outputs of shape \(5, 7\) are no logits of 5 images and the 12 classes"):
        evaluate(lambda images: (np.zeros((len(images), 7), np.float32),), data, RAW, SIZE, 5)
    other = Reference((np.zeros((11, 12), np.float32),), np.ones(11, bool))
    with pytest.raises(FasterViTError, match=r"reference outputs of shape \(11, 12\) are not those of the 12 images"):
        evaluate(lambda images: (one_hot(images, 12),), data, RAW, SIZE, 5, other)


def test_data_must_have_the_classes_of_the_export(manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    data = open_dataset(str(folder))
    check_dataset(manifest, data)
    with pytest.raises(FasterViTError, match=r"data '.*' has 12 classes, faster_vit_digits_s 10; they must be"):
        check_dataset(manifest, greys(tmp_path, 12))
    backbone = replace(manifest, outputs=[{"name": "stage0"}, {"name": "stage1"}])
    with pytest.raises(FasterViTError, match="faster_vit_digits_s is a backbone without classes; leave out --data"):
        check_dataset(backbone, data)


def test_published_weights_have_the_classes_of_imagenet_whatever_a_file_says(manifest: Manifest) -> None:
    names = tuple(f"n{i:08}" for i in range(1000))
    data = LabelledImages("val", (Image.new("L", (8, 8)),), np.array([0]), 1000, names, Path("classes.txt"))
    check_dataset(replace(manifest, num_classes=1000), data)
    official = replace(manifest, num_classes=1000, weights={"kind": "official", "model": "faster_vit_0_224"})
    with pytest.raises(FasterViTError, match=r"'classes.txt' are not those of ImageNet-1k in sorted order"):
        check_dataset(official, data)
