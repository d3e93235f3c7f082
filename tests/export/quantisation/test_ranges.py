"""Ranges are a file that a person reads and edits; what is no such file is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import Fp8, Int8
from fastervit_trt.export.quantisation.calibrators import Histogram, choose_range
from fastervit_trt.export.quantisation.ranges import CalibrationKey, RangeRow, Ranges

KEY = CalibrationKey("0123abcd", "fuse=window-attention", "224x224", '{"mean": [0.5]}', "feed", 64)
QKV, OUTPUT = "stages.2.blocks.0.attn.qkv", "stages.2.blocks.0.attn.proj:output"
RANGES = Ranges(KEY, {QKV: RangeRow(3.5, 3.25, 3.0, 2.75, 3.4), OUTPUT: RangeRow(0.0, 0.0, 0.0, 0.0, 0.0)})

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    RANGES.write(tmp_path / "ranges.json")
    return tmp_path / "ranges.json"


def test_what_was_written_is_read(path: Path) -> None:
    assert Ranges.read(path) == RANGES


def test_every_tensor_has_one_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    (line,) = [line for line in lines if f'"{QKV}"' in line]
    assert line.strip() == f'"{QKV}": {{"max": 3.5, "percentile": 3.25, "entropy": 3.0, "mse": 2.75, "mse_fp8": 3.4}},'
    assert sum('"max"' in line for line in lines) == len(RANGES.rows)


def test_what_a_person_changed_counts(path: Path) -> None:
    path.write_text(path.read_text().replace('"mse": 2.75', '"mse": 2'))
    assert Ranges.read(path).of(QKV, Int8(calibrator="mse")) == 2.0


def test_every_calibrator_and_type_has_its_range() -> None:
    chosen = {name: RANGES.of(QKV, Int8(calibrator=name)) for name in ("max", "percentile", "entropy", "mse")}  # type: ignore[misc]
    assert chosen == {"max": 3.5, "percentile": 3.25, "entropy": 3.0, "mse": 2.75}
    assert (RANGES.of(QKV, Fp8()), RANGES.of(QKV, Fp8(calibrator="mse"))) == (3.5, 3.4)


def test_a_range_from_the_file_is_the_range_that_was_found(tmp_path: Path) -> None:
    seen = Histogram()
    seen.add(torch.randn(5000, generator=torch.Generator().manual_seed(0)) / 3)
    row = RangeRow.choose(seen)
    found = Ranges(KEY, {QKV: row})
    found.write(tmp_path / "r.json")
    assert Ranges.read(tmp_path / "r.json") == found
    assert row.max == pytest.approx(seen.largest, rel=1e-5)
    assert (row.mse, row.mse_fp8) == pytest.approx(
        (choose_range(seen, "mse", Int8), choose_range(seen, "mse", Fp8)), rel=1e-5
    )
    assert row.mse != row.mse_fp8


def test_a_tensor_without_a_range_is_named() -> None:
    with pytest.raises(FasterViTError, match=r"no range for stages\.3\.norm1; calibrate this model again"):
        RANGES.of("stages.3.norm1", Int8())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "9"),
        ("deploy", "pad"),
        ("resolution", "160x160"),
        ("preprocessing", "{}"),
        ("data", ""),
        ("images", 9),
    ],
)
def test_keys_differ_in_every_field(field: str, value: str | int) -> None:
    other = replace(KEY, **{field: value})  # type: ignore[arg-type]
    assert KEY.difference(other) == f"{field} {value} but {getattr(KEY, field)}"
    assert KEY.difference(KEY) is None


def _row(content: dict[str, Any]) -> dict[str, Any]:
    return content["ranges"][QKV]


EDITS: dict[str, tuple[Edit, str]] = {
    "negative": (lambda c: _row(c).update(max=-1.0), f"gives {QKV} the max range -1.0; it must be a number from 0 up"),
    "NaN": (lambda c: _row(c).update(mse=float("nan")), f"gives {QKV} the mse range nan"),
    "infinite": (lambda c: _row(c).update(entropy=float("inf")), f"gives {QKV} the entropy range inf"),
    "text": (lambda c: _row(c).update(mse_fp8="wide"), f"gives {QKV} the mse_fp8 range 'wide'"),
    "null": (lambda c: _row(c).update(mse=None), f"gives {QKV} the mse range None"),
    "a calibrator is missing": (lambda c: _row(c).pop("mse"), "is no calibration cache (TypeError: "),
    "an unknown calibrator": (lambda c: _row(c).update(median=1.0), "is no calibration cache (TypeError: "),
    "a row is a number": (lambda c: c["ranges"].update({QKV: 3.5}), "is no calibration cache (TypeError: "),
    "no ranges": (lambda c: c.pop("ranges"), "is no calibration cache (KeyError: 'ranges')"),
    "ranges in a list": (lambda c: c.update(ranges=[1]), "is no calibration cache (AttributeError: "),
    "no key": (lambda c: c.pop("key"), "is no calibration cache (KeyError: 'key')"),
    "another key": (lambda c: c["key"].pop("data"), "is no calibration cache (TypeError: "),
    "a later schema": (lambda c: c.update(schema=2), "has schema 2, this version reads 1; calibrate again with"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_damaged_values_are_refused_in_one_line(path: Path, kind: str) -> None:
    edit, message = EDITS[kind]
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FasterViTError) as refused:
        Ranges.read(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"layer,max\nqkv,3\n", b"\x08\x00\x80\xff"], ids=repr
)
def test_files_of_something_else_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ranges.json"
    path.write_bytes(content)
    with pytest.raises(
        FasterViTError, match=r"ranges.json' is no calibration cache .*--calibration-data DIR makes one"
    ):
        Ranges.read(path)


def test_half_a_file_is_refused(path: Path) -> None:
    whole = path.read_text()
    for share in (0.2, 0.6, 0.95):
        path.write_text(whole[: int(share * len(whole))])
        with pytest.raises(FasterViTError, match="is no calibration cache"):
            Ranges.read(path)


def test_a_missing_file_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FasterViTError, match=r"nowhere.json' does not exist; --calibration-data DIR makes it"):
        Ranges.read(tmp_path / "nowhere.json")
