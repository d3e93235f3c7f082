"""Quantise one ONNX file with ONNX Runtime or ModelOpt, in a process and an interpreter of its own.

Run as a file, with a job as JSON on standard input: ``tool``, ``source`` and ``target`` (ONNX files), ``calibration``
(a .npy file of images), ``options`` (arguments of the tool's own function) and, for ONNX Runtime, ``ranges`` (tensor →
largest magnitude) to use instead of a calibration. The last line on standard output is the answer as JSON. Imports
nothing of this project: ModelOpt 0.47 pins ONNX and ONNX Runtime to versions that this project does not have.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 32


def _feeds(path: str) -> Iterator[dict[str, np.ndarray]]:
    images = np.load(path, mmap_mode="r")
    for start in range(0, len(images), _BATCH):
        yield {"images": np.ascontiguousarray(images[start : start + _BATCH])}


def _ort(job: dict[str, Any]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = _feeds(job["calibration"])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    options = dict(job["options"])
    types = {name: QuantType[options.pop(name, "QInt8")] for name in ("activation_type", "weight_type")}
    if "ranges" in job:
        _ort_from_ranges(job, options, types)
        return
    method = CalibrationMethod[options.pop("calibrate_method", "MinMax")]
    quantize_static(job["source"], job["target"], Reader(), calibrate_method=method, **types, **options)


def _ort_from_ranges(job: dict[str, Any], options: dict[str, Any], types: dict[str, Any]) -> None:
    """What ``quantize_static`` does after calibration, with ranges from elsewhere."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    model = onnx.load(job["source"])
    elements = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.value_info, *model.graph.input)}
    overrides, ranges = {}, {}
    for name, largest in job["ranges"].items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(elements[name])
        if types["activation_type"] is QuantType.QFLOAT8E4M3FN:  # its own scales are standard deviations
            zero = np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN))
            overrides[name] = [{"scale": np.array(largest / 448, dtype), "zero_point": zero}]
            ranges[name] = TensorData(avg=np.array(0, dtype), std=np.array(largest, dtype))
        else:
            ranges[name] = TensorData(lowest=np.array(-largest, dtype), highest=np.array(largest, dtype))
    method = CalibrationMethod.Distribution if overrides else CalibrationMethod.MinMax
    quantizer = QDQQuantizer(
        model,
        options["per_channel"],
        False,
        types["weight_type"],
        types["activation_type"],
        TensorsData(method, ranges),
        [],
        options["nodes_to_exclude"],
        options["op_types_to_quantize"],
        {**options["extra_options"], "TensorQuantOverrides": overrides},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(job["target"], False)


def _modelopt(job: dict[str, Any]) -> None:
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    files = {"onnx_path": job["source"], "output_path": job["target"]}
    quantize(**files, calibration_data=np.load(job["calibration"]), calibration_eps=["cpu"], **job["options"])


def _peak_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def main() -> None:
    """Read the job, quantise, answer."""
    job = json.load(sys.stdin)
    package = {"ort": "onnxruntime", "modelopt": "nvidia-modelopt"}[job["tool"]]
    answer: dict[str, Any] = {"version": importlib.metadata.version(package), "failure": ""}
    start = time.perf_counter()
    try:
        {"ort": _ort, "modelopt": _modelopt}[job["tool"]](job)
    except (Exception, SystemExit) as error:  # any failure of a quantiser is a result
        answer["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    answer.update(seconds=round(time.perf_counter() - start, 1), peak_rss_mib=_peak_mib())
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
