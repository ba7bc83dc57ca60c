"""Deep image structure and texture similarity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import VGG16_FILE, ConvFeatures, paired
from .weights import Weights, load_into

__all__ = ["DISTS"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_STABILISER = 1e-6


class DISTS(nn.Module):
    """Deep image structure and texture similarity.

    "Image Quality Assessment: Unifying Structure and Texture Similarity" (arXiv 2004.07728). Means and
    covariances of VGG16 activations, pooled by a blurred L2 norm instead of a maximum, and of the pictures
    themselves. Weights are the user's files; nothing is downloaded and nothing is left random. The network is
    frozen and in eval mode, but gradients flow to the pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Weights | None = None, heads: Weights | None = None) -> None:
        """Load the weights.

        Args:
            backbone: path or state dict of torchvision's VGG16: ``features.<n>.weight`` and ``.bias``.
            heads: path or state dict of the published channel weights (``weights.pt`` of the
                ``DISTS-pytorch`` package): ``alpha`` and ``beta``, both (1, 1475, 1, 1).

        Raises:
            MissingWeightsError: a file is missing; the message names it.
            PolyditError: a file is another network's.
        """
        super().__init__()
        self.backbone = ConvFeatures("vgg", pool=_L2Pool)
        load_into(self.backbone, backbone, "DISTS", VGG16_FILE)
        self.channels = (3, *self.backbone.channels)
        self.heads = nn.Module()
        for name in ("alpha", "beta"):
            self.heads.register_parameter(name, nn.Parameter(torch.empty(1, sum(self.channels), 1, 1)))
        load_into(self.heads, heads, "DISTS", "the DISTS-pytorch package's weights.pt")
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair: (B,), 0 for equal pictures, lower is better.

        Pictures are compared at their own size; the authors' script first shrinks them so that the shorter
        side is 256.

        Args:
            prediction: float (B, 3, H, W) in [-1, 1], sides of 16 pixels or more.
            target: of the same shape.

        Raises:
            ValueError: other shapes, or pictures that are too small.
        """
        prediction, target = paired(prediction, target, "DISTS", 16)
        alpha = self.heads.get_parameter("alpha").split(self.channels, dim=1)
        beta = self.heads.get_parameter("beta").split(self.channels, dim=1)
        total = sum(part.sum() for part in (*alpha, *beta))
        similarity = prediction.new_zeros(len(prediction))
        features = zip(self._features(prediction), self._features(target), alpha, beta, strict=True)
        for x, y, texture, structure in features:
            mean_x, mean_y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
            likeness = (2 * mean_x * mean_y + _STABILISER) / (mean_x**2 + mean_y**2 + _STABILISER)
            x, y = x - mean_x, y - mean_y
            variance_x, variance_y = (z.square().mean((2, 3), keepdim=True) for z in (x, y))
            covariance = (x * y).mean((2, 3), keepdim=True)
            correlation = (2 * covariance + _STABILISER) / (variance_x + variance_y + _STABILISER)
            similarity = similarity + (texture * likeness + structure * correlation).sum((1, 2, 3)) / total
        return 1 - similarity

    def _features(self, image: Tensor) -> list[Tensor]:
        image = (image + 1) / 2  # the picture itself is compared in [0, 1]
        return [image, *self.backbone((image - self.mean) / self.std)]


class _L2Pool(nn.Module):
    """Root of the Hann-weighted mean of squares over 3x3 pixels, every second position."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        profile = torch.tensor([math.sin(math.pi * i / 4) ** 2 for i in (1, 2, 3)])
        kernel = profile[:, None] * profile
        kernel = (kernel / kernel.sum()).expand(channels, 1, 3, 3).clone()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.conv2d(x.square(), self.kernel, stride=2, padding=1, groups=x.shape[1])
        return (pooled + 1e-12).sqrt()
