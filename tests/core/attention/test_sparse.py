"""Bands and blocks of attention against the dense oracle, and what their log-sum-exp says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polydit.core.attention import band_mask
from polydit.core.attention.sparse import (
    attend_with_lse,
    band_attend,
    block_attend,
    block_attend_flex,
    block_mass,
    expand_blocks,
    row_lse,
    to_blocks,
)


def qkv(length=70, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 3, length, 8, generator=generator, dtype=dtype) for _ in range(3))


def test_the_oracle_is_torchs():
    query, key, value = qkv(dtype=torch.float32)
    mask = band_mask(70, 5)
    for given in (None, mask):
        out, lse = attend_with_lse(query, key, value, given)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=given)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(row_lse(query, key, rows=16), attend_with_lse(query, key, value)[1])
    blind = mask.clone()
    blind[3] = False
    out, lse = attend_with_lse(query, key, value, blind)
    assert not out[:, :, 3].any()
    assert torch.isneginf(lse[:, :, 3]).all()


@pytest.mark.parametrize(("length", "radius"), [(70, 5), (64, 16), (70, 40), (20, 0), (33, 100)])
def test_band(length, radius):
    query, key, value = qkv(length, torch.float32)
    out, lse = band_attend(query, key, value, radius)
    expected, expected_lse = attend_with_lse(query, key, value, band_mask(length, radius))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)


def choose(length, block, seed=1):
    rows = to_blocks(length, block)
    blocks = torch.rand(2, 3, rows, rows, generator=torch.Generator().manual_seed(seed)) > 0.6
    return blocks | torch.eye(rows, dtype=torch.bool)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("length", "block"), [(64, 16), (70, 16), (70, 64)])
@pytest.mark.parametrize("kind", [block_attend, block_attend_flex])
def test_blocks(length, block, kind):
    query, key, value = qkv(length, torch.float32)
    blocks = choose(length, block)
    out, lse = kind(query, key, value, blocks, block)
    expected, expected_lse = attend_with_lse(query, key, value, expand_blocks(blocks, length, length, block))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)
    everything, _ = kind(query, key, value, torch.ones_like(blocks), block)
    torch.testing.assert_close(everything, attend_with_lse(query, key, value)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "block"), [(64, 16), (70, 16)])
def test_mass_of_blocks(length, block):
    query, key, _ = qkv(length, torch.float32)
    mass = block_mass(query, key, row_lse(query, key), block)
    counts = torch.tensor([min(block, length - start) for start in range(0, length, block)]).float()
    torch.testing.assert_close(mass.sum(-1), counts.expand(2, 3, -1))
    weights = (query @ key.mT * 8**-0.5).softmax(-1)
    pad = to_blocks(length, block) * block - length
    explicit = (
        F.pad(weights, (0, pad, 0, pad)).unflatten(3, (-1, block)).unflatten(2, (-1, block)).sum((3, 5))
    )
    torch.testing.assert_close(mass, explicit, atol=1e-5, rtol=1e-5)


def test_an_old_log_sum_exp_ranks_alike():
    """Queries and keys that moved a little: the same blocks are the heavy ones."""
    generator = torch.Generator().manual_seed(2)
    centres = 4 * torch.randn(2, 3, 8, 1, 8, generator=generator)
    query = (centres + torch.randn(2, 3, 8, 16, 8, generator=generator)).flatten(2, 3)
    key = (centres + torch.randn(2, 3, 8, 16, 8, generator=generator)).flatten(2, 3)
    old = row_lse(query, key)
    query, key = (t + 0.03 * torch.randn(t.shape, generator=generator) for t in (query, key))
    fresh, stale = (block_mass(query, key, lse, 16) for lse in (row_lse(query, key), old))
    agree = fresh.topk(2, dim=-1).indices.sort(-1).values == stale.topk(2, dim=-1).indices.sort(-1).values
    assert agree.float().mean() > 0.95
