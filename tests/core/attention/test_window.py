"""Window attention equals dense attention under the window's mask."""

import itertools

import pytest
import torch

from polydit.core.attention import attend, window_attention, window_mask


def tensors(tokens, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, tokens, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


CASES = [
    ((8, 8), (4, 4)),
    ((8, 12), (4, 2)),
    ((5, 7), (2, 3)),  # padded on both axes
    ((6, 5), (3, 4)),  # padded on one
    ((3, 3), (8, 8)),  # a window larger than the grid
    ((4, 4, 6), (2, 4, 3)),
    ((3, 5, 4), (2, 2, 2)),
]


@pytest.mark.parametrize(("grid", "window"), CASES)
@pytest.mark.parametrize("sequences", [1, 2])
def test_equals_dense_attention_under_the_mask(grid, window, sequences):
    tokens = torch.tensor(grid).prod().item()
    query, key, value = (t.requires_grad_() for t in tensors(sequences * tokens))
    out = window_attention(query, key, value, grid, window)
    mask = window_mask(grid, window).repeat(sequences, sequences)
    dense = attend(query, key, value, mask)
    torch.testing.assert_close(out, dense)
    for a, b in zip(
        torch.autograd.grad(out.square().sum(), (query, key, value)),
        torch.autograd.grad(dense.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("grid", "window"), CASES)
def test_bfloat16_stays_close(grid, window):
    tokens = torch.tensor(grid).prod().item()
    half = window_attention(*tensors(tokens, torch.bfloat16), grid, window)
    assert half.dtype == torch.bfloat16
    assert (half.double() - window_attention(*tensors(tokens), grid, window)).abs().max() < 0.05


def test_padding_passes_no_gradient_and_no_nan():
    query, key, value = (t.requires_grad_() for t in tensors(35))
    window_attention(query, key, value, (5, 7), (4, 4)).sum().backward()
    assert all(t.grad.isfinite().all() for t in (query, key, value))
    torch.testing.assert_close(value.grad.sum(2), torch.full((2, 3, 8), 35.0, dtype=torch.float64))


def test_mask_is_the_definition():
    grid, window = (4, 6), (2, 3)
    cells = [(r // 2, c // 3) for r, c in itertools.product(range(4), range(6))]
    expected = torch.tensor([[a == b for b in cells] for a in cells])
    assert torch.equal(window_mask(grid, window), expected)
