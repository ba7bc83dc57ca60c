"""Convolutions whose results are the same integers on every machine.

A decoder must find exactly the probabilities that the encoder used; one that differs by a rounding error turns all that
follows into noise. So the networks that give them compute with integers: weights of 8 bits with a scale per output
channel, activations of 0..127 (inputs of -127..127), sums below 2^24, where float32 holds every integer and the order
of summation does not matter. Where a layer's weights could exceed that, it sums in float64 (exact below 2^53). Training
sees the same rounding with straight-through gradients (quantisation-aware training; J. Balle, N. Johnston, D. Minnen,
"Integer Networks for Data Compression with Latent-Variable Models", ICLR 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LIMIT", "UNIT", "IntegerConv", "compand_table", "round_through"]

LIMIT = 127
"""Largest magnitude of an activation and of a weight."""
UNIT = 32
"""Activations count in 1/32."""
SHIFT = 24
"""Scales are fractions of 2^24."""


def round_through(values: Tensor) -> Tensor:
    """Round half up; the gradient passes."""
    return values + (torch.floor(values + 0.5) - values).detach()


def compand_table(size: int, steepness: float = 24.0, unit: int = 16) -> Tensor:
    """Integers 0..size-1 (in 1/unit) to 0..127: logarithmic, so that small values are told apart and large ones fit.

    The logarithm is rounded to a whole number, and none of the first 4096 comes near a half.
    """
    values = torch.arange(size, dtype=torch.float64) / unit
    return torch.floor(steepness * torch.log2(1 + values) + 0.5).clamp(max=LIMIT)


class IntegerConv(nn.Module):
    """A convolution over integers, held as floating-point numbers.

    With ``activation`` the result is rounded and clipped to 0..127 (a rectifier); without it, it is rounded only and
    counts in 1/`resolution`. Training rounds the weights on the way; `freeze` replaces them by
    integers.

    Args:
        in_channels: of the input, integers of magnitude up to 127.
        out_channels: of the result.
        kernel_size: 1 or 3; zeros are padded.
        activation: clip to 0..127.
        resolution: how fine the result is without activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        activation: bool = True,
        resolution: int = UNIT,
    ) -> None:
        super().__init__()
        self.kernel_size, self.activation, self.resolution = kernel_size, activation, resolution
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if activation:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        else:
            nn.init.normal_(self.weight, std=0.01)

    @property
    def frozen(self) -> bool:
        """Whether the layer holds integers."""
        return "integer_weight" in self._buffers

    @property
    def gain(self) -> float:
        """What turns activations' unit into the result's."""
        return 1.0 if self.activation else self.resolution / UNIT

    def forward(self, values: Tensor) -> Tensor:
        """Integers (B, C_in, H, W) to integers (B, C_out, H, W)."""
        if self.frozen:
            return self._exact(values)
        scale = self._scale()
        integers = round_through(self.weight / scale)  # of 8 bits: exact in bfloat16, too
        result = F.conv2d(values, integers, padding=self.kernel_size // 2).float()
        factor, bias = scale.view(-1, 1, 1) * self.gain, self.bias.view(-1, 1, 1) * (UNIT * self.gain)
        result = round_through(result * factor + bias)
        return _clip_through(result) if self.activation else result

    def _scale(self) -> Tensor:
        return self.weight.detach().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-4) / LIMIT

    @torch.no_grad()
    def freeze(self) -> None:
        """Put integers in the place of the weights; from now on the layer is exact and is not trained."""
        if self.frozen:
            return
        scale = self._scale().double()
        weight = torch.round(self.weight.double() / scale).to(torch.int8)
        multiplier = (scale.flatten() * (self.gain * 2**SHIFT)).round().long()
        bias = torch.round(self.bias.double() * (UNIT * self.gain * 2**SHIFT)).long()
        del self.weight, self.bias
        self.register_buffer("integer_weight", weight)
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("integer_bias", bias)

    @torch.no_grad()
    def thaw(self) -> None:
        """Make weights for training out of the integers."""
        if not self.frozen:
            return
        scale = self.multiplier.double().view(-1, 1, 1, 1) / (self.gain * 2**SHIFT)
        weight = self.integer_weight.double() * scale
        bias = self.integer_bias.double() / (UNIT * self.gain * 2**SHIFT)
        del self.integer_weight, self.multiplier, self.integer_bias
        self.weight, self.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())

    def fits_float32(self) -> bool:
        """Whether no sum of the frozen layer can reach 2^24."""
        return bool(self.integer_weight.to(torch.int64).abs().sum((1, 2, 3)).max() * LIMIT < 2**24)

    def _exact(self, values: Tensor) -> Tensor:
        # Accelerators may transform tiles with fractions (Winograd), which double precision is left out of.
        exact_in_single = values.device.type == "cpu" and self.fits_float32()
        kind = torch.float32 if exact_in_single else torch.float64
        with torch.autocast(values.device.type, enabled=False):
            sums = F.conv2d(values.to(kind), self.integer_weight.to(kind), padding=self.kernel_size // 2)
        factor = self.multiplier.double().view(-1, 1, 1)
        rounding = (self.integer_bias + 2 ** (SHIFT - 1)).double().view(-1, 1, 1)
        result = sums.double() if sums.dtype != torch.float64 else sums
        # exact: whole numbers below 2^53, then a power of two
        result = result.mul_(factor).add_(rounding).mul_(2.0**-SHIFT).floor_()
        return (result.clamp_(0, LIMIT) if self.activation else result).float()


def _clip_through(values: Tensor) -> Tensor:
    """Clip to 0..127; beyond the upper end a tenth of the gradient passes, so that no channel dies there."""
    clipped = values.clamp(0, LIMIT)
    beyond = torch.relu(values - LIMIT)
    return clipped + 0.1 * (beyond - beyond.detach())
