"""The fully factorised prior of side information: one learned density per channel.

"Variational image compression with a scale hyperprior", arXiv 1802.01436, appendix 6.1.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rounding import noisy, round_through

__all__ = ["FactorizedPrior"]

FLOOR = 1e-9
TAIL = 1e-9


class FactorizedPrior(nn.Module):
    """Each channel's cumulative density is a small monotone network; values are rounded about its median.

    The parameters have the names and shapes of compressai 1.2's ``EntropyBottleneck``.

    Args:
        channels: of the side information.
        filters: hidden widths of the densities.
        init_scale: width of the densities at the start.
    """

    def __init__(
        self, channels: int, filters: tuple[int, ...] = (3, 3, 3, 3), init_scale: float = 10.0
    ) -> None:
        super().__init__()
        widths = (1, *filters, 1)
        scale = init_scale ** (1 / (len(filters) + 1))
        self.matrices, self.biases, self.factors = (
            nn.ParameterList(),
            nn.ParameterList(),
            nn.ParameterList(),
        )
        for wide, (before, after) in zip([w == 1 for w in widths[1:]], pairwise(widths), strict=True):
            start = math.log(math.expm1(1 / scale / after))
            self.matrices.append(nn.Parameter(torch.full((channels, after, before), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, after, 1) - 0.5))
            if not wide:
                self.factors.append(nn.Parameter(torch.zeros(channels, after, 1)))
        start_quantiles = torch.tensor([-init_scale, 0.0, init_scale])
        self.quantiles = nn.Parameter(start_quantiles.repeat(channels, 1, 1))

    @property
    def medians(self) -> Tensor:
        """(C,)."""
        return self.quantiles[:, 0, 1]

    def logits(self, values: Tensor, frozen: bool = False) -> Tensor:
        """Logit of the cumulative density.

        Args:
            values: (C, 1, N).
            frozen: no gradient for the densities.
        """
        with torch.autocast(values.device.type, enabled=False):  # differences of these are probabilities
            return self._logits(values if values.dtype == torch.float64 else values.float(), frozen)

    def _logits(self, values: Tensor, frozen: bool) -> Tensor:
        for number, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = (matrix.detach(), bias.detach()) if frozen else (matrix, bias)
            values = F.softplus(matrix.to(values.dtype)) @ values + bias.to(values.dtype)
            if number < len(self.factors):
                factor = self.factors[number].detach() if frozen else self.factors[number]
                values = values + torch.tanh(factor.to(values.dtype)) * torch.tanh(values)
        return values

    def likelihood(self, values: Tensor) -> Tensor:
        """Mass of the unit interval around each value, at least 1e-9; (B, C, H, W) -> the same."""
        flat = values.transpose(0, 1).flatten(1).unsqueeze(1)  # (C, 1, N)
        lower, upper = self.logits(flat - 0.5), self.logits(flat + 0.5)
        sign = -torch.sign(lower + upper).detach()  # subtract on the side where the sigmoids are small
        mass = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        batch, channels, *size = values.shape
        return mass.view(channels, batch, *size).transpose(0, 1).clamp(min=FLOOR)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded values and their likelihoods; in training the likelihoods are those of noisy values."""
        medians = self.medians.detach().view(1, -1, 1, 1)
        rounded = round_through(values - medians) + medians
        return rounded, self.likelihood(noisy(values) if self.training else rounded)

    def quantile_loss(self) -> Tensor:
        """Draws the quantiles to where the densities have mass 1e-9 / 2, 1/2 and 1 - 1e-9 / 2.

        It has gradients for the quantiles only; published training gives them an optimiser of their own.
        """
        end = math.log(2 / TAIL - 1)
        target = self.quantiles.new_tensor([-end, 0.0, end])
        return (self.logits(self.quantiles, frozen=True) - target).abs().sum()

    @torch.no_grad()
    def masses(self, radius: int) -> Tensor:
        """Mass of each offset -radius..radius from the median and of what lies beyond, float64 (C, 2 radius + 2)."""
        edges = torch.arange(-radius, radius + 2, dtype=torch.float64, device=self.quantiles.device) - 0.5
        below = torch.sigmoid(self.logits(self.medians.double().view(-1, 1, 1) + edges)).squeeze(1)
        inside = (below[:, 1:] - below[:, :-1]).clamp(min=0)
        return torch.cat([inside, (1 - below[:, -1:] + below[:, :1]).clamp(min=0)], 1)
