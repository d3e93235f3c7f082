"""The client example as it is written, against a server of the protocol that it will talk to."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastervit_trt.deploy.bundle.manifest import Bundle
from fastervit_trt.deploy.triton.repository import WrittenRepository, write_repository
from fastervit_trt.models.digits.data import load_digits_split
from tests.deploy.serving.running import running

NAME = "faster_vit_digits_s"


@pytest.fixture(scope="module")
def written(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> WrittenRepository:
    return write_repository(bundle, tmp_path_factory.mktemp("triton") / "served")


@pytest.fixture(scope="module")
def address(bundle: Bundle) -> Iterator[str]:
    """Of a server with the bundle's models."""
    with running(bundle) as server:
        yield server.address


@pytest.fixture
def client(written: WrittenRepository) -> Any:
    spec = importlib.util.spec_from_file_location("client_under_test", written.folder / "client.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(client: Any, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["client.py", *map(str, arguments)])
    return client.main()


def test_top_classes_of_picture_files(
    client: Any, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images, labels = load_digits_split("held_out")
    for number in range(3):
        images[number].save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(3)]
    assert run(client, monkeypatch, "--url", address, "--model", NAME, "--top", 2, *files) == 0
    lines = capsys.readouterr().out.splitlines()
    names = "zero one two three four five six seven eight nine".split()
    for number, label in enumerate(labels[:3]):
        path, first, second = lines[3 * number : 3 * number + 3]
        assert path == str(files[number])
        assert first.split()[-1] == names[label]
        assert float(first.split("%")[0]) > float(second.split("%")[0])


def test_golden_images_are_answered_as_pytorch_does(
    client: Any, address: str, written: WrittenRepository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    golden = written.folder / "golden"
    assert run(client, monkeypatch, "--url", address, "--model", NAME, "--golden", golden) == 0
    shutil.copytree(golden, tmp_path / "golden")
    logits = np.load(tmp_path / "golden" / "golden-logits.npy")
    for value in (logits[-1, 0] + 0.1, np.nan):
        logits[-1, 0] = value
        np.save(tmp_path / "golden" / "golden-logits.npy", logits)
        assert run(client, monkeypatch, "--url", address, "--model", NAME, "--golden", tmp_path / "golden") == 1


def test_no_server_and_no_such_model(
    client: Any, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    assert run(client, monkeypatch, "--url", address, "--model", "other", tmp_path / "text.png") == 2
    assert run(client, monkeypatch, "--url", address, "--model", NAME, tmp_path / "text.png") == 2
    assert run(client, monkeypatch, "--url", "127.0.0.1:9", "--model", NAME, tmp_path / "text.png") == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 3
    assert "Traceback" not in errors


class StaticServer:
    """Answers for a graph of four images, no fewer and no more, whose output tells which image it was."""

    def get_model_metadata(self, model: str) -> dict[str, Any]:
        shape = [4] if model.endswith("_pictures") else [4, 3, 2, 2]
        return {"inputs": [{"name": "in", "shape": shape}], "outputs": [{"name": "out", "shape": [4]}]}

    def infer(self, model: str, inputs: list[Any]) -> Any:
        assert inputs[0].shape() == self.get_model_metadata(model)["inputs"][0]["shape"]
        return self

    def as_numpy(self, name: str) -> np.ndarray:
        return np.arange(4.0)


@pytest.mark.parametrize(
    ("items", "kind", "model"),
    [(np.zeros((2, 3, 2, 2), np.float32), "FP32", "m"), (np.array([b"a", b"b"], np.object_), "BYTES", "m_pictures")],
)
def test_a_static_graph_gets_as_many_as_it_takes(client: Any, items: np.ndarray, kind: str, model: str) -> None:
    assert client.infer(StaticServer(), model, items, kind)["out"].tolist() == [0, 1]


def test_one_output_that_is_no_number_is_not_made_up_for_by_another(client: Any, tmp_path: Path) -> None:
    class TwoOutputs(StaticServer):
        def __init__(self, broken: str) -> None:
            self.broken = broken

        def get_model_metadata(self, model: str) -> dict[str, Any]:
            return {"inputs": [{"name": "in", "shape": [-1, 2]}], "outputs": [{"name": "a"}, {"name": "b"}]}

        def infer(self, model: str, inputs: list[Any]) -> Any:
            return self

        def as_numpy(self, name: str) -> np.ndarray:
            return np.array([[np.nan if name == self.broken else 1.0]])

    np.save(tmp_path / "images.npy", np.zeros((1, 2), np.float32))
    np.save(tmp_path / "one.npy", np.ones((1, 1), np.float32))
    outputs = {name: {"file": "one.npy", "budget": 0.5} for name in ("a", "b")}
    (tmp_path / "golden.json").write_text(json.dumps({"kinds": ["noise"], "images": "images.npy", "outputs": outputs}))
    for broken, code in (("a", 1), ("b", 1), ("neither", 0)):
        assert client.check_golden(TwoOutputs(broken), "m", tmp_path) == code


def test_features_are_summed_up(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    client.show(Path("a.png"), {"stage3": np.ones((1, 32, 7, 7), np.float32)}, [], 5)
    assert "stage3: 32 x 7 x 7, mean 1.0000" in capsys.readouterr().out
