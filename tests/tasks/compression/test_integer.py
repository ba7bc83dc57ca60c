"""Convolutions over integers are exact, whatever adds them up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polydit.tasks.compression.integer import LIMIT, IntegerConv, compand_table
from polydit.tasks.compression.tables import COUNT_BITS, RADIUS, TABLES, ProbabilityTables, index_of


def layer(channels: int, activation: bool, seed: int = 0) -> IntegerConv:
    conv = IntegerConv(channels, 8, 3, activation, resolution=16)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / 5)
        conv.bias.copy_(torch.randn(8, generator=generator))
    return conv


def integers(channels: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-LIMIT, LIMIT + 1, (1, channels, 9, 7), generator=generator).float()


@pytest.mark.parametrize("activation", [True, False])
def test_the_result_is_that_of_integer_arithmetic(activation: bool):
    conv, values = layer(12, activation), integers(12)
    conv.freeze()
    patches = F.unfold(values, 3, padding=1).to(torch.int64)[0]
    sums = conv.integer_weight.to(torch.int64).flatten(1) @ patches
    scaled = sums * conv.multiplier[:, None] + conv.integer_bias[:, None] + 2**23
    expected = scaled >> 24
    if activation:
        expected = expected.clamp(0, LIMIT)
    assert torch.equal(conv(values)[0].flatten(1).to(torch.int64), expected)


def test_layers_whose_sums_could_lose_bits_use_more():
    """8 bits by 7 bits by 3 x 3 x 640 may reach 9.3e7, which float32 cannot count to."""
    conv = layer(640, False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[:, 0, 0, 0] = 0.99
    conv.freeze()
    assert not conv.fits_float32()
    values = torch.full((1, 640, 3, 3), float(LIMIT))
    values[0, 0, 0, 0] = 126.0
    sums = (conv.integer_weight.to(torch.int64) * values.to(torch.int64)).sum((1, 2, 3))
    assert int(sums[0]) > 2**24
    expected = (sums * conv.multiplier + conv.integer_bias + 2**23) >> 24
    assert torch.equal(conv(values)[0, :, 1, 1].to(torch.int64), expected)


def test_order_and_precision_do_not_matter():
    conv, values = layer(40, True), integers(40)
    conv.freeze()
    expected = conv(values)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    other = layer(40, True)
    with torch.no_grad():
        other.weight.copy_(other.weight[:, shuffled])
    other.freeze()
    assert torch.equal(other(values[:, shuffled]), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(values.bfloat16()).float(), expected)


def test_training_sees_what_coding_does():
    conv, values = layer(12, True), integers(12)
    trained = conv(values)
    conv.freeze()
    assert (trained - conv(values)).abs().max() <= 1
    assert (trained == conv(values)).float().mean() > 0.99
    assert trained.requires_grad


def test_freezing_and_thawing_keep_the_integers():
    conv = layer(12, False)
    conv.freeze()
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    conv.thaw()
    assert [name for name, _ in conv.named_parameters()] == ["weight", "bias"]
    conv.freeze()
    assert torch.equal(conv.integer_weight, state["integer_weight"])
    assert (conv.multiplier - state["multiplier"]).abs().max() <= 2
    assert (conv.integer_bias - state["integer_bias"]).abs().max() <= 2**8


def test_no_companded_value_is_near_a_half():
    """So no machine's logarithm can round it to another integer."""
    values = torch.arange(4096, dtype=torch.float64) / 16
    exact = 24 * torch.log2(1 + values)
    inside = exact < LIMIT
    assert ((exact - exact.floor() - 0.5).abs()[inside]).min() > 1e-6
    table = compand_table(4096)
    assert table[0] == 0
    assert table[-1] == LIMIT
    assert (table.diff() >= 0).all()


def test_tables_are_probabilities_that_widen():
    tables = ProbabilityTables()
    residuals = torch.arange(-RADIUS, RADIUS + 1).float().expand(TABLES, -1)
    index = torch.arange(TABLES).float()[:, None].expand_as(residuals)
    share = (2.0 ** -tables(residuals, index)).sum(1)
    assert (share <= 1 + 1e-5).all()
    assert (tables(residuals, index)[:, RADIUS].diff() > 0).all()
    tables.freeze()
    assert (tables.counts.sum(1) == 2**COUNT_BITS).all()
    assert tables.counts.min() >= 1
    beyond = tables(torch.tensor([500.0]), torch.tensor([20.0]))
    assert 10 < float(beyond) < 60


def test_the_index_finds_the_table_of_a_width():
    """Laplace numbers of a known width cost least with the table that `index_of` names."""
    generator = torch.Generator().manual_seed(0)
    tables = ProbabilityTables()
    for width in (0.5, 3.0, 12.0):
        uniform = torch.rand(20000, generator=generator) - 0.5
        numbers = (-width / 2**0.5 * uniform.sign() * torch.log1p(-2 * uniform.abs())).round()
        costs = [
            float(tables(numbers, torch.full_like(numbers, float(i))).detach().mean()) for i in range(TABLES)
        ]
        best = min(range(TABLES), key=costs.__getitem__)
        assert abs(best - float(index_of(torch.tensor(width)))) <= 2


def test_a_value_rounded_to_zero_draws_its_mean():
    """The gradient of the bits points from the mean to the value, also where the residual is zero."""
    tables = ProbabilityTables()
    offset = torch.tensor([0.4, -0.4, 0.0], requires_grad=True)
    tables(torch.zeros(3), torch.full((3,), 10.0), offset).sum().backward()
    assert offset.grad is not None
    assert offset.grad[0] > 0.1
    assert torch.allclose(offset.grad[0], -offset.grad[1], rtol=0.05)
    assert abs(offset.grad[2]) < 0.05


def test_savings_are_differences_of_bits():
    tables = ProbabilityTables()
    residual = torch.arange(-RADIUS - 2, RADIUS + 3).float()
    for table in (3.0, 40.0):
        index = torch.full_like(residual, table)
        near = residual - residual.sign()
        expected = (tables(residual, index) - tables(near, index)).detach()
        expected[residual.abs() > RADIUS] = 0
        assert torch.allclose(tables.saving(residual, index), expected, atol=1e-5)
