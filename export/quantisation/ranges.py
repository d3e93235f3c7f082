"""The ranges of a model's activations: found once, kept as a file that a person can read, change and use again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import CALIBRATORS, Fp8, Int8, Quantised
from fastervit_trt.export.quantisation.calibrators import Histogram, choose_range

__all__ = ["CalibrationKey", "RangeRow", "Ranges"]

_SCHEMA = 1


@dataclass(frozen=True)
class CalibrationKey:
    """What ranges depend on. Ranges of another key are ranges of something else."""

    model: str  # of weights and variant
    deploy: str  # what shapes the deploy form, e.g. head padding
    resolution: str  # HxW
    preprocessing: str
    data: str  # of the images, in order
    images: int

    def difference(self, other: CalibrationKey) -> str | None:
        """The first field in which ``other`` differs, as words; None where there is none."""
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            if mine != its:
                return f"{field.name} {its} but {mine}"
        return None


@dataclass(frozen=True)
class RangeRow:
    """|x| of one tensor: the largest seen, and the range each calibrator would choose."""

    max: float
    percentile: float
    entropy: float
    mse: float  # for int8
    mse_fp8: float

    @classmethod
    def choose(cls, seen: Histogram) -> RangeRow:
        """What every calibrator chooses, to six digits: a range from a file is the range that was found."""
        choices = {name: choose_range(seen, calibrator, Int8) for name, calibrator in CALIBRATORS.items()}
        choices["mse_fp8"] = choose_range(seen, "mse", Fp8)
        return cls(**{name: float(f"{value:.6g}") for name, value in choices.items()})

    def of(self, precision: Quantised) -> float:
        """The range for ``precision``, by its calibrator."""
        name = "mse_fp8" if precision.calibrator == "mse" and precision.name == "fp8" else precision.calibrator
        return float(getattr(self, name))


@dataclass(frozen=True)
class Ranges:
    """Tensor → its ranges. The input of a layer has the layer's block as its name, others ``block:what``."""

    key: CalibrationKey
    rows: dict[str, RangeRow]

    def of(self, tensor: str, precision: Quantised) -> float:
        """The range of ``tensor``.

        Raises:
            FasterViTError: there is none.
        """
        if tensor not in self.rows:
            raise FasterViTError(f"the calibration has no range for {tensor}; calibrate this model again")
        return self.rows[tensor].of(precision)

    def write(self, path: Path) -> None:
        """As JSON with one line per tensor."""
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(asdict(row))}" for name, row in self.rows.items())
        key = json.dumps(asdict(self.key), indent=1).replace("\n", "\n ")
        path.write_text(f'{{\n "schema": {_SCHEMA},\n "key": {key},\n "ranges": {{\n{rows}\n }}\n}}\n')

    @classmethod
    def read(cls, path: Path) -> Ranges:
        """Read what :meth:`write` wrote, or a person changed.

        Raises:
            FasterViTError: no such file, or not ranges.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            if content["schema"] != _SCHEMA:
                raise FasterViTError(
                    f"calibration cache '{path}' has schema {content['schema']}, this version reads {_SCHEMA}; "
                    "calibrate again with --calibration-data"
                )
            rows = {name: RangeRow(**row) for name, row in content["ranges"].items()}
            ranges = cls(CalibrationKey(**content["key"]), rows)
        except FileNotFoundError:
            raise FasterViTError(
                f"calibration cache '{path}' does not exist; --calibration-data DIR makes it"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FasterViTError(
                f"'{path}' is no calibration cache ({type(error).__name__}: {error}); --calibration-data DIR makes one"
            ) from error
        ranges._check(path)
        return ranges

    def _check(self, path: Path) -> None:
        for name, row in self.rows.items():
            for field in fields(row):
                value = getattr(row, field.name)
                if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                    raise FasterViTError(
                        f"calibration cache '{path}' gives {name} the {field.name} range {value!r}; it must be a "
                        "number from 0 up"
                    )
