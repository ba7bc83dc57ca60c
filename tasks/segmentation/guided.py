"""The guided filter: a coarse mask gets the edges of the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["guided_upsample", "uncertainty"]


def guided_upsample(mask: Tensor, picture: Tensor, radius: int = 4, eps: float = 1e-3) -> Tensor:
    """Enlarge a mask to a picture's size; near its rim it follows the picture's edges.

    "Guided Image Filtering" (He, Sun, Tang) with colour guidance in its fast form: the mask is a linear function of
    the colours in every window at the mask's size, and that function is enlarged (arXiv 1505.00996). Away from the
    rim the mask is only enlarged.

    Args:
        mask: (B, 1, h, w) in [0, 1].
        picture: (B, 3, H, W) in [-1, 1].
        radius: of the windows, in pixels of the mask.
        eps: how strong an edge has to be.

    Returns:
        (B, 1, H, W) in [0, 1], float32.
    """
    small = F.interpolate(
        picture.float(), mask.shape[-2:], mode="bilinear", antialias=True, align_corners=False
    )
    mask = mask.float()
    mean_i, mean_p = _box(small, radius), _box(mask, radius)
    covariance = _box(small * mask, radius) - mean_i * mean_p  # (B, 3, h, w)
    products = _box((small[:, :, None] * small[:, None]).flatten(1, 2), radius).unflatten(1, (3, 3))
    spread = products - mean_i[:, :, None] * mean_i[:, None]
    spread = spread + eps * torch.eye(3).to(spread)[None, :, :, None, None]
    slope = torch.linalg.solve(spread.permute(0, 3, 4, 1, 2), covariance.permute(0, 2, 3, 1)[..., None])
    slope = slope[..., 0].permute(0, 3, 1, 2)
    offset = mean_p - (slope * mean_i).sum(1, keepdim=True)
    line = torch.cat([_box(slope, radius), _box(offset, radius)], dim=1)
    size = picture.shape[-2:]
    line = F.interpolate(line, size, mode="bilinear", align_corners=False)
    filtered = (line[:, :3] * picture.float()).sum(1, keepdim=True) + line[:, 3:]
    plain = F.interpolate(mask, size, mode="bilinear", align_corners=False)
    share = F.interpolate(uncertainty(mask, radius), size, mode="bilinear", align_corners=False)
    return torch.lerp(plain, filtered.clamp(0, 1), share).clamp(0, 1)


def uncertainty(mask: Tensor, radius: int) -> Tensor:
    """Where a mask (B, 1, h, w) is neither all object nor all background within ``radius``: towards 1 there, else 0."""
    kernel = 2 * radius + 1
    high = F.max_pool2d(mask, kernel, 1, radius)
    low = -F.max_pool2d(-mask, kernel, 1, radius)
    return ((high - low) * 2).clamp(0, 1)


def _box(values: Tensor, radius: int) -> Tensor:
    """Mean over (2 radius + 1)^2 pixels, of those within the picture."""
    kernel = 2 * radius + 1
    for size in ((kernel, 1), (1, kernel)):
        padding = (size[0] // 2, size[1] // 2)
        values = F.avg_pool2d(values, size, 1, padding, count_include_pad=False)
    return values
