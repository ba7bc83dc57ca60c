"""Caches on networks whose blocks run over groups of tokens, past the model's own ``forward``."""

from __future__ import annotations

import pytest
import torch

from polydit.core.acceleration import FORA, RAS, BlockSpan, TaylorSeer, accelerate
from polydit.core.conditioning import KeyValueCache, TokenGroup, TokenGroupDiT, forward_groups, only_itself
from polydit.core.diffusion import Parameterization, ddim
from polydit.core.errors import PolyditError

STEPS = 8


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = TokenGroupDiT(
        conditions={"person": "shared"}, input_size=4, in_channels=2, hidden_size=24, depth=3, num_heads=2, patch_size=1
    )  # fmt: skip
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


@pytest.fixture
def sample(model):
    """Eight Euler steps by hand-made groups; the person's keys and values may be kept."""
    noise, person = torch.randn(2, 1, 2, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
    flow = Parameterization()

    @torch.no_grad()
    def run(keep=True, residuals=None):
        kept = KeyValueCache() if keep else None

        def denoise(x, timestep):
            groups = [TokenGroup("target", x, timestep=timestep), TokenGroup("person", person)]
            looks = only_itself("person")
            return forward_groups(model, groups, looks, residuals=residuals, cache=kept)["target"]

        return ddim(denoise, noise, flow, [1 - i / STEPS for i in range(STEPS + 1)])

    return run


@pytest.mark.parametrize("keep", [True, False])
def test_interval_1_changes_no_bit(model, sample, keep):
    plain = sample(keep)
    for policy in (TaylorSeer(1), FORA(1), BlockSpan(0, None, 1)):
        with accelerate(model, policy) as handle:
            assert torch.equal(sample(keep), plain)
            assert len(handle.report().plan.full_steps) == STEPS


@pytest.mark.parametrize("policy", [TaylorSeer(3), FORA(2), BlockSpan(0, None, 3, order=1)])
def test_steps_are_left_out_beside_kept_conditions(model, sample, policy):
    plain = sample()
    with accelerate(model, policy, strict=True) as handle:
        found = sample()
        report = handle.report()
        assert report.plan.steps == STEPS
        assert report.computed < 0.65 * report.asked
        assert torch.equal(sample(), found)  # a run leaves nothing to the next
        # Without kept conditions the same blocks are left out, of a longer sequence.
        torch.testing.assert_close(sample(keep=False), found, atol=1e-5, rtol=1e-4)
    error = float((found - plain).norm() / plain.norm())
    assert 0 < error < 0.2
    assert torch.equal(sample(), plain)


def test_what_is_refused(model, sample):
    beside = {"target": [torch.zeros(1, 16, 24)] * 3}
    with (
        accelerate(model, BlockSpan(0, None, 2)),
        pytest.raises(PolyditError, match="side branch adds its own"),
    ):
        sample(residuals=beside)
    with accelerate(model, FORA(2)):
        sample(residuals=beside)
    with accelerate(model, RAS(0.5)), pytest.raises(PolyditError, match="several groups"):
        sample()


def test_a_run_that_breaks_off_leaves_nothing(model, sample):
    plain = sample()
    with accelerate(model, FORA(2)):
        whole = sample()

        def stop(*_):
            raise KeyboardInterrupt

        hook = model.blocks[1].norm1.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            sample()
        hook.remove()
        assert torch.equal(sample(), whole)
    assert torch.equal(sample(), plain)
