"""Side branches: nothing at the start, in the right place later, a model of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydit.core.adapters import LoraOptions, inject_group
from polydit.core.conditioning import SideBranch

T = torch.tensor([0.2, 0.7])
VARIANTS = {
    "plain": {},
    "rope, labels": {"position": "rope", "num_classes": 3, "qk_norm": "rms"},
    "single": {"modulation": "adaln_single", "norm": "rms", "mlp": "swiglu"},
    "text": {"context_dim": 5},
    "variance": {"learn_sigma": True},
    "video": {"input_size": [2, 4, 4], "patch_size": [1, 2, 2]},
}


def inputs(options, noise):
    x = noise(2, 3, *options.get("input_size", [8, 12]))
    more = {"class_labels": torch.tensor([0, 3])} if "num_classes" in options else {}
    if "context_dim" in options:
        more["encoder_hidden_states"] = noise(2, 4, 5, seed=3)
    return x, torch.cat([x, noise(2, 2, *x.shape[2:], seed=1)], dim=1), more


def trained(branch):
    for layer in branch.outputs:
        nn.init.normal_(layer.weight, std=0.2)
    return branch.eval()


@pytest.mark.parametrize("name", list(VARIANTS))
def test_fresh_branch_changes_no_bit(name, make_dit, noise):
    base = make_dit(depth=5, **VARIANTS[name])
    branch = SideBranch.from_base(base, 2, 2).eval()
    x, both, more = inputs(VARIANTS[name], noise)
    hints = branch(both, T, **more)
    assert len(hints) == 5
    plain = base(x, T, **more).sample
    assert torch.equal(base(x, T, block_controlnet_hidden_states=hints, **more).sample, plain)
    hints = trained(branch)(both, T, **more)
    assert (base(x, T, block_controlnet_hidden_states=hints, **more).sample - plain).abs().max() > 1e-2


def test_the_copy_computes_what_the_base_computes(make_dit, noise):
    """With zero condition columns the branch's hidden states are the base's; an output of identity shows them."""
    base = make_dit(depth=4)
    branch = SideBranch.from_base(base, 2, 2)
    x, both, _ = inputs({}, noise)
    seen = []
    for block in base.blocks:
        block.register_forward_hook(lambda m, i, out: seen.append(out))
    base(x, T)
    for layer in branch.outputs:
        nn.init.eye_(layer.weight)
    hints = branch(both, T)
    assert torch.equal(hints[0], seen[0])
    assert torch.equal(hints[2], seen[1])
    for ours, theirs in zip(branch.blocks, base.blocks, strict=False):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p is not q


def test_which_block_serves_which(make_dit, noise):
    base = make_dit(depth=5)
    _, both, _ = inputs({}, noise)
    spread = trained(SideBranch.from_base(base, 2, 2))(both, T)
    assert spread[0] is spread[1] is spread[2]  # 5 blocks over 2: three and two
    assert spread[3] is spread[4]
    assert not torch.equal(spread[0], spread[3])
    named = trained(SideBranch.from_base(base, 2, 2, base_layers=[0, 3]))(both, T)
    assert [hint is not None for hint in named] == [True, False, False, True, False]


def test_masked_tokens_get_exactly_nothing(make_dit, noise):
    base = make_dit()
    branch = trained(SideBranch.from_base(base, 1, 2))
    _, both, _ = inputs({}, noise)
    mask = torch.zeros(2, 1, 8, 12)
    mask[0, :, 3, 5] = 1  # one pixel of token (1, 2)
    free, masked = branch(both, T)[0], branch(both, T, mask=mask)[0]
    touched = torch.zeros(2, 4, 6, dtype=torch.bool)
    touched[0, 1, 2] = True
    touched = touched.flatten(1)
    assert (masked[touched] == 0).all()
    assert torch.equal(masked[~touched], free[~touched])
    torch.testing.assert_close(branch(both, T, mask=mask, scale=0.5)[0], 0.5 * masked)
    assert (branch(both, T, mask=torch.ones(2, 1, 8, 12))[0] == 0).all()


def test_the_branch_trains_and_the_base_does_not(make_dit, noise):
    base = make_dit().requires_grad_(False)
    branch = SideBranch.from_base(base, 2, 2)
    assert [n for n, p in branch.named_parameters() if not p.requires_grad] == ["pos_embed"]
    x, both, _ = inputs({}, noise)
    optimizer = torch.optim.Adam([p for p in branch.parameters() if p.requires_grad], lr=0.01)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    losses = []
    for step in range(12):
        out = base(x, T, block_controlnet_hidden_states=branch(both, T)).sample
        loss = (out - x.flip(-1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:  # zero outputs pass no gradient to the blocks behind them
            assert branch.blocks[0].attn.qkv.weight.grad.abs().max() == 0
            assert branch.outputs[0].weight.grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    dead = [n for n, p in branch.named_parameters() if p.requires_grad and not p.grad.abs().max() > 0]
    assert dead == []
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())


def test_save_and_load(make_dit, noise, tmp_path):
    branch = trained(SideBranch.from_base(make_dit(depth=5), 2, 2, base_layers=[1, 4]))
    branch.save_pretrained(tmp_path)
    other = SideBranch.from_pretrained(tmp_path)
    assert other.config.in_channels == 5
    assert other.config.base_layers == [1, 4]
    _, both, _ = inputs({}, noise)
    for a, b in zip(branch(both, T), other(both, T), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_gradient_checkpointing_changes_nothing(make_dit, noise):
    _, both, _ = inputs({}, noise)
    grads = []
    for checkpointing in (False, True):
        branch = trained(SideBranch.from_base(make_dit(), 2, 2)).train()
        if checkpointing:
            branch.enable_gradient_checkpointing()
        sum(hint.square().mean() for hint in branch(both, T)).backward()
        grads.append([p.grad for p in branch.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_parameter_count_is_the_copied_part_and_the_outputs(make_dit):
    base = make_dit(depth=4)
    branch = SideBranch.from_base(base, 2, 2)
    copied = sum(
        p.numel()
        for n, p in base.named_parameters()
        if not n.startswith(("final_layer", "blocks.2", "blocks.3"))
    )
    width, patch = 24, 4
    assert sum(p.numel() for p in branch.parameters()) == copied + 2 * width * patch + 2 * (
        width * width + width
    )


def test_misuse(make_dit, noise):
    base = make_dit()
    with pytest.raises(ValueError, match="at most as many"):
        SideBranch.from_base(base, 4, 2)
    with pytest.raises(ValueError, match=r"name 2 different blocks of 0\.\.2"):
        SideBranch.from_base(base, 2, 2, base_layers=[1, 1])
    with pytest.raises(ValueError, match="1 residuals for 3 blocks"):
        base(noise(2, 3, 8, 8), T, block_controlnet_hidden_states=[None])
    inject_group(base, LoraOptions(rank=2), "a")
    with pytest.raises(ValueError, match="take its adapters off first"):
        SideBranch.from_base(base, 2, 2)
