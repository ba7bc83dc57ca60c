from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polydit.core.conditioning import KeyValueCache
from polydit.core.conditioning.layer_group_dit import LayerGroupDiT, layer_looks

CONDITIONS = {"image": 3, "mask": 5}


def build(**options: object) -> LayerGroupDiT:
    torch.manual_seed(0)
    model = LayerGroupDiT(
        conditions=CONDITIONS,
        **{
            "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "depth": 2, "num_heads": 2,
            "position": "rope", "gate_init": 0.5, **options,
        },
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    given = {name: torch.randn(2, c, 8, 8, generator=generator) for name, c in CONDITIONS.items()}
    return torch.randn(2, 8, 8, 8, generator=generator), torch.tensor([300.0, 700.0]), given


def swap(model: LayerGroupDiT) -> None:
    types = model.type_embed
    with torch.no_grad():
        first = types["background"].clone()
        types["background"].copy_(types["foreground"])
        types["foreground"].copy_(first)


@torch.no_grad()
def test_swapping_type_embeddings_swaps_the_layers():
    model = build()
    x, t, given = inputs()
    x = torch.cat([x[:, :4]] * 2, dim=1)  # alike, so that only the type tells them apart
    background, foreground = model(x, t, conditions=given).sample.chunk(2, dim=1)
    assert (background - foreground).abs().max() > 1e-3
    swap(model)
    torch.testing.assert_close(
        model(x, t, conditions=given).sample, torch.cat([foreground, background], dim=1)
    )


@torch.no_grad()
def test_layers_exchange_places_with_their_types():
    model = build()
    x, t, given = inputs()
    background, foreground = model(x, t, conditions=given).sample.chunk(2, dim=1)
    swap(model)
    other = model(torch.cat(x.chunk(2, dim=1)[::-1], dim=1), t, conditions=given).sample
    torch.testing.assert_close(other, torch.cat([foreground, background], dim=1))


@torch.no_grad()
def test_every_group_counts_under_full_attention():
    model = build()
    x, t, given = inputs()
    sample = model(x, t, conditions=given).sample
    for name in CONDITIONS:
        other = model(x, t, conditions={**given, name: given[name] + 1}).sample
        assert (sample - other).abs().amax((1, 2, 3)).min() > 1e-3
    x[:, 4:] += 1
    assert (model(x, t, conditions=given).sample[:, :4] - sample[:, :4]).abs().max() > 1e-3


@torch.no_grad()
def test_in_turn_a_layer_sees_no_later_one():
    model = build(attention="in_turn")
    x, t, given = inputs()
    sample = model(x, t, conditions=given).sample
    later, earlier = x.clone(), x.clone()
    later[:, 4:] += 1
    earlier[:, :4] += 1
    torch.testing.assert_close(model(later, t, conditions=given).sample[:, :4], sample[:, :4])
    assert (model(earlier, t, conditions=given).sample[:, 4:] - sample[:, 4:]).abs().max() > 1e-3


@torch.no_grad()
def test_conditions_are_cached_exactly_where_they_look_only_at_themselves():
    x, t, given = inputs()
    for attention in ("independent", "in_turn"):
        model, cache = build(attention=attention), KeyValueCache()
        for time in (t, t / 2):
            plain = model(x, time, conditions=given).sample
            torch.testing.assert_close(
                model(x, time, conditions=given, cache=cache).sample, plain, atol=2e-5, rtol=1e-5
            )


@torch.no_grad()
def test_a_group_axis_tells_layers_apart_without_types():
    model = build(layer_axis=True, rope_axes_dim=[4, 4, 4])
    for vector in model.type_embed.values():
        vector.zero_()
    x, t, given = inputs()
    x = torch.cat([x[:, :4]] * 2, dim=1)
    background, foreground = model(x, t, conditions=given).sample.chunk(2, dim=1)
    assert (background - foreground).abs().max() > 1e-3


def test_windows_take_all_groups_of_a_place():
    model = build(window_size=2, global_every=2, norm="none", qk_norm="rms", modulation="adaln_single")
    x, t, given = inputs()
    model(x, t, conditions=given).sample.square().mean().backward()
    assert all(p.grad is not None for p in model.type_embed.values())


def test_saved_and_loaded(tmp_path: Path):
    model = build(attention="independent")
    model.save_pretrained(tmp_path)
    again = LayerGroupDiT.from_pretrained(tmp_path).eval()
    x, t, given = inputs()
    with torch.no_grad():
        assert torch.equal(again(x, t, conditions=given).sample, model(x, t, conditions=given).sample)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="attention is 'some'"):
        layer_looks("some", ["a"], [])
    with pytest.raises(ValueError, match="names of their own"):
        LayerGroupDiT(layers=["image"], conditions={"image": 3})
    model = build()
    x, t, given = inputs()
    with pytest.raises(ValueError, match="conditions image; this model has image, mask"):
        model(x, t, conditions={"image": given["image"]})


@torch.no_grad()
def test_own_heads_give_layers_of_their_own(tmp_path: Path):
    model = build(own_heads=True, aligned=True)
    x, t, given = inputs()
    for vector in model.type_embed.values():
        vector.zero_()
    alike = torch.cat([x[:, :4]] * 2, dim=1)
    background, foreground = model(alike, t, conditions=given).sample.chunk(2, dim=1)
    assert background.shape == foreground.shape == (2, 4, 8, 8)
    assert (background - foreground).abs().max() > 1e-3  # the head alone tells them apart
    assert model.config.out_channels == 4
    model.save_pretrained(tmp_path)
    again = LayerGroupDiT.from_pretrained(tmp_path).eval()
    assert torch.equal(again(x, t, conditions=given).sample, model(x, t, conditions=given).sample)


@torch.no_grad()
def test_aligned_conditions_reach_their_place_without_attention():
    x, t, given = inputs()
    changed = {**given, "image": given["image"].clone()}
    changed["image"][:, :, :2, :2] += 1  # one token
    moved = []
    for aligned in (True, False):
        model = build(aligned=aligned)
        for block in model.blocks:  # no attention, no convolution
            block.attn.proj.weight.zero_()
        difference = (model(x, t, conditions=changed).sample - model(x, t, conditions=given).sample).abs()
        moved.append(difference.amax((0, 1)) > 1e-6)
    assert moved[0][:2, :2].all()
    assert moved[0].sum() == 4
    assert not moved[1].any()
