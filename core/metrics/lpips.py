"""Learned perceptual image patch similarity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .features import ALEXNET_FILE, VGG16_FILE, ConvFeatures, Network, paired
from .weights import Weights, load_into

__all__ = ["LPIPS"]

# The published scaling layer: ImageNet's mean and deviation, moved to pictures in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_SMALLEST = {"alex": 31, "vgg": 16}  # below, AlexNet's last layers or VGG's pools have nothing to look at


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1.

    "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv 1801.03924). Both sets of
    weights are the user's files; nothing is downloaded and nothing is left random. The network is frozen and
    in eval mode, but gradients flow to the pictures.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, backbone: Weights | None = None, heads: Weights | None = None, network: Network = "alex"
    ) -> None:
        """Load the weights.

        Args:
            backbone: path or state dict of torchvision's classifier: ``features.<n>.weight`` and ``.bias``.
            heads: path or state dict of the published linear heads (``alex.pth`` or ``vgg.pth`` of the
                ``lpips`` package, v0.1): ``lin0.model.1.weight`` (1, C, 1, 1) to ``lin4.model.1.weight``.
            network: ``"alex"`` (DiT4SR and most papers) or ``"vgg"``.

        Raises:
            MissingWeightsError: a file is missing; the message names it.
            PolyditError: a file is another network's.
        """
        super().__init__()
        name = f"LPIPS ({network})"
        self.network = network
        self.backbone = ConvFeatures(network)
        load_into(self.backbone, backbone, name, ALEXNET_FILE if network == "alex" else VGG16_FILE)
        self.heads = _Heads(self.backbone.channels)
        load_into(self.heads, heads, name, f"the lpips package's weights/v0.1/{network}.pth")
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair: (B,), 0 for equal pictures, lower is better.

        Args:
            prediction: float (B, 3, H, W) in [-1, 1].
            target: of the same shape.

        Raises:
            ValueError: other shapes, or pictures too small for the network.
        """
        prediction, target = paired(prediction, target, "LPIPS", _SMALLEST[self.network])
        total = prediction.new_zeros(len(prediction))
        for i, (a, b) in enumerate(zip(self._features(prediction), self._features(target), strict=True)):
            total = total + self.heads(i, (a - b).square()).mean((1, 2, 3))
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        activations = self.backbone((image - self.shift) / self.scale)
        # vector_norm: its gradient is 0, not NaN, where every channel is 0
        return [x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10) for x in activations]


class _Heads(nn.Module):
    """One 1x1 convolution per activation, with the keys of the published file: ``lin<i>.model.1.weight``."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        for i, width in enumerate(channels):
            head = nn.Module()
            # Index 0 of the original is a dropout, idle outside training.
            head.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{i}", head)

    def forward(self, index: int, difference: Tensor) -> Tensor:
        weighted: Tensor = self.get_submodule(f"lin{index}.model")(difference)
        return weighted
