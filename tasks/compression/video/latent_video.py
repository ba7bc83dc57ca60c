"""The small video codec: first frames, predicted frames, and what leads from one to the next in coder and decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec import BLOCK, LAST_QUALITY, MULTIPLE, LatentCodec
from ..context import Quantizer
from ..integer import IntegerConv
from ..rounding import Rounding
from ..tables import ProbabilityTables
from .inter_codec import InterCodec, Known
from .motion import Reference, predict
from .synthesis import IntegerSynthesis

__all__ = ["CodedFrame", "LatentVideoCodec", "State", "padded"]


@dataclass
class State:
    """What the next frame is predicted from.

    Attributes:
        reference: the frame, as decoded.
        vectors: its own, or None.
        residual: its ordered fine coefficients, or zeros.
    """

    reference: Reference
    vectors: Tensor | None
    residual: Tensor


@dataclass
class CodedFrame:
    """A frame that was coded or decoded.

    Attributes:
        pixels: (3, H, W) int32 in 1/16 of a level, of the padded size.
        state: for the next frame.
    """

    pixels: Tensor
    state: State


class LatentVideoCodec(nn.Module):
    """A picture codec for first frames, and what codes the residuals of the others.

    Args:
        width: see `LatentCodec`.
        coarse_width: see there.
        inter_width: see `InterCodec`.
        inter_coarse_width: see there.
        drop: by how many quality indices predicted frames are coded below the first one of their group, which all of
            them build on.
        frozen: hold integers, for coding.
    """

    def __init__(
        self,
        width: int = 64,
        coarse_width: int = 32,
        inter_width: int = 48,
        inter_coarse_width: int = 24,
        drop: int = 20,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        # The networks that improve a picture have no part in what others are predicted from.
        self.intra = LatentCodec(width, coarse_width, 1, 1, 0)
        del self.intra.refine_latents, self.intra.refine_pixels
        self.inter = InterCodec(inter_width, inter_coarse_width)
        self.synthesis = IntegerSynthesis(self.intra)
        self.drop = drop
        if frozen:
            self.freeze()

    def freeze(self) -> LatentVideoCodec:
        """Turn all that the bitstream depends on into integers."""
        if not self.inter.tables.frozen:  # once: another machine might round another way
            self.synthesis.adopt(self.intra)
        for part in self.modules():
            if isinstance(part, (IntegerConv, ProbabilityTables)):
                part.freeze()
        return self

    def thaw(self) -> LatentVideoCodec:
        """Turn the integers into weights that can be trained."""
        for part in self.modules():
            if isinstance(part, (IntegerConv, ProbabilityTables)):
                part.thaw()
        return self

    def take_pictures_from(self, codec: LatentCodec) -> None:
        """Use the weights of a picture codec for first frames; both hold weights, or both integers."""
        mine = self.intra.state_dict()
        self.intra.load_state_dict(
            {name: value for name, value in codec.state_dict().items() if name in mine}
        )
        self.synthesis.adopt(self.intra)

    # -- frames --------------------------------------------------------------------------------------------

    def analyse(self, levels: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Ordered coefficients in steps of (B, 3, H, W) levels or differences of levels, not shifted to around zero."""
        with torch.autocast(levels.device.type, enabled=False):
            colours = torch.einsum("dc,bchw->bdhw", self.intra.colour, levels)
            coefficients = self.intra.lapped(colours) * self.synthesis.scale(index)
            coarse = self.intra._dct(coefficients[:, ::BLOCK])
        return coarse[:, self.intra.coarse_order], coefficients[:, self.intra.fine_order]

    def first(self, index: int, size: tuple[int, int], quantizers: tuple[Quantizer, Quantizer]) -> CodedFrame:
        """A frame without prediction.

        Args:
            index: quality.
            size: (H, W), multiples of 64.
            quantizers: of both levels; of the frame's levels less 128.
        """
        quality = torch.tensor([index])
        coarse16, fine16 = self.intra.code(quality, (size[0] // MULTIPLE, size[1] // MULTIPLE), *quantizers)
        pixels = self.synthesis.frame(self.synthesis(coarse16, fine16, index) + 128 * 16)
        return CodedFrame(pixels, State(Reference(pixels), None, torch.zeros_like(fine16)))

    def known(self, state: State, vectors: Tensor) -> Known:
        """The prediction of the next frame, and what else is known of it."""
        prediction, disagreement = predict(state.reference, vectors)
        return Known(prediction[None], disagreement[None], state.residual)

    def next(
        self, known: Known, vectors: Tensor, index: int, quantizers: tuple[Quantizer, Quantizer]
    ) -> CodedFrame:
        """A predicted frame; the quantizers are of its difference to the prediction."""
        coarse16, fine16 = self.inter.code(self.synthesis, known, index, *quantizers)
        pixels = self.synthesis.frame(known.prediction[0] + self.synthesis(coarse16, fine16, index))
        return CodedFrame(pixels, State(Reference(pixels), vectors, fine16))

    def index_of_predicted(self, index: int) -> int:
        """The quality index of predicted frames where the first has this one."""
        return min(max(index - self.drop, 0), LAST_QUALITY)

    def roundings(
        self, levels: Tensor, index: int, tables: ProbabilityTables, thrift: float
    ) -> tuple[Rounding, Rounding]:
        """Quantizers that round (3, H, W) levels or differences of levels."""
        coarse, fine = self.analyse(levels[None], index)
        return Rounding(coarse, tables, thrift), Rounding(fine, tables, thrift)


def padded(frame: Tensor) -> Tensor:
    """(..., H, W) with sides continued to multiples of 64."""
    height, width = frame.shape[-2:]
    below, right = -height % MULTIPLE, -width % MULTIPLE
    return F.pad(frame[None], (0, right, 0, below), mode="replicate")[0]
