from __future__ import annotations

import pytest

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.batch import BatchRange


@pytest.mark.parametrize(("text", "sizes"), [("8", (8, 8, 8)), ("1:8:32", (1, 8, 32)), ("2:2:2", (2, 2, 2))])
def test_parses_and_prints(text: str, sizes: tuple[int, int, int]) -> None:
    batch = BatchRange.parse(text)
    assert (batch.minimum, batch.optimum, batch.maximum) == sizes
    assert batch.dynamic == (sizes[0] != sizes[2])
    assert BatchRange.parse(str(batch)) == batch


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1:2", "4:2:8", "1:9:8", "1:2:3:4", "1.5"])
def test_refuses_the_impossible(text: str) -> None:
    with pytest.raises(FasterViTError, match="is neither N nor MIN:OPT:MAX"):
        BatchRange.parse(text)
