from fastervit_trt.models.datasets import *  # noqa
