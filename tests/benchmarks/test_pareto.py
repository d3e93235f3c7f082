from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from fastervit_trt.benchmarks.pareto import draw_pareto, mark_front
from tests.benchmarks.example_rows import row


def test_front_and_what_dominates_the_rest() -> None:
    rows = mark_front(
        [
            row("best", 0.95, 10),
            row("fast", 0.80, 100),
            row("worse", 0.79, 90),  # slower and less accurate than fast
            row("same", 0.80, 100),  # a tie dominates nobody
            row("slow", 0.95, 5),  # as accurate as best, slower
            row("unknown", None, 500),
            row("emulated", 0.99, 500, speed_is_meaningful=False),
        ]
    )
    assert {r.model: r.on_front for r in rows} == {
        "best": True,
        "fast": True,
        "worse": False,
        "same": True,
        "slow": False,
        "unknown": None,
        "emulated": None,
    }
    dominators = {r.model: r.dominated_by for r in rows if r.dominated_by}
    assert dominators == {"worse": "fast fp16", "slow": "best fp16"}


def test_every_point_off_the_front_is_dominated_by_a_point_on_it() -> None:
    rng = random.Random(0)
    rows = mark_front([row(str(i), rng.randint(0, 20) / 20, rng.randint(1, 20)) for i in range(200)])
    front = [r for r in rows if r.on_front]
    assert 1 <= len(front) < 60
    for r in rows:
        beaten = any(
            f.top1 >= r.top1  # type: ignore[operator]
            and f.throughput_img_per_s >= r.throughput_img_per_s
            and (f.top1, f.throughput_img_per_s) != (r.top1, r.throughput_img_per_s)
            for f in front
        )
        assert beaten != bool(r.on_front)


@pytest.mark.parametrize("count", [1, 6])
def test_picture_shows_every_compared_point(tmp_path: Path, count: int) -> None:
    rows = mark_front([row(f"model{i}", 0.9 - 0.03 * i, 10.0 * (i + 1)) for i in range(count)] + [row("none", None, 1)])
    svg = draw_pareto(rows, tmp_path)
    assert all(f"model{i} fp16" in svg for i in range(count))
    assert "none fp16" not in svg
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
