"""Noise and times that belong to a sample's number, so that they do not depend on who draws them.

The same run on one process or on several, straight or resumed, sees the same noise for the same sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.objective import Objective

__all__ = ["training_draws", "validation_draws"]

VALIDATION_SEED = 20_240_229
BLOCK = 64
"""Times are drawn for this many neighbours at once: one call for each sample would take longer than a small step."""


def training_draws(objective: Objective, x0: Tensor, seed: int, numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Noise and times of training samples.

    Args:
        objective: How times are drawn.
        x0: Clean data (B, C, ...).
        seed: Of the run.
        numbers: Of the samples, B of them, counted over the whole run and all processes.

    Returns:
        Noise like x0, from the generator of its device, and times (B,).
    """
    generator = torch.Generator(x0.device)
    noise = torch.empty_like(x0)
    for row, number in zip(noise, numbers, strict=True):
        row.normal_(generator=generator.manual_seed(mix(seed, 2 * number)))
    clock = torch.Generator()
    blocks = {
        block: objective.draw_times(BLOCK, clock.manual_seed(mix(seed, 2 * block + 1)))
        for block in {number // BLOCK for number in numbers}
    }
    times = torch.stack([blocks[number // BLOCK][number % BLOCK] for number in numbers])
    return noise, times.to(x0.device, non_blocking=True)


def validation_draws(objective: Objective, x0: Tensor, numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Noise and times that depend on nothing but the sample's number in the held-out set.

    The loss of two checkpoints, of two runs or at two batch sizes can then be compared, also between devices, since
    the draws are made on the CPU.

    Args:
        objective: How times are drawn.
        x0: Clean data (B, C, ...).
        numbers: Of the samples in the held-out set, B of them.

    Returns:
        Noise like x0 and times (B,).
    """
    noise, times = [], []
    for number in numbers:
        generator = torch.Generator().manual_seed(VALIDATION_SEED + number)
        times.append(objective.draw_times(1, generator))
        noise.append(torch.randn(x0.shape[1:], generator=generator))
    return torch.stack(noise).to(x0.device, x0.dtype), torch.cat(times).to(x0.device)


def mix(seed: int, number: int) -> int:
    """A seed out of two (splitmix64): generators with neighbouring seeds begin alike."""
    state = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & (2**64 - 1)
    return (state ^ (state >> 31)) & (2**63 - 1)
