from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from fastervit_trt.benchmarks.studies import resolution as module
from fastervit_trt.benchmarks.studies.resolution import Plan, measure_resolutions
from fastervit_trt.benchmarks.studies.resolution_cost import MultiplyAdds, call_seconds, multiply_adds, peak_bytes
from fastervit_trt.benchmarks.studies.resolution_peers import NETWORKS, make_network
from fastervit_trt.benchmarks.studies.resolution_report import findings, render_page
from fastervit_trt.benchmarks.studies.resolution_rows import (
    Cell,
    Conditions,
    exponent,
    growth_rows,
    resolution_rows,
)
from fastervit_trt.errors import FasterViTError
from fastervit_trt.models.config import FasterViTConfig, with_resolution
from fastervit_trt.models.factory import resolve_config
from tests.conftest import Finished

CPU = torch.device("cpu")
CONDITIONS = Conditions("faster_vit_0_224", 1, "fp32", "a machine", "cpu", 2)
SIZES = (224, 512)  # whole windows, and padded ones


@cache
def counted(name: str, config: FasterViTConfig) -> MultiplyAdds:
    with torch.device("meta"):
        model = make_network(name, config)
    return multiply_adds(model, 3, config.resolution)


def tokens(config: FasterViTConfig) -> list[tuple[int, int, int, int]]:
    """Blocks, width, tokens without padding, and tokens within whole windows of each transformer stage."""
    found = []
    for i in (2, 3):
        geometry = config.geometry(i)
        whole = geometry.windows * geometry.window**2
        found.append((config.depths[i], config.stage_dim(i), geometry.size[0] * geometry.size[1], whole))
    return found


@pytest.mark.parametrize("side", SIZES)
def test_products_of_windows_are_linear_in_whole_windows(side: int) -> None:
    config = with_resolution(resolve_config("faster_vit_0_224"), (side, side))
    linear = sum(depth * 12 * dim**2 * whole for depth, dim, _, whole in tokens(config)) + 512 * 1000
    attention = sum(depth * 2 * dim * whole * 49 for depth, dim, _, whole in tokens(config))
    for name in ("windows", "shifted"):
        found = counted(name, config)
        assert (found.linear, found.attention) == (linear, attention)


@pytest.mark.parametrize("side", SIZES)
def test_products_of_global_attention_grow_with_the_square(side: int) -> None:
    config = with_resolution(resolve_config("faster_vit_0_224"), (side, side))
    linear = sum(depth * 12 * dim**2 * count for depth, dim, count, _ in tokens(config)) + 512 * 1000
    attention = sum(depth * 2 * dim * count**2 for depth, dim, count, _ in tokens(config))
    for name in ("global", "global-explicit"):
        found = counted(name, config)
        assert (found.linear, found.attention) == (linear, attention)


@pytest.mark.parametrize("side", SIZES)
def test_products_of_fastervit_are_those_of_windows_and_carriers(side: int) -> None:
    config = with_resolution(resolve_config("faster_vit_0_224"), (side, side))
    found, windows = counted("fastervit", config), counted("windows", config)
    geometry, depth, dim = config.geometry(2), config.depths[2], config.stage_dim(2)
    carriers = 4 * geometry.windows
    seen = geometry.windows * (53**2 - 49**2)  # pairs within windows that have a carrier in them
    assert found.attention - windows.attention == depth * 2 * dim * (seen + carriers**2)
    assert found.linear - windows.linear == depth * 12 * dim**2 * (carriers + carriers)  # globally, and in the windows
    assert found.convolutions - windows.convolutions == 9 * dim * geometry.windows * 49  # depthwise, where they begin


def test_convolutions_are_the_same_for_all_and_linear_in_pixels() -> None:
    config = resolve_config("faster_vit_0_224")
    counts = {name: counted(name, config) for name in NETWORKS if name not in ("fastervit", "vit")}
    assert len({found.convolutions for found in counts.values()}) == 1
    double = counted("global", with_resolution(config, (448, 448)))
    assert double.convolutions == 4 * counts["global"].convolutions
    maps = {
        112: 9 * 3 * 64,
        56: 9 * 64 * 64 * (1 + 4),
        28: 9 * (64 * 128 + 6 * 128 * 128),
        14: 9 * 128 * 256,
        7: 9 * 256 * 512,
    }
    assert counts["global"].convolutions == sum(side**2 * weights for side, weights in maps.items())


def test_products_of_the_isotropic_vit() -> None:
    config = with_resolution(resolve_config("faster_vit_0_224"), (320, 320))
    found, dim, depth, count = counted("vit", config), 448, 13, 20 * 20
    assert found.convolutions == count * dim * 3 * 16 * 16
    assert found.linear == depth * 12 * dim**2 * count + dim * 1000
    assert found.attention == depth * 2 * dim * count**2
    assert found.attention_share == found.attention / (found.convolutions + found.linear + found.attention)


def test_peak_memory_is_what_is_alive_at_once() -> None:
    images = torch.zeros(256, 1024)  # 1 MiB
    size = images.numel() * images.element_size()
    assert peak_bytes(lambda: None, CPU) == 0
    assert peak_bytes(lambda: images.clone(), CPU) == size
    assert peak_bytes(lambda: images.clone().relu().neg(), CPU) == 2 * size  # each lets go of the one before
    kept = peak_bytes(lambda: [images.clone() for _ in range(5)], CPU)
    assert kept == 5 * size


def test_scores_in_memory_show_as_memory_and_the_fused_kernel_has_none() -> None:
    plan = Plan(
        model="faster_vit_digits_m", sizes=(256, 512), networks=("global", "global-explicit"), seconds=0.01, rounds=2
    )
    cells, _ = measure_resolutions(plan, CPU)
    fused, explicit = cells[1], cells[3]
    scores = 2 * (512 // 16) ** 4 * 4  # two heads of stage 2, float32
    assert explicit.resolution == 512 and explicit.memory_bytes is not None and fused.memory_bytes is not None
    assert explicit.memory_bytes > 2 * scores > fused.memory_bytes


def test_a_turn_has_an_untimed_call_and_at_least_so_many_others() -> None:
    calls: list[int] = []
    samples = call_seconds(lambda: calls.append(1), CPU, 0.0, least=3)
    assert (len(samples), len(calls)) == (3, 4)
    assert all(seconds >= 0 for seconds in samples)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_exponents_of_power_laws_are_found(power: float) -> None:
    sizes = [224, 320, 512, 1024]
    assert exponent(sizes, [3e-9 * (side * side) ** power for side in sizes]) == pytest.approx(power, abs=1e-9)
    with pytest.raises(FasterViTError, match="two sizes at least"):
        exponent([224, 224], [1.0, 2.0])


def made(network: str, side: int, seconds: list[float], memory: int = 2**20) -> Cell:
    cell = Cell(network, side, 31, MultiplyAdds(0, side**2, side**4 // 10**6), memory_bytes=memory)
    cell.rounds = [[value, value, value] for value in seconds]
    return cell


def test_growth_of_the_upper_half_tells_where_a_curve_bends() -> None:
    sides = (256, 512, 1024, 2048)
    cells = [made("global", side, [side**2 + side**4 / 1e6] * 2, memory=8 * side**2) for side in sides]
    rows = {(row.quantity, row.from_resolution): row for row in growth_rows(cells)}
    assert set(rows) == {(name, start) for name in ("time", "memory", "multiply-adds") for start in (256, 1024)}
    assert rows["memory", 256].exponent == rows["memory", 1024].exponent == 1
    assert 1 < rows["time", 256].exponent < rows["time", 1024].exponent < 2
    assert rows["time", 1024].sizes == 2


def test_the_spread_of_an_exponent_is_that_of_rounds() -> None:
    rounds = [1.0, 1.5, 2.0]  # the power in each
    cells = [made("vit", side, [float(side) ** (2 * power) for power in rounds]) for side in (100, 200)]
    row = next(row for row in growth_rows(cells) if row.quantity == "time")
    assert (row.exponent, row.exponent_p20, row.exponent_p80) == (1.5, 1.2, 1.8)


def test_ratios_are_taken_within_a_round() -> None:
    drifting = [1.0, 4.0, 0.5, 2.0]
    cells = [made("fastervit", 224, drifting), made("vit", 224, [3 * value for value in drifting], memory=2**21)]
    own, other = resolution_rows(cells, CONDITIONS)
    assert (other.time_over_fastervit, other.time_over_fastervit_p20, other.time_over_fastervit_p80) == (3, 3, 3)
    assert own.time_over_fastervit == 1
    assert (other.latency_ms, other.fastest_ms, other.rounds, other.samples) == (4500, 1500, 4, 12)
    assert (own.memory_mib, other.memory_over_fastervit) == (1, 2)


def test_what_is_said_follows_from_the_rows() -> None:
    cells = [made("fastervit", side, [1.0, 1.0, 1.0]) for side in (224, 1024)]
    cells += [made("global", 224, [0.5, 0.6, 0.7]), made("global", 1024, [2.0, 2.1, 2.2], memory=3 * 2**20)]
    cells += [made("shifted", 224, [0.8, 1.0, 1.2]), made("shifted", 1024, [0.99, 1.0, 1.01])]
    said = findings(resolution_rows(cells, CONDITIONS), growth_rows(cells))
    by_network = {line.split("**")[1]: line for line in said if line.startswith("**")}
    assert "slower beyond 5% at 1024; faster beyond 5% at 224" in by_network["Global attention"]
    assert "2.10 × (2.04–2.16) at 1024" in by_network["Global attention"]
    assert "within 5% or uncertainty everywhere" in by_network["Shifted windows"]
    assert any(line.startswith("From 224 to 1024 time grows") and "global attention 0.41" in line for line in said)
    assert any("Memory at 1024" in line and "global attention 3.00 ×" in line for line in said)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((2.0, 2.0, 2.0, 2.0), "slower beyond 5% at every size"),
        ((0.5, 1.0, 2.0, 2.0), "slower beyond 5% from 896 on; faster beyond 5% at 224"),
        ((2.0, 2.0, 1.0, 0.5), "slower beyond 5% up to 448; faster beyond 5% at 1024"),
        ((1.0, 0.5, 1.0, 0.5), "faster beyond 5% at 448, 1024"),
        ((1.02, 1.0, 0.97, 1.0), "within 5% or uncertainty everywhere"),
    ],
)
def test_sizes_at_which_a_network_is_slower_or_faster(ratios: tuple[float, ...], said: str) -> None:
    sides = (224, 448, 896, 1024)
    cells = [made("fastervit", side, [1.0, 1.0]) for side in sides]
    cells += [made("vit", side, [ratio, ratio]) for side, ratio in zip(sides, ratios, strict=True)]
    lines = findings(resolution_rows(cells, CONDITIONS), growth_rows(cells))
    assert next(line for line in lines if line.startswith("**")).endswith(f"time: {said}.")


def test_a_busy_machine_is_said_on_the_page() -> None:
    cells = [made("fastervit", side, [1.0, 1.0]) for side in (224, 448)]
    quiet, busy = (
        [replace(row, others_cpus=value) for row in resolution_rows(cells, CONDITIONS)] for value in (0.05, 1.3)
    )
    assert "not to be trusted" not in render_page(quiet, growth_rows(cells), "command")
    assert "Other processes used 1.3 CPUs" in render_page(busy, growth_rows(cells), "command")


def test_a_size_without_room_is_not_tried_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: free)
    plan = Plan(model="faster_vit_digits_s", sizes=(128, 64, 96), networks=("vit",), seconds=0.01, rounds=2)
    free = 2**40
    taken = measure_resolutions(plan, CPU)[0][0].memory_bytes
    assert taken is not None
    free = int(taken * (96 / 64) ** 3)  # enough for what grows with the pixels, not for what grows with their square
    cells, conditions = measure_resolutions(plan, CPU)
    assert [bool(cell.rounds) for cell in cells] == [True, False, False]
    rows = resolution_rows(cells, conditions)
    assert rows[1].note.startswith("not tried: may need") and rows[2].note == "not tried: 96 had no room"
    assert rows[1].latency_ms is None and rows[1].gmacs > 0
    assert "ViT/16 at 96: not tried" in render_page(rows, growth_rows(cells), "command")


def test_the_command_writes_rows_exponents_figure_and_page(
    command: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "cost"
    options = "--model faster_vit_digits_s --sizes 96,64,224 --seconds 0.01 --rounds 2 --threads 1".split()
    finished = command("fastervit-bench", "resolution", *options, "--output", output)
    assert finished.code == 0, finished.err
    assert {path.name for path in output.iterdir()} == {"rows.csv", "growth.csv", "resolution-cost.png", "README.md"}
    with (output / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["network"], int(row["resolution"])) for row in rows] == [
        (name, side) for name in NETWORKS for side in (64, 96, 224)
    ]
    assert all(float(row["latency_ms"]) > 0 and int(row["samples"]) >= 4 and not row["note"] for row in rows)
    assert all(float(row["memory_mib"]) > 0 and row["threads"] == "1" for row in rows)
    with (output / "growth.csv").open(newline="") as stream:
        growth = list(csv.DictReader(stream))
    assert {row["network"] for row in growth} == set(NETWORKS)
    page = (output / "README.md").read_text()
    assert "--sizes 64,96,224" in page and "| 224 |" in page
    assert (output / "resolution-cost.png").read_bytes().startswith(b"\x89PNG")

    again = command("fastervit-bench", "resolution", *options, "--output", output)
    assert again.code == 2 and "already exists" in again.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sizes 224", "needs two sizes at least"),
        ("--sizes 224,big", "is no list of sides"),
        ("--sizes 16,224", "resolution 16x16 is impossible"),
        ("--model faster_vit_9", "unknown model"),
        ("--networks fastervit,mamba", "no network 'mamba'"),
        ("--precision fp4", "precision 'fp4' is none of"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Callable[..., Finished], tmp_path: Path, options: str, message: str
) -> None:
    finished = command("fastervit-bench", "resolution", *options.split(), "--output", tmp_path / "cost")
    assert finished.code == 2
    assert message in finished.error
    assert list(tmp_path.iterdir()) == []


def test_half_precision_needs_a_gpu() -> None:
    with pytest.raises(FasterViTError, match="fp16 is measured on a GPU"):
        Plan(precision="fp16").check(CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_times_and_memory_are_the_gpus() -> None:
    device = torch.device("cuda", 0)
    plan = Plan(model="faster_vit_digits_m", sizes=(224, 512), precision="fp16", seconds=0.05, rounds=2)
    cells, conditions = measure_resolutions(plan, device)
    assert conditions.device_kind == "cuda"
    assert all(cell.rounds and cell.memory_bytes for cell in cells)
    images = torch.zeros(256, 1024, device=device)
    assert peak_bytes(lambda: images.clone().relu(), device) == 2 * images.numel() * 4
