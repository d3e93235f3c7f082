"""What is here and what is wrong with it: driver, CUDA, TensorRT, plugins, power, clocks, memory."""

from fastervit_trt.deploy.doctor.examine import examine
from fastervit_trt.deploy.doctor.findings import Finding, for_target, problems_for

__all__ = ["Finding", "examine", "for_target", "problems_for"]
