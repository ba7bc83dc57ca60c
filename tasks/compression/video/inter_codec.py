"""What prediction leaves of a frame, coded with a context model that sees the prediction too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import BLOCK, FINER
from ..context import ContextModel, Quantizer
from ..lapped import SIZE, zigzag
from ..tables import ProbabilityTables, index_of
from .synthesis import IntegerSynthesis

__all__ = ["InterCodec", "Known"]

SHAPES = 15
"""Frequencies of the prediction that the context model sees."""
TRACES = 12
"""Channels of the residual before that it sees one by one."""
FINE_EXTRA = 1 + 3 + SHAPES + TRACES + 2
COARSE_EXTRA = 4


@dataclass
class Known:
    """What encoder and decoder both know before a frame's residual.

    Attributes:
        prediction: (B, 3, H, W) int32 in 1/16 of a level.
        disagreement: of the blocks that make it up, (B, H, W) int32.
        before: ordered fine coefficients of the residual before, (B, 189, H / 8, W / 8) in 1/16 of a step; zeros after
            a frame without prediction.
    """

    prediction: Tensor
    disagreement: Tensor
    before: Tensor


class InterCodec(nn.Module):
    """Context models and tables for residuals; the transform is the picture codec's.

    Args:
        width: features of the context model of the blocks.
        coarse_width: the same of the blocks' means.
    """

    def __init__(self, width: int = 48, coarse_width: int = 24) -> None:
        super().__init__()
        self.coarse = ContextModel((3, 9, 36, 144), 2, COARSE_EXTRA, coarse_width)
        self.fine = ContextModel((4, 8, 12, 18, 27, 40, 80), 3, FINE_EXTRA, width)
        self.tables = ProbabilityTables()
        self.register_buffer("shapes", torch.tensor(zigzag(SIZE)[1 : SHAPES + 1]), persistent=False)

    def code(
        self, synthesis: IntegerSynthesis, known: Known, index: int, coarse: Quantizer, fine: Quantizer
    ) -> tuple[Tensor, Tensor]:
        """Run both context models.

        Args:
            synthesis: of the codec.
            known: see there.
            index: quality.
            coarse: gives the residuals of the coarse level.
            fine: gives those of the fine one.

        Returns:
            Ordered coefficients of what prediction left, both levels, in 1/16 of a step.
        """
        size = known.before.shape[-2:]
        factor = synthesis.factor(index).double()
        finer = torch.full((1, 1, 1, 1), float((index * FINER + 2**15) >> 16))
        level = torch.full((len(known.before), 1, *size), float(index // 2))
        unsure = self._unsure(known, factor)
        trace = self.fine.show(known.before)[1]
        rest = trace[:, TRACES:].sum(1, keepdim=True).clamp(max=127 * 8)
        rest = torch.floor(rest / 8)
        small = [level[..., ::SIZE, ::SIZE], torch.full_like(level[..., ::SIZE, ::SIZE], 64.0)]
        pooled = [torch.floor(F.avg_pool2d(x, SIZE) + 0.5) for x in (unsure, rest)]
        coarse16 = self.coarse(torch.cat(small + pooled, 1), finer, coarse)
        means = self._means(synthesis, coarse16)
        shapes = self._shapes(synthesis, known.prediction, factor)
        extra = torch.cat(
            [level, self.fine.show(means)[0], self.fine.show(shapes)[0], trace[:, :TRACES], rest, unsure], 1
        )
        return coarse16, self.fine(extra, finer, fine)

    def _shapes(self, synthesis: IntegerSynthesis, prediction: Tensor, factor: Tensor) -> Tensor:
        """Low frequencies of the prediction's grey blocks in 1/16 of a step."""
        grey = torch.floor(prediction.double().sum(1) * 37 / 64)  # by about the root of three
        blocks = torch.stack([synthesis.block_transform(one) for one in grey])[:, self.shapes]
        return torch.floor(blocks * 4096 / factor[self.shapes].view(-1, 1, 1) + 0.5).float()

    def _unsure(self, known: Known, factor: Tensor) -> Tensor:
        """How much neighbouring vectors disagree about a block, companded."""
        total = F.avg_pool2d(known.disagreement[:, None].double(), SIZE) * BLOCK
        return self.fine.show(torch.floor(total * 64 / factor[0] + 0.5).float())[1]

    def _means(self, synthesis: IntegerSynthesis, coarse16: Tensor) -> Tensor:
        """The blocks' means in 1/16 of a step."""
        unsorted = torch.zeros(coarse16.shape, dtype=torch.float64)
        unsorted[:, synthesis.coarse_order] = coarse16.detach().double()
        return synthesis._idct(unsorted).float()

    @torch.no_grad()
    def start_from(self, coarse: Tensor, fine: Tensor) -> None:
        """Begin with the statistics of residuals at the lowest quality, ordered coefficients in its steps."""
        for model, values in ((self.coarse, coarse), (self.fine, fine)):
            model.start_from(index_of(values.abs().mean((0, 2, 3)) * 1.4 + 0.02))
