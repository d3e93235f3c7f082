"""Histograms hold what numpy counts, and ranges are those that trying every one on the raw data finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.export.precision import CALIBRATORS, Calibrator, Fp8, Int8, Quantised
from fastervit_trt.export.quantisation.calibrators import Histogram, choose_range, on_grid

BINS = len(Histogram().counts)
SIGMAS_OF_OUTLIER = 50.0


def gaussian(values: int = 20_000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(values).astype(np.float32))


def with_outlier(values: int = 20_000) -> torch.Tensor:
    return torch.cat([gaussian(values), torch.tensor([SIGMAS_OF_OUTLIER])])


def uniform(values: int = 20_000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).uniform(-3, 3, values).astype(np.float32))


DATA = {"gaussian": gaussian(), "with outlier": with_outlier(), "uniform": uniform()}


def histogram(*batches: torch.Tensor) -> Histogram:
    seen = Histogram()
    for batch in batches:
        seen.add(batch)
    return seen


def squared_error(x: torch.Tensor, a: float, precision: type[Quantised]) -> float:
    """Of rounding and clipping to [-a, a], on the data themselves."""
    x = x.double()
    return float((x - on_grid(x, a / precision.largest, precision)).square().mean())


def growing(parts: int = 5) -> Sequence[torch.Tensor]:
    """Batches of which each is three times as wide as the one before."""
    return [chunk * 3.0**i for i, chunk in enumerate(gaussian().chunk(parts))]


def test_a_range_that_grows_keeps_the_counts_of_all_data_at_once() -> None:
    batches = growing()
    seen = histogram(*batches)
    magnitudes = torch.cat(list(batches)).abs().numpy().astype(np.float64)
    assert seen.end == 2.0 ** math.ceil(math.log2(magnitudes.max()))
    counts, _ = np.histogram(magnitudes, bins=BINS, range=(0, seen.end))
    assert np.array_equal(seen.counts.numpy(), counts)
    assert (seen.values, seen.non_finite, seen.largest) == (len(magnitudes), 0, magnitudes.max())


@pytest.mark.parametrize("order", [1, -1], ids=["growing", "shrinking"])
def test_several_batches_are_one_batch(order: int) -> None:
    batches = growing()[::order]
    apart, together = histogram(*batches), histogram(torch.cat(list(batches)).reshape(10, -1))
    assert torch.equal(apart.counts, together.counts)
    assert (apart.end, apart.largest, apart.values) == (together.end, together.largest, together.values)


def test_zeros_are_counted_before_and_after_something_else_comes() -> None:
    seen = histogram(torch.zeros(3, 4))
    assert (seen.end, seen.largest, seen.values) == (0.0, 0.0, 12)
    assert [choose_range(seen, calibrator, Int8) for calibrator in CALIBRATORS] == [0.0] * len(CALIBRATORS)
    seen.add(torch.tensor([3.0, 0.0]))
    assert (seen.end, seen.values, float(seen.counts[0])) == (4.0, 14, 13)
    assert float(seen.counts[3 * BINS // 4]) == 1


def test_nothing_is_nothing() -> None:
    seen = histogram(torch.zeros(0, 4))
    assert (seen.values, seen.non_finite, choose_range(seen, "mse", Int8)) == (0, 0, 0.0)


def test_nan_and_infinity_are_counted_apart() -> None:
    finite = gaussian()
    seen, clean = histogram(torch.cat([finite, torch.tensor([math.nan, math.inf, -math.inf])])), histogram(finite)
    assert seen.non_finite == 3
    assert torch.equal(seen.counts, clean.counts)
    assert (seen.end, seen.largest, seen.values) == (clean.end, clean.largest, clean.values)
    assert histogram(torch.full((5,), math.nan)).non_finite == 5


@pytest.mark.parametrize("magnitude", [2.0**-100, 2.0**-60, 2.0**60, 2.0**110, 2.0**127])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_the_scale_of_the_data_is_the_scale_of_its_range(calibrator: Calibrator, magnitude: float) -> None:
    """Also near either end of float32, where sums of squares and products with numbers of bins leave its range."""
    data = with_outlier() / 32  # up to 1.6
    expected = choose_range(histogram(data), calibrator, Int8)
    assert choose_range(histogram(data * magnitude), calibrator, Int8) == expected * magnitude


def test_the_largest_value_is_the_range_of_max() -> None:
    assert choose_range(histogram(with_outlier()), "max", Int8) == SIGMAS_OF_OUTLIER
    assert choose_range(histogram(with_outlier()), "max", Fp8) == SIGMAS_OF_OUTLIER


@pytest.mark.parametrize("data", DATA)
def test_a_percentile_is_within_a_bin_of_that_of_the_data(data: str) -> None:
    x = torch.cat([DATA[data]] * 20)  # 99.999 % of 400 000 leave four outside
    seen = histogram(x)
    exact = float(np.quantile(x.abs().numpy().astype(np.float64), 0.99999, method="inverted_cdf"))
    assert exact <= choose_range(seen, "percentile", Int8) <= exact + seen.end / BINS


@pytest.mark.parametrize("precision", [Int8, Fp8])
@pytest.mark.parametrize("data", DATA)
def test_least_squares_finds_what_trying_every_range_on_the_data_finds(data: str, precision: type[Quantised]) -> None:
    x = DATA[data]
    chosen = choose_range(histogram(x), "mse", precision)
    tried = np.linspace(1 / 400, 1, 400) * float(x.abs().max())
    best = min(squared_error(x, a, precision) for a in tried)
    # Bins are 64 times finer than int8's steps; 128 candidates in place of 400 cost the last per cent.
    assert squared_error(x, chosen, precision) <= 1.01 * best


def test_what_is_clipped_and_what_is_not() -> None:
    values = 100_000
    lone, even = histogram(with_outlier(values)), histogram(uniform())
    # n rounded values err by a² / (12 · 127²) each, the clipped one by (50 - a)²: least where
    best = SIGMAS_OF_OUTLIER / (1 + values / (12 * 127**2))
    assert choose_range(lone, "mse", Int8) == pytest.approx(best, rel=0.02)  # 33; a candidate is 1/128 of 50
    assert choose_range(lone, "entropy", Int8) < 0.2 * SIGMAS_OF_OUTLIER
    assert choose_range(lone, "max", Int8) == SIGMAS_OF_OUTLIER
    assert choose_range(even, "mse", Int8) > 0.97 * even.largest


def test_entropy_is_the_least_divergence_of_a_clipped_distribution() -> None:
    """By the definition, bin by bin in plain Python, of NVIDIA's slides of 2017."""
    seen = histogram(with_outlier(2000))
    counts = seen.counts.tolist()
    divergences = []
    for end in range(128, BINS + 1, 128):
        p, q, width = [*counts[: end - 1], counts[end - 1] + sum(counts[end:])], [0.0] * end, end // 128
        for start in range(0, end, width):
            filled = [i for i in range(start, start + width) if counts[i]]
            for i in filled:
                q[i] = sum(counts[start : start + width]) / len(filled)
        total_p, total_q = sum(p), sum(q)
        pairs = [(a / total_p, b / total_q) for a, b in zip(p, q, strict=True) if a]
        divergences.append(sum(a * math.log(a / max(b, 1e-12)) for a, b in pairs))
    best = (int(np.argmin(divergences)) + 1) * 128 * seen.end / BINS
    assert choose_range(seen, "entropy", Int8) == best


def test_entropy_is_for_even_steps() -> None:
    with pytest.raises(FasterViTError, match=r"entropy calibrator is for int8's even steps; use max or mse for fp8"):
        choose_range(histogram(gaussian()), "entropy", Fp8)


def test_the_fp8_grid_is_that_of_ml_dtypes_and_saturates() -> None:
    x = np.concatenate([gaussian().numpy() * 100, [0, -0.0, 2.0**-10, 2.0**-9, 448, 463, 464, 1e6, -1e6]])
    x = x.astype(np.float32)
    for scale in (1.0, 0.25, 3.0):
        steps = np.clip(x / np.float32(scale), -448, 448)
        expected = steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)
        assert np.array_equal(on_grid(torch.from_numpy(x), scale, Fp8).numpy(), expected)
    assert float(on_grid(torch.tensor(1e6), 1.0, Fp8)) == 448


def test_the_int8_grid_has_256_whole_steps_and_rounds_half_to_even() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 126.6, 127.6, 1000.0, -127.6, -128.4, -1000.0]) * 0.25
    assert (on_grid(x, 0.25, Int8) / 0.25).tolist() == [0, 2, 2, 0, 127, 127, 127, -128, -128, -128]
