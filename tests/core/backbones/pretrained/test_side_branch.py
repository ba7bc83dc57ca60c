"""A side branch on every family: nothing at the start, the condition after a step, the base untouched."""

from __future__ import annotations

import pytest
import torch

from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.conditioning import PretrainedSideBranch, SideBranch


@pytest.fixture
def pair(checkpoint):
    """A frozen base, a fresh branch of one block that reads two channels more, and inputs."""
    base = adapt_transformer(checkpoint.build()).requires_grad_(False)
    return base, SideBranch.from_base(base, depth=1, condition_channels=2).train(), checkpoint.inputs()


def answer(base, branch, inputs, seed=1, **options):
    x, t, condition = inputs
    extra = torch.randn(x.shape[0], 2, *x.shape[2:], generator=torch.Generator().manual_seed(seed))
    residuals = branch(torch.cat([x, extra], dim=1), t, **options, **condition)
    return base(x, t, block_controlnet_hidden_states=residuals, **condition).sample


def fill(branch):
    """Outputs as if they were trained, and weights for the condition."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def test_a_fresh_branch_adds_nothing_and_a_step_later_it_does(pair):
    base, branch, inputs = pair
    x, t, condition = inputs
    with torch.no_grad():
        plain = base(x, t, **condition).sample
        assert torch.equal(answer(base, branch, inputs), plain)
    trained = [p for p in branch.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    for _ in range(2):  # the first step moves the zero outputs, the second what lies behind them
        optimizer.zero_grad()
        answer(base, branch, inputs).square().mean().backward()
        assert all(p.grad is None for p in base.parameters())
        optimizer.step()
    with torch.no_grad():
        first, second = answer(base, branch, inputs, seed=1), answer(base, branch, inputs, seed=2)
        assert (first - plain).abs().max() > 1e-4
        assert (first - second).abs().max() > 1e-6
        assert torch.equal(base(x, t, **condition).sample, plain)
        assert torch.equal(answer(base, branch, inputs, scale=0.0), plain)


def test_every_weight_of_the_branch_has_a_part_in_what_it_adds(pair):
    base, branch, inputs = pair
    fill(branch)
    answer(base, branch, inputs).square().sum().backward()
    unused = {name for name, p in branch.named_parameters() if p.requires_grad and p.grad is None}
    # of the last block, what only its text would have needed
    text = (
        "add_q_proj",
        "to_add_out",
        "norm_added_q",
        "ff_context",
        "txt_mlp",
        "norm1_context",
        "norm2_context",
    )
    assert all(any(part in name for part in text) for name in unused), unused


def test_saved_and_read_back(pair, tmp_path):
    base, branch, inputs = pair
    fill(branch)
    branch.save_pretrained(tmp_path)
    again, info = PretrainedSideBranch.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(answer(base, again, inputs), answer(base, branch.eval(), inputs))


def test_residuals_survive_checkpointing(family):
    base = adapt_transformer(family.build())
    branch = SideBranch.from_base(base, depth=len(base.blocks) - 1, condition_channels=2)
    fill(branch)
    inputs = family.inputs()

    def gradients():
        base.zero_grad()
        branch.zero_grad()
        answer(base, branch, inputs).square().mean().backward()
        both = [*base.named_parameters(), *branch.named_parameters()]
        return {name: p.grad.clone() for name, p in both if p.grad is not None}

    expected = gradients()
    base.enable_gradient_checkpointing()
    branch.enable_gradient_checkpointing()
    found = gradients()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_tokens_that_touch_the_mask_get_nothing(family):
    base = adapt_transformer(family.build())
    branch = SideBranch.from_base(base, depth=1, condition_channels=2)
    fill(branch)
    x, t, condition = family.inputs()
    mask = torch.zeros(len(x), 1, *x.shape[2:])
    mask[..., 0, 0] = 1
    with torch.no_grad():
        residuals = branch(torch.cat([x, x[:, :2]], dim=1), t, mask=mask, **condition)
    grid = base.grid_of(x)
    tokens = residuals[0].abs().sum(-1).view(len(x), *grid)
    assert (tokens[..., 0, 0] == 0).all()
    assert (tokens[..., 1:, :] > 0).all()


def test_layers_of_the_base_can_be_named(families):
    base = adapt_transformer(families["flux"].build())
    branch = SideBranch.from_base(base, depth=2, condition_channels=2, base_layers=[0, 2])
    x, t, condition = families["flux"].inputs()
    residuals = branch(torch.cat([x, x[:, :2]], dim=1), t, **condition)
    assert [r is None for r in residuals] == [False, True, False]
    assert [type(block).__name__ for block in branch.branch.blocks] == [
        "FluxTransformerBlock",
        "FluxSingleTransformerBlock",
    ]
    with pytest.raises(ValueError, match="2 values to add for 3 blocks"):
        base(x, t, block_controlnet_hidden_states=residuals[:2], **condition)
    with pytest.raises(ValueError, match="a branch of 4 blocks on a base of 3"):
        SideBranch.from_base(base, depth=4, condition_channels=2)
    with pytest.raises(ValueError, match=r"base_layers \[1, 1\]: name 2 different blocks of 0..2"):
        SideBranch.from_base(base, depth=2, condition_channels=2, base_layers=[1, 1])


def test_all_blocks_may_be_copied(family):
    base = adapt_transformer(family.build())
    branch = SideBranch.from_base(base, depth=len(base.blocks), condition_channels=1)
    assert len(branch.branch.blocks) == len(base.blocks)
