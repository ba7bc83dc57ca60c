"""DiffFit: nothing changes at the start, only the named parts learn, and merging is exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polydit.core.adapters.difffit import DiffFit
from polydit.core.backbones import DiT
from polydit.core.backbones.dit_3d import make_dit_3d

CALL = (torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 50, 400, 900]))
LABELS = torch.tensor([0, 1, 2, 0])


def model(norm="rms"):
    torch.manual_seed(0)
    made = DiT(input_size=8, hidden_size=24, depth=2, num_heads=2, num_classes=3, norm=norm).eval()
    for parameter in made.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return made


def run(made):
    return made(*CALL, LABELS).sample


def test_nothing_changes_at_the_start_and_the_named_parts_learn():
    base = model()
    before = run(base)
    fit = DiffFit(base)
    assert torch.equal(run(base), before)
    run(base).square().sum().backward()
    learning = {name for name, p in base.named_parameters() if p.grad is not None}
    kinds = {name.rsplit(".", 1)[1] for name in learning - {"label_embed.table.weight"} if "norm" not in name}
    assert kinds == {"bias"}
    assert "label_embed.table.weight" in learning
    assert "blocks.0.norm1.weight" in learning
    assert all(scale.grad.abs().sum() > 0 for scale in fit.scales.values())
    fit.remove()
    with torch.no_grad():
        fit.scales["0_attn"].fill_(9)
    assert torch.equal(run(base), before)


def test_the_gradient_of_a_scale_is_that_of_what_it_scales():
    base = model()
    fit = DiffFit(base)
    kept = {}
    base.blocks[1].mlp.register_forward_hook(lambda m, i, o: (o.retain_grad(), kept.update(out=o))[0])
    run(base).square().sum().backward()
    expected = (kept["out"].grad * kept["out"]).sum((0, 1))  # the scale is 1
    torch.testing.assert_close(fit.scales["1_mlp"].grad, expected, rtol=1e-4, atol=1e-4)


def test_merging_is_exact():
    base = model()
    fit = DiffFit(base)
    with torch.no_grad():
        for scale in fit.scales.values():
            scale.uniform_(0.5, 1.5)
    plain = fit.merged(base)
    with torch.no_grad():
        torch.testing.assert_close(run(plain), run(base), atol=1e-4, rtol=1e-5)
    assert plain.state_dict().keys() == model().state_dict().keys()


def test_it_learns_what_biases_alone_do_not():
    """The same steps towards the target of a model whose branches are scaled: scales find it."""
    goal = model("layer")
    with torch.no_grad():
        for block in goal.blocks:
            block.attn.proj.weight.mul_(1.6)
            block.mlp.fc2.weight.mul_(0.4)
        target = run(goal)

    def fitted(with_scales):
        base = model("layer")
        fit = DiffFit(base)
        parameters = [p for p in base.parameters() if p.requires_grad]
        if with_scales:
            parameters += list(fit.parameters())
        optimizer = torch.optim.Adam(parameters, lr=0.02)
        for _ in range(60):
            loss = (run(base) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert fitted(True) < 0.8 * fitted(False)


def test_the_share_of_dit_3d():
    with torch.device("meta"):
        small = make_dit_3d("DiT-3D-S/4")
        fit = DiffFit(small)
    # Biases of each block: 3 + 1 + 4 + 1 widths, and 6 of its modulation; 2 scales.
    blocks = 12 * (9 + 6 + 2) * 384
    rest = 384 + 2 * 384 + 2 * 384 + (64 * 3 + 2 * 384)  # patches, time, labels, head
    assert fit.count(small) == blocks + rest
    assert fit.count(small) / sum(p.numel() for p in small.parameters()) < 0.003
    with pytest.raises(ValueError, match="no blocks"):
        DiffFit(nn.Linear(2, 2))


def test_a_copy_of_the_model_is_independent():
    base = model()
    fit = DiffFit(base)
    plain = fit.merged(base)
    before = copy.deepcopy(plain.state_dict())
    with torch.no_grad():
        base.blocks[0].attn.proj.bias.add_(1)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in before.items())
