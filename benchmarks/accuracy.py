from fastervit_trt.accuracy import *  # noqa
