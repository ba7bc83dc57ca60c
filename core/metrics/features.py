"""The two classical convolution stacks that perceptual metrics look at pictures with.

Only the convolution part, with torchvision's key names (``features.<n>.weight``), so that its published
weights load as they are; the classifiers' keys in those files are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["ALEXNET_FILE", "VGG16_FILE", "ConvFeatures", "Network"]

Network = Literal["alex", "vgg"]

ALEXNET_FILE = "torchvision's alexnet-owt-7be5be79.pth"
VGG16_FILE = "torchvision's vgg16-397923af.pth"

# One number per convolution, "pool" between the stages; a tap follows each stage.
_VGG16 = [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)]


class ConvFeatures(nn.Module):
    """AlexNet's or VGG16's convolutions, returning the five activations that LPIPS and DISTS compare.

    AlexNet: "One weird trick for parallelizing convolutional neural networks" (arXiv 1404.5997), relu1 to
        relu5.
    VGG16: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556), relu1_2,
    2_2, 3_3, 4_3, 5_3.

    Attributes:
        channels: channels of the five activations.
        features: the stack; indices are torchvision's.
    """

    def __init__(self, network: Network, pool: Callable[[int], nn.Module] | None = None) -> None:
        """Build the stack with untrained weights.

        Args:
            network: ``"alex"`` or ``"vgg"``.
            pool: makes the pooling layer for a number of channels, in place of max pooling.
        """
        super().__init__()
        if network == "alex":
            pool = pool or (lambda _: nn.MaxPool2d(3, stride=2))
            layers, taps = _alexnet(pool)
            self.channels = (64, 192, 384, 256, 256)
        elif network == "vgg":
            pool = pool or (lambda _: nn.MaxPool2d(2, stride=2))
            layers, taps = _vgg16(pool)
            self.channels = (64, 128, 256, 512, 512)
        else:
            raise ValueError(f"network must be 'alex' or 'vgg', not {network!r}")
        self.features = nn.Sequential(*layers)
        self._taps = frozenset(taps)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to five activations, finest first."""
        activations = []
        for index, layer in enumerate(self.features):
            image = layer(image)
            if index in self._taps:
                activations.append(image)
        return activations


def _alexnet(pool: Callable[[int], nn.Module]) -> tuple[list[nn.Module], list[int]]:
    layers = [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), pool(64)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool(192)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return layers, [i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU)]


def _vgg16(pool: Callable[[int], nn.Module]) -> tuple[list[nn.Module], list[int]]:
    layers: list[nn.Module] = []
    taps = []
    width = 3
    for stage in _VGG16:
        if layers:
            layers.append(pool(width))
        for out in stage:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        taps.append(len(layers) - 1)
    return layers, taps


def paired(a: Tensor, b: Tensor, metric: str, smallest: int) -> tuple[Tensor, Tensor]:
    """Check two float pictures in [-1, 1] and return them as (B, 3, H, W) float32; grey becomes RGB."""
    if a.ndim == 3 and b.ndim == 3:
        a, b = a[None], b[None]
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] not in (1, 3) or not a.is_floating_point():
        raise ValueError(
            f"{metric}: takes two float (B, 3, H, W) in [-1, 1], not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if min(a.shape[-2:]) < smallest:
        size = f"{a.shape[-1]}x{a.shape[-2]}"
        raise ValueError(f"{metric} needs sides of {smallest} pixels or more, not {size}")
    return a.float().expand(-1, 3, -1, -1), b.to(a.device, torch.float32).expand(-1, 3, -1, -1)
