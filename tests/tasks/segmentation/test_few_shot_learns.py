"""A tiny network learns to find what the support marks; one that cannot see the supports cannot."""

from __future__ import annotations

import torch

from polydit.core.conditioning import ReferenceDiT
from polydit.tasks.segmentation.few_shot.formulation import Formulation
from polydit.tasks.segmentation.few_shot.model import FewShotSegmentation


def paint(colours: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, 16, 16) with two squares in different quarters, and the mask of the first square."""
    count = len(colours)
    picture = torch.zeros(count, 3, 4, 4)
    mask = torch.zeros(count, 1, 4, 4)
    for row in range(count):
        first, second = torch.randperm(4, generator=generator)[:2].tolist()
        for number, quarter in enumerate((first, second)):
            top, left = 2 * (quarter // 2), 2 * (quarter % 2)
            picture[row, :, top : top + 2, left : left + 2] = colours[row, number, :, None, None]
        mask[row, 0, 2 * (first // 2) : 2 * (first // 2) + 2, 2 * (first % 2) : 2 * (first % 2) + 2] = 1
    return tuple(t.repeat_interleave(4, -1).repeat_interleave(4, -2) for t in (picture, mask))


def episodes(count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The class is a colour, never seen twice; both pictures show it beside the same other one."""
    colours = torch.rand(count, 2, 3, generator=generator) * 2 - 1
    query, query_mask = paint(colours, generator)
    support, support_mask = paint(colours, generator)
    return {
        "query": query,
        "query_mask": query_mask,
        "support": support[:, None],
        "support_mask": support_mask[:, None],
    }


def overlap_after_training(hide: bool) -> float:
    torch.manual_seed(0)
    backbone = ReferenceDiT(
        reference_channels=6, input_size=16, patch_size=4, in_channels=3, hidden_size=32, depth=3, num_heads=2,
        position="rope", gate_init=0.5, qk_norm="rms", norm="rms",
    )  # fmt: skip
    module = FewShotSegmentation(
        backbone,
        formulation=Formulation(size=16, threshold=0.5, relative=False),
        hide_supports=hide,
        overlap_weight=0.3,
    )
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=3e-3, betas=(0.9, 0.99))
    pool = episodes(1024, generator)
    for step in range(150):
        rows = torch.randint(0, 1024, (32,), generator=generator)
        terms, _ = module.losses({name: value[rows] for name, value in pool.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (150 - step) / 60)
        optimizer.step()
    module.eval()
    held_out = episodes(64, generator)
    with torch.no_grad():
        _, output = module.losses(held_out)
        found = module.formulation.cut(module.formulation.decode_mask(output.x0, module.space))
    truth = held_out["query_mask"] > 0.5
    both, either = (part.flatten(1).sum(1) for part in (found & truth, found | truth))
    return float((both / either.clamp(min=1)).mean())


def test_supports_tell_which_of_two_things_is_meant():
    seen, hidden = overlap_after_training(False), overlap_after_training(True)
    assert hidden < 0.6, "both squares look alike to a network that is told nothing"
    assert seen > hidden + 0.2
    assert seen > 0.75
