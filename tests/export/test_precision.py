"""Precisions and calibrators go by the names that people type."""

from __future__ import annotations

import re

import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import (
    FLOATS,
    PRECISIONS,
    Bf16,
    Float,
    Int8,
    get_calibrator,
    get_float,
    get_precision,
)


def test_precisions_are_found_by_name() -> None:
    assert {name: get_precision(name) for name in PRECISIONS} == PRECISIONS
    assert {"fp32", "fp16", "bf16", "int8", "fp8"} <= PRECISIONS.keys()
    assert {name: get_float(name) for name in FLOATS} == FLOATS
    assert isinstance(Int8().arithmetic, Float) and Int8(base=Bf16()).arithmetic == Bf16()
    for name, find, message in (
        ("int4", get_precision, "unknown precision 'int4'; choose one of fp32, fp16, bf16, int8, "),
        ("int8", get_float, "'int8' is no floating-point precision; choose one of fp32, fp16, bf16"),
        ("median", get_calibrator, "unknown calibrator 'median'; choose one of max, percentile, entropy, mse"),
    ):
        with pytest.raises(FasterViTError, match=re.escape(message)):
            find(name)
