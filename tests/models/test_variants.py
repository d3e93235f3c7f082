from __future__ import annotations

from typing import Any

import pytest
import torch

from fastervit_trt.errors import FasterViTError
from fastervit_trt.models import create_model, get_variant, list_models
from tests.conftest import fill_from_names

# published name → parameters, state-dict entries
PUBLISHED = {
    "faster_vit_0_224": (31_404_840, 476),
    "faster_vit_1_224": (53_366_696, 550),
    "faster_vit_2_224": (75_923_816, 578),
    "faster_vit_3_224": (159_547_944, 812),
    "faster_vit_4_224": (365_555_712, 812),
    "faster_vit_5_224": (957_520_552, 812),
    "faster_vit_6_224": (1_360_328_872, 1076),
    "faster_vit_4_21k_224": (271_944_224, 520),
    "faster_vit_4_21k_384": (271_944_224, 520),
    "faster_vit_4_21k_512": (271_944_224, 520),
    "faster_vit_4_21k_768": (271_944_224, 520),
    # at 576x960 the carrier grid is not square, so there is no hat_pos_embed
    "faster_vit_0_any_res": (30_609_192, 452),
    "faster_vit_4_21k_224_any_res": (271_944_224, 520),
    "faster_vit_4_21k_384_any_res": (271_944_224, 520),
    "faster_vit_4_21k_512_any_res": (271_944_224, 520),
    "faster_vit_4_21k_768_any_res": (271_944_224, 520),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PUBLISHED[name]


@pytest.mark.parametrize("size", range(7))
def test_any_res_has_the_twins_state_dict_at_224_and_no_carrier_embedding_elsewhere(size: int) -> None:
    with torch.device("meta"):
        fixed = create_model(f"faster_vit_{size}_224").state_dict()
        square = create_model(f"faster_vit_{size}_any_res", 224).state_dict()
        default = create_model(f"faster_vit_{size}_any_res")
    assert {k: v.shape for k, v in square.items()} == {k: v.shape for k, v in fixed.items()}
    assert set(default.state_dict()) == {key for key in fixed if "hat_pos_embed" not in key}
    assert default.config.resolution == ((541, 960) if size == 2 else (576, 960))


def test_every_name_is_registered() -> None:
    names = {f"faster_vit_{size}_{kind}" for size in range(7) for kind in ("224", "any_res")}
    names |= {f"faster_vit_4_21k_{side}{kind}" for side in (224, 384, 512, 768) for kind in ("", "_any_res")}
    assert names == {name for name in list_models() if get_variant(name).shipped_weights is None}


@pytest.mark.parametrize(
    ("fixed", "any_res"),
    [("faster_vit_0_224", "faster_vit_0_any_res"), ("faster_vit_4_21k_384", "faster_vit_4_21k_384_any_res")],
)
def test_any_res_is_preprocessed_like_its_twin(fixed: str, any_res: str) -> None:
    assert get_variant(fixed).preprocessing == get_variant(any_res).preprocessing
    assert get_variant(fixed).preprocessing != get_variant("faster_vit_1_224").preprocessing


@pytest.mark.parametrize("resolution", [449, 450, 64, 65, (64, 999), (541, 960), (333, 500)])
@torch.inference_mode()
def test_every_resolution_works_also_where_floor_and_ceiling_disagree(resolution: int | tuple[int, int]) -> None:
    model = create_model("faster_vit_digits_m", resolution, num_classes=3).eval()
    logits = model(torch.randn(1, 3, *model.config.resolution))
    assert logits.shape == (1, 3)
    assert torch.isfinite(logits).all()


@torch.inference_mode()
def test_retargeted_model_equals_a_constructed_one_and_comes_back() -> None:
    model = fill_from_names(create_model("faster_vit_digits_m"))
    x, wide = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 150, 410)
    before = model(x)
    model.set_resolution((150, 410))
    constructed = fill_from_names(create_model("faster_vit_digits_m", (150, 410)))
    assert torch.equal(model(wide), constructed(wide))
    model.set_resolution((224, 224))
    assert torch.equal(model(x), before)


def test_retargeting_refuses_what_needs_missing_parameters_and_stays_usable() -> None:
    for built, asked, what in (
        ((64, 64), (224, 224), "carrier tokens"),
        ((150, 410), (224, 224), "a carrier position embedding"),
        ((224, 224), (16, 224), "resolution 16x224 is impossible"),
    ):
        model = create_model("faster_vit_digits_s", built).eval()
        with pytest.raises(FasterViTError, match=what):
            model.set_resolution(asked)
        assert model(torch.randn(1, 3, *built)).shape == (1, 10)


def test_carrier_order_matters_on_non_square_grids_only() -> None:
    for resolution, same in (((224, 224), True), ((160, 320), False)):
        models = [
            fill_from_names(create_model("faster_vit_digits_m", resolution, carrier_order=order))
            for order in ("reference", "corrected")
        ]
        x = torch.randn(1, 3, *resolution)
        assert torch.equal(models[0](x), models[1](x)) == same


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (2,), (1, 3)])
@torch.inference_mode()
def test_backbone_yields_the_maps_it_describes(out_indices: tuple[int, ...]) -> None:
    backbone = create_model("faster_vit_0_224", (161, 250), features_only=True, out_indices=out_indices).eval()
    maps = backbone(torch.randn(2, 3, 161, 250))
    assert [info.stage for info in backbone.feature_info] == list(out_indices)
    for info, features in zip(backbone.feature_info, maps, strict=True):
        assert features.shape == (2, info.channels, -(-161 // info.stride), -(-250 // info.stride))
    assert not any(key.startswith(("head", "norm")) for key in backbone.state_dict())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "window exceeds the map": ({"window_size": (7, 7, 28, 7)}, "window 28 of stage 2 exceeds its 14x14 map at 224x224"),
    "carriers exceed the window": ({"ct_size": 8}, "a carrier grid of side 8 does not fit a window of side 7"),
    "stages out of range": ({"features_only": True, "out_indices": (0, 4)}, r"out_indices \(0, 4\) must be increasing"),
    "stages unordered": (
        {"features_only": True, "out_indices": (2, 1)},
        "increasing stage numbers from 0 to 3",
    ),
    "no stages": ({"features_only": True, "out_indices": ()}, "must be increasing"),
    "unknown setting": ({"windows": 7}, "faster_vit_0_224 has no setting 'windows'; it has carrier_order, ct_size"),
    "carrier order": ({"carrier_order": "fixed"}, "carrier order must be one of reference, corrected"),
    "three numbers": ({"resolution": (224, 224, 3)}, "must be one number or"),
    "three windows": ({"window_size": (7, 7, 7)}, "must name a window for each of the four stages"),
}


@pytest.mark.parametrize("kind", BAD)
def test_impossible_models_are_refused(kind: str) -> None:
    settings, message = BAD[kind]
    with pytest.raises(FasterViTError, match=message):
        create_model("faster_vit_0_224", **settings)


def test_every_published_variant_takes_a_step_back_through_all_its_parameters() -> None:
    model = create_model("faster_vit_digits_s", drop_path_rate=0.0).train()
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert idle == []


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(FasterViTError, match=r"unknown model 'fastervit_1'; closest names: .*faster_vit_1_224"):
        create_model("fastervit_1")


@pytest.mark.parametrize("resolution", [0, 31, (224, 16), -5, 100_000])
def test_impossible_resolution_is_refused(resolution: int | tuple[int, int]) -> None:
    with pytest.raises(FasterViTError, match="is impossible: both sides must lie in"):
        create_model("faster_vit_0_224", resolution)


def test_digits_models_have_every_part() -> None:
    for name in (n for n in list_models() if n.startswith("faster_vit_digits")):
        config = get_variant(name).config
        stage = config.geometry(2)
        assert stage.grid == (2, 2)
        assert stage.has_carriers
        assert not config.geometry(3).has_carriers
