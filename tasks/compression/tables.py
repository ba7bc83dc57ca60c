"""Probabilities of rounded values: a bank of tables over small integers, chosen by an index.

A table gives the probability of each residual -R..R and of an escape for what lies beyond. The bank starts as Laplace
distributions of rising width and is learned; a file is coded with integer counts that are made from it once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["COUNT_BITS", "RADIUS", "TABLES", "ProbabilityTables", "index_of", "indices_per_octave"]

TABLES = 64
RADIUS = 40
"""Largest residual with a probability of its own."""
SYMBOLS = 2 * RADIUS + 2
"""Residuals and the escape."""
COUNT_BITS = 16
NARROWEST, WIDEST = 0.06, 40.0


def index_of(width: Tensor) -> Tensor:
    """The table of a standard deviation, as a fraction."""
    return torch.log(width / NARROWEST) / math.log(WIDEST / NARROWEST) * (TABLES - 1)


def indices_per_octave() -> float:
    """By how much the index rises when the step is halved."""
    return math.log(2) / math.log(WIDEST / NARROWEST) * (TABLES - 1)


class ProbabilityTables(nn.Module):
    """Bits of residuals under the tables, differentiable in residual and index."""

    def __init__(self) -> None:
        super().__init__()
        widths = torch.logspace(math.log10(NARROWEST), math.log10(WIDEST), TABLES, dtype=torch.float64)
        edges = torch.arange(-RADIUS, RADIUS + 2, dtype=torch.float64) - 0.5
        scale = (widths / math.sqrt(2)).view(-1, 1)
        below = 0.5 + 0.5 * torch.sign(edges) * (1 - torch.exp(-edges.abs() / scale))
        inside = (below[:, 1:] - below[:, :-1]).clamp(min=1e-7)
        outside = (1 - (below[:, -1:] - below[:, :1])).clamp(min=1e-6)
        probabilities = torch.cat([inside, outside], 1)
        self.logits = nn.Parameter((probabilities / probabilities.sum(1, keepdim=True)).log().float())

    @property
    def frozen(self) -> bool:
        """Whether it holds counts."""
        return "counts" in self._buffers

    def bits(self) -> Tensor:
        """Bits of each residual -R..R and of the escape under each table, (TABLES, SYMBOLS)."""
        if self.frozen:
            return (COUNT_BITS - torch.log2(self.counts.double())).float()
        return -F.log_softmax(self.logits, 1) / math.log(2)

    def forward(self, residual: Tensor, index: Tensor, offset: Tensor | None = None) -> Tensor:
        """Bits of each residual, elementwise.

        Args:
            residual: whole numbers.
            index: 0..TABLES-1, fractions between two tables; gradients reach it.
            offset: what was rounded to the residual. Its gradient is the mean slope of the table there, so that a value
                that was rounded to zero still draws its mean nearer.
        """
        bits = self.bits()
        low = index.detach().floor().clamp(0, TABLES - 2)
        part = index - low
        symbol = torch.where(residual.abs() > RADIUS, SYMBOLS - 1, residual + RADIUS)
        place = (low * SYMBOLS + symbol).to(torch.int32)
        flat = bits.flatten()
        first, second = flat[place], flat[place + SYMBOLS]
        result = first + part * (second - first) + _escape_bits(residual)
        if offset is not None and offset.requires_grad:
            result = result + _Slope.apply(offset, _slopes(bits.detach()).flatten(), index.detach())
        return result

    @torch.no_grad()
    def saving(self, residual: Tensor, index: Tensor) -> Tensor:
        """Bits less that a residual one nearer to zero takes in the nearest table; 0 beyond the tables.

        Args:
            residual: whole numbers.
            index: 0..TABLES-1.
        """
        bits = self.bits()
        middle = torch.zeros_like(bits[:, :1])
        negative, positive = (
            bits[:, :RADIUS] - bits[:, 1 : RADIUS + 1],
            bits[:, RADIUS + 1 : -1] - bits[:, RADIUS:-2],
        )
        less = torch.cat([middle, negative, middle, positive, middle], 1).flatten()
        place = torch.floor(index + 0.5) * (SYMBOLS + 1) + (
            residual.clamp(-RADIUS - 1, RADIUS + 1) + RADIUS + 1
        )
        return less[place.to(torch.int32)]

    @torch.no_grad()
    def freeze(self) -> None:
        """Put integer frequencies in the place of the probabilities: each at least 1, rows sum to 2^COUNT_BITS."""
        if self.frozen:
            return
        total = 2**COUNT_BITS
        probabilities = torch.softmax(self.logits.double(), 1)
        counts = torch.floor(probabilities * (total - SYMBOLS)).to(torch.int32) + 1
        counts.scatter_add_(
            1, counts.argmax(1, keepdim=True), (total - counts.sum(1, keepdim=True)).to(torch.int32)
        )
        del self.logits
        self.register_buffer("counts", counts)

    @torch.no_grad()
    def thaw(self) -> None:
        """Make probabilities for training out of the frequencies."""
        if not self.frozen:
            return
        logits = (self.counts.double() / 2**COUNT_BITS).log().float()
        del self.counts
        self.logits = nn.Parameter(logits)


class _Slope(torch.autograd.Function):
    """Zero, whose gradient in an offset is the slope of its table there."""

    @staticmethod
    def forward(ctx: Any, offset: Tensor, slopes: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(offset, slopes, index)
        return torch.zeros_like(offset)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        offset, slopes, index = ctx.saved_tensors
        inner = offset.clamp(-RADIUS, RADIUS - 1)
        low = inner.floor()
        place = (torch.floor(index + 0.5) * SYMBOLS + RADIUS + low).to(torch.int32)
        first, second = slopes[place], slopes[place + 1]
        return gradient * (first + (inner - low).clamp(max=1) * (second - first)), None, None


def _slopes(bits: Tensor) -> Tensor:
    """Mean slope of each table at each residual, (TABLES, SYMBOLS); that of the outermost ones beyond."""
    inner = (bits[:, 2:-1] - bits[:, :-3]) / 2
    return torch.cat([inner[:, :1], inner, inner[:, -1:], inner[:, -1:]], 1)


def _escape_bits(whole: Tensor) -> Tensor:
    beyond = whole.abs() - RADIUS
    return torch.where(beyond > 0, 2 * torch.log2(beyond.clamp(min=1)).floor() + 2, 0.0)
