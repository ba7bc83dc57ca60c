"""Networks that give the same numbers on every machine.

A decoder must find exactly the probabilities that the encoder used: a mean or scale that differs by a rounding error
turns all that follows into noise. Floating-point sums depend on their order, so on threads, libraries and devices.
:func:`make_exact` therefore turns a trained network into fixed-point arithmetic: values count in 1/4096, weights in
1/65536, and float64 holds the whole numbers. No sum reaches 2^53, below which float64 is exact in any order;
activations are tables that no machine's ``exp`` can round differently (tested). Nothing is retrained: the results lie
within about 1/1000 of the floating-point network's.
"""

from __future__ import annotations

import copy
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .depth_conv import WSiLU
from .quadtree import HalfTanh

__all__ = ["UNIT", "ExactActivation", "ExactConv2d", "make_exact"]

UNIT = 4096
"""Values count in 1/UNIT."""
WEIGHT_UNIT = 65536
LARGEST = 2**22
"""Values are clipped to +-LARGEST, that is 1024."""
REACH = 8 * UNIT
"""Beyond +-REACH an activation is 0, the identity, or constant."""


def _gelu(x: Tensor) -> Tensor:
    return x * torch.special.erfc(-x / 2**0.5) / 2


# What each activation is inside +-8, and its slope beyond on the right; beyond on the left it is constant.
CURVES = {
    WSiLU: (lambda x: x * torch.sigmoid(4 * x), 1),
    nn.GELU: (_gelu, 1),
    HalfTanh: (lambda x: torch.tanh(x) / 2, 0),
}


def curve_values(kind: type[nn.Module]) -> Tensor:
    """The activation at -8..8 in steps of 1/UNIT, in 1/UNIT and not yet rounded, float64."""
    inputs = torch.arange(-REACH, REACH + 1, dtype=torch.float64) / UNIT
    return CURVES[kind][0](inputs) * UNIT


@cache
def _table(name: str) -> Tensor:
    kind = next(kind for kind in CURVES if kind.__name__ == name)
    return torch.floor(curve_values(kind) + 0.5)


class ExactActivation(nn.Module):
    """An activation as a table over whole numbers.

    Args:
        kind: one of :data:`CURVES`.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.kind, self.slope = kind, CURVES[kind][1]

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers in 1/UNIT, elementwise."""
        table = _table(self.kind.__name__).to(x.device)
        inside = table[(x.clamp(-REACH, REACH) + REACH).long()]
        return inside + self.slope * (x - REACH).clamp(min=0)


class ExactLeakyReLU(nn.Module):
    """A leaky rectifier, its slope in 1/65536."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = round(slope * WEIGHT_UNIT)

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers, elementwise."""
        return torch.where(x >= 0, x, torch.floor(x * self.slope / WEIGHT_UNIT + 0.5))


class ExactConv2d(nn.Module):
    """A convolution of whole numbers; its weights are integers, which no cast of a model to another dtype changes.

    Args:
        conv: the trained one; padded with zeros.

    Raises:
        ValueError: its weights are so large that sums could reach 2^53.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = torch.round(conv.weight.detach().double() * WEIGHT_UNIT)
        bias = torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        # Inputs are sums of a few clipped values (skip connections).
        if weight.abs().sum((1, 2, 3)).max() * 16 * LARGEST >= 2**53 or weight.abs().max() >= 2**31:
            raise ValueError("weights of an entropy network are too large for exact arithmetic")
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups
        self.register_buffer("weight", weight.to(torch.int32), persistent=False)
        self.register_buffer(
            "bias", torch.round(bias.double() * WEIGHT_UNIT * UNIT).to(torch.int64), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers in 1/UNIT (B, C_in, H, W), float64 -> the same of C_out channels."""
        weight, bias = self.get_buffer("weight").double(), self.get_buffer("bias").double()
        sums = F.conv2d(x, weight, None, self.stride, self.padding, groups=self.groups)  # type: ignore[arg-type]
        sums = sums + (bias + WEIGHT_UNIT // 2).view(-1, 1, 1)
        return torch.floor(sums / WEIGHT_UNIT).clamp(-LARGEST, LARGEST)


def make_exact(network: nn.Module) -> nn.Module:
    """A copy of a trained network that maps whole numbers in 1/UNIT, held in float64, to the same, everywhere alike.

    Its forward must be built of convolutions, of the activations in :data:`CURVES`, of sums, and of what only moves
    values about.

    Raises:
        ValueError: it has other layers with weights, or weights that are too large.
    """
    if (exact := _exact_layer(network)) is not None:
        return exact
    shell = copy.copy(network)  # not deep: the weights are not needed twice
    shell._modules = {name: make_exact(child) for name, child in network.named_children()}
    if next(network.parameters(recurse=False), None) is not None:
        raise ValueError(f"{type(network).__name__} has no exact counterpart")
    return shell.eval()


def _exact_layer(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, nn.Conv2d):
        return ExactConv2d(layer)
    if isinstance(layer, nn.LeakyReLU):
        return ExactLeakyReLU(layer.negative_slope)
    if type(layer) in CURVES:
        return ExactActivation(type(layer))
    return None
