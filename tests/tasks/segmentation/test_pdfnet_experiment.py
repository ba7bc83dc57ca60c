"""Small experiments: that the depth, and the loss that knows of it, do something.

Two discs of one colour lie in a picture; the near one is the object, the other lies in the plane of the background.
"""

from __future__ import annotations

import pytest
import torch

from polydit.core.backbones.pdfnet import PDFNet
from polydit.tasks.segmentation.pdfnet import PDFNetSegmentation, standardized
from polydit.tasks.segmentation.pdfnet_losses import integrity_prior_loss, structure_loss

SIDE, STEPS, BATCH = 32, 60, 8


def scenes(count, generator):
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")

    def between(low, high):
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    def disc(column):
        distance = (x - column - between(-2, 2)) ** 2 + (y - between(8, 24)) ** 2
        return (distance < between(4, 7) ** 2).float()[:, None]

    column = torch.where(torch.rand(count, 1, 1, generator=generator) < 0.5, 8.0, 24.0)
    thing, other = disc(column), disc(SIDE - column)
    both = (thing + other).clamp(max=1)
    ground = torch.rand(count, 3, 1, 1, generator=generator) * 0.5
    ground = ground + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    depth = (x / SIDE * 0.3 + 0.1) * (1 - both) + 0.75 * thing + 0.35 * other
    picture = (ground * (1 - both) + colour * both) * 2 - 1
    return {"picture": picture.clamp(-1, 1), "mask": thing, "depth": depth, "depth_target": depth}, other


def trained(depth):
    """Overlap with the object, and share of the other disc that is taken for it, on unseen scenes."""
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    network = PDFNet(
        encoder="conv", embed_dim=12, widths=(8, 12, 16, 24), depths=(0, 1, 1, 0), strides=(2, 2, 2, 2), tiles=2,
        pool=(1, 1, 1, 2), dropout=0.0,
    )  # fmt: skip
    module = PDFNetSegmentation(network, depth_weight=0.0, side=SIDE)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(STEPS):
        batch, _ = scenes(BATCH, draws)
        if not depth:
            batch["depth"] = torch.zeros_like(batch["depth"])
        optimizer.zero_grad()
        sum(module.losses(batch)[0].values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    batch, other = scenes(64, torch.Generator().manual_seed(99))
    with torch.no_grad():
        seen = batch["depth"] if depth else torch.zeros_like(batch["depth"])
        found = network.eval()(standardized(batch["picture"]), seen).sample.sigmoid()
    hard = found > 0.5
    overlap = (hard & (batch["mask"] > 0)).sum() / (hard | (batch["mask"] > 0)).sum()
    return float(overlap), float((found * other).sum() / other.sum())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_depth_tells_which_of_two_is_the_object():
    (overlap, wrong), (overlap_without, wrong_without) = trained(depth=True), trained(depth=False)
    assert overlap > 0.75
    assert overlap_without < 0.6, "without depth nothing tells the two apart"
    assert wrong < 0.5 * wrong_without


def fitted(integrity):
    """Mean answer on the other disc and on the object, of a logistic regression on colour and depth.

    It has three weights that start at 0 and all pictures in every step, so that nothing but the loss can make a
    difference; a network's own chance is larger than this one.
    """
    batch, other = scenes(16, torch.Generator().manual_seed(0))
    thing, depth = batch["mask"], batch["depth"]
    features = torch.cat([(thing + other).clamp(max=1), depth, torch.ones_like(depth)], 1)
    weights = torch.zeros(3, requires_grad=True)
    for _ in range(120):
        logits = (features * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)
        loss = structure_loss(logits, thing) + integrity * integrity_prior_loss(
            logits.sigmoid(), depth, thing
        )
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - gradient).detach().requires_grad_(True)
    found = logits.detach().sigmoid()
    return float((found * other).sum() / other.sum()), float((found * thing).sum() / thing.sum())


def test_the_integrity_prior_spares_what_lies_at_another_depth():
    without, published, strong = fitted(0.0), fitted(0.5), fitted(2.0)
    assert published[0] < without[0] - 0.01, "after equal steps"
    assert strong[0] < without[0] - 0.05
    assert strong[1] > without[1] - 0.01, "and the object is found all the same"
