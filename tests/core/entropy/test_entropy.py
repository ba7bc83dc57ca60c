"""Priors, passes and fixed-point arithmetic of learned codecs."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from polydit.core.entropy import (
    UNIT,
    DepthConvBlock,
    FactorizedPrior,
    QuadtreeContext,
    WSiLU,
    gaussian_bits,
    make_exact,
    noisy,
    pass_masks,
    round_through,
    scale_tables,
    squeeze,
    unsqueeze,
)
from polydit.core.entropy.fixed_point import CURVES, curve_values
from polydit.core.entropy.gaussian import counts_of, gaussian_likelihood, scale_ladder
from polydit.core.entropy.quadtree import HalfTanh, Rounding


def test_every_place_is_coded_once_and_evenly():
    masks = pass_masks(8, 6, 10)
    assert (masks.sum(0) == 1).all()
    assert all(mask.sum() == 8 * 60 / 4 for mask in masks)
    for mask in masks:  # at a place, one group of channels
        assert (mask.unflatten(1, (4, 2)).sum(1) == 1).all()
    assert (pass_masks(4, 1, 1).sum(0) == 1).all()
    halves = pass_masks(4, 2, 2, ((0, 1), (1, 0)))
    assert halves.shape == (2, 1, 4, 2, 2)
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        pass_masks(6, 2, 2)


def test_squeezing_loses_nothing():
    values = torch.randn(2, 8, 3, 5)
    for mask in pass_masks(8, 3, 5):
        small = squeeze(values, mask)
        assert small.shape == (2, 2, 3, 5)
        assert torch.equal(unsqueeze(small, mask), torch.where(mask, values, 0))


def test_rounding_passes_gradients():
    values = torch.tensor([0.4, 1.6, -2.3], requires_grad=True)
    rounded = round_through(values)
    rounded.sum().backward()
    assert torch.equal(rounded, torch.tensor([0.0, 2.0, -2.0]))
    assert torch.equal(values.grad, torch.ones(3))
    offset = noisy(torch.zeros(1000), torch.Generator().manual_seed(0))
    assert -0.5 <= offset.min() < -0.45
    assert 0.45 < offset.max() <= 0.5


def test_a_scale_below_the_bound_can_rise_and_cannot_fall():
    scale = torch.tensor([0.05, 0.05], requires_grad=True)
    likelihood = gaussian_likelihood(torch.tensor([1.0, 0.0]), scale)
    (-likelihood.log()).sum().backward()
    assert scale.grad[0] < 0  # a far value wants a larger scale
    assert scale.grad[1] == 0


def test_tables_give_the_bits_of_their_gaussians():
    radius = 40
    counts = scale_tables(radius)
    assert counts.shape == (64, 82)
    assert (counts.sum(1) == 2**16).all()
    assert counts.min() >= 1
    row = 30  # expected length under the table against that of the exact distribution
    offsets = torch.arange(-radius, radius + 1.0)
    exact = gaussian_bits(offsets, torch.full_like(offsets, float(scale_ladder()[row])))
    mass = 2 ** -exact.double()
    table = -torch.log2(counts[row, :-1] / 2**16)
    assert (mass * table).sum() == pytest.approx(float((mass * exact).sum()), rel=2e-3)


def test_no_machine_can_round_the_tables_otherwise():
    """What an error function or an exponential may be off by is 1e-15; the nearest call is far from that."""
    edges = torch.arange(-40, 42, dtype=torch.float64) - 0.5
    below = torch.special.erfc(-edges / scale_ladder().view(-1, 1) / 2**0.5) / 2
    scaled = (below[:, 1:] - below[:, :-1]) * (2**16 - 82)
    inner = scaled[(scaled > 1e-6)]
    assert (inner - inner.round()).abs().min() > 1e-7
    for kind in CURVES:
        values = curve_values(kind)
        nearest = (values - torch.floor(values) - 0.5).abs()
        assert nearest[values.abs() > 1e-6].min() > 1e-9, kind


def test_counts_keep_every_symbol():
    counts = counts_of(torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]]), bits=8)
    assert counts.tolist()[0] == [254, 1, 1]
    assert (counts.sum(1) == 256).all()


def test_factorized_prior_learns_its_data():
    torch.manual_seed(0)
    prior = FactorizedPrior(2)
    data = torch.randn(8, 2, 16, 16) * torch.tensor([0.5, 4.0]).view(2, 1, 1) + torch.tensor(
        [3.0, -1.0]
    ).view(2, 1, 1)
    densities = torch.optim.Adam([p for n, p in prior.named_parameters() if n != "quantiles"], lr=0.03)
    quantiles = torch.optim.Adam([prior.quantiles], lr=0.1)
    rates = []
    for _ in range(150):
        _, likelihood = prior(data)
        loss = -likelihood.log2().mean()
        rates.append(loss.item())
        densities.zero_grad()
        loss.backward()
        densities.step()
        quantiles.zero_grad()
        prior.quantile_loss().backward()
        quantiles.step()
    assert prior.matrices[0].grad.abs().sum() > 0
    ideal = torch.distributions.Normal(0, torch.tensor([0.5, 4.0]))
    offsets = torch.arange(-40.0, 41).view(-1, 1)
    mass = (ideal.cdf(offsets + 0.5) - ideal.cdf(offsets - 0.5)).clamp(min=1e-12)
    entropy = -(mass * mass.log2()).sum(0).mean()
    assert rates[0] > entropy + 1
    prior.eval()
    rounded, likelihood = prior(data)
    assert -likelihood.log2().mean() < entropy + 0.3
    assert (prior.medians - torch.tensor([3.0, -1.0])).abs().max() < 0.7
    medians = prior.medians.view(1, 2, 1, 1)
    torch.testing.assert_close(rounded - medians, torch.round(data - medians))
    masses = prior.masses(30)
    assert masses.sum(1) == pytest.approx(torch.ones(2).double(), abs=1e-6)
    at_median = prior.likelihood(medians)
    torch.testing.assert_close(masses[:, 30].float(), at_median.flatten(), atol=1e-5, rtol=1e-4)


def test_probabilities_do_not_suffer_under_autocast():
    prior = FactorizedPrior(2).eval()
    values = torch.randn(1, 2, 8, 8) * 4
    _, plain = prior(values)
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed = prior(values)
        bits = gaussian_bits(values, torch.full_like(values, 2.0).bfloat16())
    assert torch.equal(mixed, plain)
    torch.testing.assert_close(bits, gaussian_bits(values, torch.full_like(values, 2.0)))


def test_quantile_loss_moves_only_the_quantiles():
    prior = FactorizedPrior(3)
    prior.quantile_loss().backward()
    assert prior.quantiles.grad.abs().sum() > 0
    assert prior.matrices[0].grad is None


def test_context_of_earlier_passes_is_used_and_of_later_ones_is_not():
    torch.manual_seed(1)
    context = QuadtreeContext(8).eval()
    base, latents = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4) * 3
    masks = pass_masks(8, 4, 4)

    def means(values):
        found = []

        def quantizer(mean, scale, mask):
            found.append(mean)
            return torch.round(values - mean) + mean

        with torch.no_grad():
            context(base, quantizer)
        return found

    before = means(latents)
    for number, mask in enumerate(masks):
        after = means(torch.where(mask, latents + 5, latents))
        for other, (a, b) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(a, b) == (other <= number)


def test_a_decoder_finds_what_the_encoder_coded():
    torch.manual_seed(2)
    context = QuadtreeContext(8).eval()
    base, latents = torch.randn(2, 8, 3, 5), torch.randn(2, 8, 3, 5) * 3
    rounding, file = Rounding(latents), []

    def encode(mean, scale, mask):
        file.append(squeeze(torch.round(latents - mean), mask))
        return rounding(mean, scale, mask)

    def decode(mean, scale, mask):
        return unsqueeze(file.pop(0), mask) + mean

    with torch.no_grad():
        coded, coded_scales = context(base, encode)
        decoded, scales = context(base, decode)
    assert torch.equal(decoded, coded)
    assert torch.equal(scales, coded_scales)
    assert (coded - latents).abs().max() <= 1.0 + 1e-5  # half a step, and a correction below half


NETWORK = """
import torch
from polydit.core.entropy import DepthConvBlock, UNIT, make_exact
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(48, 96, 3, padding=1), nn.GELU(), DepthConvBlock(96), nn.Conv2d(96, 48, 3, padding=1))
x = torch.floor(torch.randn(1, 48, 24, 24, generator=torch.Generator().manual_seed(1)) * 3 * UNIT).double()
exact = make_exact(net)(x)
print(int((exact * torch.arange(exact.numel()).view_as(exact).remainder(9973)).sum()), net(x.float()).sum().item())
"""


def test_exact_networks_do_not_depend_on_threads():
    results = [
        subprocess.run(
            [sys.executable, "-c", NETWORK],
            env={**os.environ, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for threads in ("1", "2")
    ]
    assert results[0][0] == results[1][0]


def test_the_order_of_sums_does_not_matter_to_exact_networks():
    torch.manual_seed(0)
    conv = nn.Conv2d(640, 16, 3, padding=1)
    order = torch.randperm(640)
    shuffled = nn.Conv2d(640, 16, 3, padding=1)
    shuffled.load_state_dict({"weight": conv.weight[:, order], "bias": conv.bias})
    x = torch.floor(torch.randn(1, 640, 8, 8) * UNIT)
    with torch.no_grad():
        assert not torch.equal(conv(x / UNIT), shuffled(x[:, order] / UNIT))  # floating point
    exact, other = make_exact(conv), make_exact(shuffled)
    assert torch.equal(exact(x.double()), other(x[:, order].double()))


@pytest.mark.parametrize(
    "layer", [WSiLU(), nn.GELU(), HalfTanh(), nn.LeakyReLU(0.01), nn.Conv2d(2, 2, 3, padding=1)]
)
def test_exact_layers(layer):
    x = torch.linspace(-20, 20, 2 * 400).view(1, 2, 20, 20)
    whole = torch.floor(x * UNIT).double()
    with torch.no_grad():
        torch.testing.assert_close(
            make_exact(layer)(whole).float() / UNIT, layer(whole.float() / UNIT), atol=3e-3, rtol=1e-4
        )


def test_what_has_no_exact_counterpart_is_refused():
    with pytest.raises(ValueError, match="LayerNorm has no exact counterpart"):
        make_exact(nn.Sequential(nn.Conv2d(1, 1, 1), nn.LayerNorm(4)))
    large = nn.Conv2d(1, 1, 1)
    nn.init.constant_(large.weight, 1e4)
    with pytest.raises(ValueError, match="too large"):
        make_exact(large)


def test_exact_copies_leave_the_network_alone():
    block = DepthConvBlock(4, 8)
    state = {k: v.clone() for k, v in block.state_dict().items()}
    exact = make_exact(block)
    assert isinstance(block.dc[0], nn.Conv2d)
    assert not list(exact.parameters())
    assert all(torch.equal(v, state[k]) for k, v in block.state_dict().items())
