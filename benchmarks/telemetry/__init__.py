"""What a machine does while something is timed on it: load, clocks, power, temperature, throttling, energy."""

from fastervit_trt.benchmarks.telemetry.watch import Telemetry

__all__ = ["Telemetry"]
