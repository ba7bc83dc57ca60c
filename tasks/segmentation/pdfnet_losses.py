"""PDFNet's losses: structure, similarity, integrity prior, and that of the refined depth.

"Patch-Depth Fusion: Dichotomous Image Segmentation via Fine-Grained Patch Strategy and Depth Integrity-Prior" (arXiv
2503.06100). All take maps (B, 1, H, W) and return a scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.backbones.pdfnet import depth_edges

__all__ = ["integrity_prior_loss", "over_scales", "silog_loss", "ssim_loss", "structure_loss"]

_RIM = 31  # window, in pixels, around which pixels near the outline count more
_SIDE_WEIGHT = 0.5
_WINDOW, _SIGMA = 11, 1.5
_EPS = 1e-6


def over_scales(loss: Callable[[Tensor], Tensor], logits: Sequence[Tensor], size: torch.Size) -> Tensor:
    """The loss of the first logits plus half of that of each other, all brought to ``size`` (height, width)."""
    total = None
    for number, one in enumerate(logits):
        if one.shape[-2:] != size:
            one = F.interpolate(one, tuple(size), mode="bilinear", align_corners=False)
        value = loss(one) * (_SIDE_WEIGHT if number else 1.0)
        total = value if total is None else total + value
    if total is None:
        raise ValueError("no logits")
    return total


def structure_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy plus one minus intersection over union, where pixels near the outline count up to six times."""
    logits, target = logits.float(), target.float()
    around = F.avg_pool2d(target, (_RIM, 1), stride=1, padding=(_RIM // 2, 0))
    around = F.avg_pool2d(around, (1, _RIM), stride=1, padding=(0, _RIM // 2))
    weight = 1 + 5 * (around - target).abs()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (weight * entropy).sum((2, 3)) / weight.sum((2, 3))
    found = logits.sigmoid()
    both = (found * target * weight).sum((2, 3))
    either = ((found + target) * weight).sum((2, 3)) - both
    return (entropy + 1 - (both + _EPS) / (either + _EPS)).mean()


def ssim_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Half of one minus the structural similarity of two maps in [0, 1], with zeros around them."""
    a, b = probability.float(), target.float()
    offset = torch.arange(_WINDOW, device=a.device, dtype=a.dtype) - _WINDOW // 2
    line = torch.exp(-(offset**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    maps = torch.cat([a, b, a * a, b * b, a * b])
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = line.reshape(shape)
        maps = F.conv2d(maps, kernel, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2))
    mean_a, mean_b, aa, bb, ab = maps.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    lower = (mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2)
    return (1 - (upper / lower).mean()) / 2


def integrity_prior_loss(
    probability: Tensor, depth: Tensor, target: Tensor, edges: Tensor | None = None, whole_batch: bool = False
) -> Tensor:
    """Errors that the depth speaks against: false alarms far from the object's mean depth, and misses near to it.

    With depth d, its mean over the object mu, delta = (d - mu)^2 and mask probability m, a background pixel costs
    ``-ln(1 - m) delta m^2 (1 - m)`` and one of the object ``-ln(m) m (1 - m) (1 - delta + delta m)``, plus the cross
    entropy where the depth has edges. The first part vanishes again for confident mistakes, so it only works beside a
    loss such as :func:`structure_loss`.

    Args:
        probability: of the mask.
        depth: in [0, 1].
        target: mask, 0 or 1.
        edges: strength of the depth's edges; None finds them.
        whole_batch: take mu over the whole batch, as the released code does; right for single samples only.
    """
    m, d, g = probability.float(), depth.float(), target.float()
    over = None if whole_batch else (1, 2, 3)
    mean = (d * g).sum(over, keepdim=not whole_batch) / (g.sum(over, keepdim=not whole_batch) + 1e-8)
    right = g * m + (1 - g) * (1 - m)
    surprise = -torch.log(right + 1e-8)
    far = (d - mean) ** 2
    wrong = (1 - right) * (far * m + (1 - far) * g)
    edges = depth_edges(d) if edges is None else edges.float()
    return (surprise * (wrong * right + edges)).mean()


def silog_loss(probability: Tensor, depth: Tensor) -> Tensor:
    """Scale-invariant logarithmic error of a depth in [0, 1]: half of a common factor is forgiven."""
    ratio = torch.log(depth.float() + _EPS) - torch.log(probability.float() + _EPS)
    return torch.sqrt((ratio**2).mean() - 0.5 * ratio.mean() ** 2 + _EPS)
