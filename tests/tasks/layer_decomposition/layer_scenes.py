"""Networks small enough for a test, and scenes whose layers are known; for the tests beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from polydit.core.alpha import recompose
from polydit.core.conditioning.layer_group_dit import LayerGroupDiT


def wake(model: torch.nn.Module, seed: int = 0, amount: float = 0.1) -> torch.nn.Module:
    """Random weights where the initialisation has zeros, so that every path of the network is open."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def small_dit(channels: int = 4, conditions: dict[str, int] | None = None, **options: Any) -> LayerGroupDiT:
    torch.manual_seed(0)
    return LayerGroupDiT(
        conditions=conditions or {"image": 4, "mask": 7},
        **{
            "input_size": 16, "patch_size": 4, "in_channels": channels, "hidden_size": 24, "depth": 2, "num_heads": 1,
            "position": "rope", "norm": "none", "qk_norm": "rms", "modulation": "adaln_single", "gate_init": 0.5,
            **options,
        },
    )  # fmt: skip


def scene(height: int = 32, width: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """A soft rectangle with a shadow at its right over noise, as float tensors in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    background = torch.rand(3, height, width, generator=generator) * 0.4 + 0.2
    alpha, shade = torch.zeros(1, height, width), torch.zeros(1, height, width)
    top, bottom, left, right = height // 4, 3 * height // 4, width // 4, width // 2
    alpha[:, top:bottom, left:right] = 1
    alpha[:, top, left:right] = 0.6
    shade[:, height // 2 : bottom, left : right + width // 4] = 0.4
    colour = torch.rand(3, 1, 1, generator=generator).expand(3, height, width)
    total = 1 - (1 - alpha) * (1 - shade)
    foreground = torch.cat([alpha * colour / total.clamp(min=1e-6), total])
    image = recompose(background, foreground)
    return {"image": image, "background": background, "foreground": foreground, "mask": (alpha > 0.5).float()}


def picture_files(folder: Path, part: dict[str, Tensor], stem: str = "a") -> tuple[Path, Path]:
    """A scene's picture and mask as PNG files ``<folder>/<stem>.png`` and ``<folder>/masks/<stem>.png``."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    image = (part["image"] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(image).save(folder / f"{stem}.png")
    Image.fromarray((part["mask"][0] * 255).byte().numpy()).save(folder / "masks" / f"{stem}.png")
    return folder / f"{stem}.png", folder / "masks" / f"{stem}.png"
