"""Rotary positions, linear attention and the masks."""

import pytest
import torch

from polydit.core.attention import (
    band_mask,
    block_mask,
    circle_mask,
    dense_linear_attention,
    group_mask,
    linear_attention,
    text_joint_mask,
)
from polydit.core.attention.masks import grid_coordinates
from polydit.core.attention.rotary import RotaryEmbed, apply_rotary, rotary_axes_dim, rotary_table


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- rotary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
def test_products_depend_on_the_distance_only(grid):
    head = 24
    rotary = RotaryEmbed(rotary_axes_dim(head, len(grid)))
    places = grid_coordinates(grid)
    query, key = random(1, 2, len(places), head), random(1, 2, len(places), head, seed=1)

    def products(shift):
        cos, sin = rotary(places + torch.tensor(shift))
        return apply_rotary(query, cos, sin) @ apply_rotary(key, cos, sin).mT

    here = products([0] * len(grid))
    for shift in ([5] * len(grid), [7, *[0] * (len(grid) - 1)], [*[0] * (len(grid) - 1), -3]):
        torch.testing.assert_close(products(shift), here, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(here, query @ key.mT)


def test_norm_is_kept_and_the_origin_is_untouched():
    x = random(2, 3, 12, 16)
    cos, sin = rotary_table(grid_coordinates((3, 4)), (8, 8))
    turned = apply_rotary(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    assert not torch.allclose(turned[:, :, 1:], x[:, :, 1:])


def test_first_half_of_the_head_is_the_row_and_pairs_are_neighbours():
    cos, sin = rotary_table(torch.tensor([[1, 0], [0, 1]]), (8, 8))
    assert (cos[0, 8:] == 1).all()
    assert (cos[1, :8] == 1).all()
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(sin[0, :8], frequencies.sin().repeat_interleave(2))
    x = torch.tensor([1.0, 0.0])
    turned = apply_rotary(x, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert turned.tolist() == [0.0, 1.0]  # (a, b) -> (-b, a) at a quarter turn


def test_channels_beyond_the_table_pass():
    x = random(1, 2, 4, 10)
    cos, sin = rotary_table(grid_coordinates((2, 2)), (4, 4))
    turned = apply_rotary(x, cos, sin)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    torch.testing.assert_close(turned[..., :8], apply_rotary(x[..., :8], cos, sin))


@pytest.mark.parametrize(
    ("head", "axes", "split"), [(72, 2, (36, 36)), (64, 3, (24, 20, 20)), (16, 2, (8, 8)), (10, 2, (6, 4))]
)
def test_split_of_the_head(head, axes, split):
    assert rotary_axes_dim(head, axes) == split
    assert sum(split) == head


def test_table_of_the_largest_published_model():
    cos, _ = rotary_table(grid_coordinates((16, 16)), rotary_axes_dim(72, 2))
    assert cos.shape == (256, 72)


def test_head_that_is_too_narrow_is_named():
    with pytest.raises(ValueError, match="head of 4 channels is too narrow"):
        rotary_axes_dim(4, 3)


# -- linear -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [5, 40])
def test_linear_attention_equals_its_quadratic_form(keys):
    query, key, value = (
        random(2, 3, 17, 8).float(),
        random(2, 3, keys, 8, seed=1).float(),
        random(2, 3, keys, 8, seed=2).float(),
    )
    torch.testing.assert_close(
        linear_attention(query, key, value), dense_linear_attention(query, key, value), atol=1e-5, rtol=1e-5
    )


def test_linear_attention_averages_and_survives_blind_queries():
    query, key = random(1, 1, 6, 4).float().abs(), random(1, 1, 9, 4, seed=1).float().abs()
    query[:, :, 0] = -1
    out = linear_attention(query, key, torch.ones(1, 1, 9, 4))
    torch.testing.assert_close(out[:, :, 1:], torch.ones(1, 1, 5, 4))
    assert out[:, :, 0].abs().max() == 0


# -- masks ------------------------------------------------------------------------------------------------------


def test_circle_is_strict():
    mask = circle_mask((5, 5), 2.0).reshape(5, 5, 5, 5)
    centre = mask[2, 2]
    assert centre.tolist() == [
        [False] * 5,
        [False, True, True, True, False],
        [False, True, True, True, False],
        [False, True, True, True, False],
        [False] * 5,
    ]  # a distance of exactly 2 is out, the diagonal neighbours are in
    assert circle_mask((5, 5), 2.001).reshape(5, 5, 5, 5)[2, 2].sum() == 13
    assert torch.equal(circle_mask((4, 6), 3), circle_mask((4, 6), 3).T)


def test_band():
    mask = band_mask(6, 2)
    assert mask[0].tolist() == [True, True, True, False, False, False]
    assert mask[3].tolist() == [False, True, True, True, True, True]


def test_blocks_and_groups():
    sizes = [2, 1, 3]
    own = block_mask(sizes)
    assert own.sum() == 4 + 1 + 9
    assert torch.equal(group_mask(sizes, torch.eye(3)), own)
    allowed = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1]])
    mask = group_mask(sizes, allowed)
    assert mask[0].tolist() == [True, True, True, False, False, False]
    assert mask[2].tolist() == [False, False, True, False, False, False]
    assert mask[3:].all()


@pytest.mark.parametrize("text_first", [True, False])
def test_text_sees_and_is_seen(text_first):
    mask = text_joint_mask(torch.eye(3).bool(), 2, text_first)
    image = slice(2, 5) if text_first else slice(0, 3)
    text = slice(0, 2) if text_first else slice(3, 5)
    assert torch.equal(mask[image, image], torch.eye(3).bool())
    assert mask[text].all()
    assert mask[:, text].all()
