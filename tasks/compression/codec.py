"""The latent codec of pictures: two levels of block transforms, a context model for each, a learned reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import MEAN_UNIT, ContextModel, Quantizer
from .integer import IntegerConv
from .lapped import SIZE, LappedTransform, dct_matrix, zigzag
from .refine import Refine
from .rounding import Rounding
from .tables import ProbabilityTables, index_of

__all__ = [
    "LAST_QUALITY",
    "MULTIPLE",
    "QUALITIES",
    "Coded",
    "LatentCodec",
    "quality_index",
    "quality_of",
    "step_of",
]

BLOCK = SIZE * SIZE
MULTIPLE = SIZE * SIZE
"""Sides of pictures are multiples of this: blocks of blocks."""
QUALITIES = 9
PER_QUALITY = 30
LAST_QUALITY = (QUALITIES - 1) * PER_QUALITY
COARSEST, OCTAVES = 224.0, 3.75
FINER = 110032
"""By how many 1/16 table indices rise per quality index, in 1/65536: the step's logarithm in the tables' spacing."""


def quality_index(quality: float) -> int:
    """A quality 1..9 in thirtieths above 1: 0..240, what a file holds."""
    return max(0, min(LAST_QUALITY, round((quality - 1) * PER_QUALITY)))


def quality_of(index: int) -> float:
    """The quality of an index."""
    return 1 + index / PER_QUALITY


def step_of(index: Tensor) -> Tensor:
    """Quantisation step, in levels of 0..255, of quality indices."""
    return COARSEST * 2.0 ** (-(index.float() / LAST_QUALITY) * OCTAVES)


def colour_matrix() -> Tensor:
    """Orthonormal: grey, red against blue, green against both."""
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
    return rows / rows.norm(dim=1, keepdim=True)


def coding_order(skip_first: bool) -> list[int]:
    """Channels ``c * 64 + k`` by rising frequency, colours later than grey."""
    rank = {k: place for place, k in enumerate(zigzag(SIZE))}
    keys = [
        (rank[k] * (1.0 if c == 0 else 2.2) + (0 if c == 0 else 1.5), c, k)
        for c in range(3)
        for k in range(BLOCK)
        if not (skip_first and k == 0)
    ]
    return [c * BLOCK + k for _, c, k in sorted(keys)]


@dataclass
class Coded:
    """What :meth:`LatentCodec.forward` gives.

    Attributes:
        pictures: reconstruction (B, 3, H, W) in [-1, 1], not clipped.
        bits: estimate, (B,).
    """

    pictures: Tensor
    bits: Tensor


class LatentCodec(nn.Module):
    """Pictures to whole numbers with their probabilities, and back.

    Grey and two colours go through a lapped 8x8 transform; the means of the blocks form a picture of an eighth of the
    size, which goes through a second 8x8 transform. Both levels are quantised with a step that falls with the quality
    and coded by a context model; after decoding, convolutions improve coefficients and pixels.

    Args:
        width: features of the context model of the blocks.
        coarse_width: the same of the blocks' means.
        latent_width: features of the network that improves coefficients.
        pixel_width: features of the network that improves pixels.
        pixel_depth: its residual blocks.
        frozen: hold integers, for coding, instead of weights for training.

    Attributes:
        compute_dtype: precision of the networks that improve a decoded picture; no bit depends on them.
    """

    def __init__(
        self,
        width: int = 64,
        coarse_width: int = 32,
        latent_width: int = 96,
        pixel_width: int = 64,
        pixel_depth: int = 4,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.lapped = LappedTransform()
        self.register_buffer("colour", colour_matrix(), persistent=False)
        self.register_buffer("dct", dct_matrix(SIZE).float(), persistent=False)
        self.register_buffer("coarse_order", torch.tensor(coding_order(False)), persistent=False)
        self.register_buffer("fine_order", torch.tensor(coding_order(True)), persistent=False)
        self.coarse = ContextModel((3, 9, 36, 144), 2, 2, coarse_width)
        self.fine = ContextModel((4, 8, 12, 18, 27, 40, 80), 3, 13, width)
        self.tables = ProbabilityTables()
        self.log_gains = nn.Parameter(torch.zeros(QUALITIES, 3 * BLOCK))
        self.refine_latents = Refine(3 * BLOCK, latent_width, 2)
        self.refine_pixels = Refine(48, pixel_width, pixel_depth)
        self.transforms_learn(0.05)
        if frozen:
            self.freeze()

    def transforms_learn(self, scale: float) -> None:
        """Tag transform and gains with their share of the learning rate: the rest follows them."""
        for parameter in (self.log_gains, self.lapped.middle):
            parameter.lr_scale, parameter.no_weight_decay = scale, True  # type: ignore[attr-defined]
        for net in (self.refine_latents, self.refine_pixels):
            for parameter in net.parameters():
                parameter.lr_scale = 0.5  # type: ignore[attr-defined]

    def freeze(self) -> LatentCodec:
        """Turn all that the bitstream depends on into integers."""
        for part in self.modules():
            if isinstance(part, (IntegerConv, ProbabilityTables)):
                part.freeze()
        return self

    def thaw(self) -> LatentCodec:
        """Turn the integers into weights that can be trained."""
        for part in self.modules():
            if isinstance(part, (IntegerConv, ProbabilityTables)):
                part.thaw()
        return self

    # -- transforms ----------------------------------------------------------------------------------------

    def analyse(self, pictures: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Ordered coefficients in steps of both levels.

        Args:
            pictures: (B, 3, H, W) in [-1, 1]; sides are multiples of 64.
            quality: indices, (B,).

        Returns:
            Blocks of the blocks' means (B, 192, H / 64, W / 64), and blocks without means (B, 189, H / 8, W / 8).
        """
        with torch.autocast(pictures.device.type, enabled=False):
            colours = torch.einsum("dc,bchw->bdhw", self.colour, pictures.float() * 127.5)
            scale = self.gains(quality) / step_of(quality).view(-1, 1, 1, 1)
            fine = self.lapped(colours) * scale
            coarse = self._dct(fine[:, ::BLOCK])
        return coarse[:, self.coarse_order], fine[:, self.fine_order]

    def synthesise(self, coarse: Tensor, fine: Tensor, quality: Tensor) -> Tensor:
        """The picture of ordered coefficients, (B, 3, H, W) in [-1, 1], not clipped."""
        coefficients = self.join(coarse, fine)
        level = (quality.float() / LAST_QUALITY * 2 - 1).view(-1, 1, 1, 1)
        shown = coefficients * torch.rsqrt(1 + coefficients.abs())
        pictures = self.to_pixels(coefficients + self.refine_latents(shown, level), quality)
        scale = (step_of(quality) * (4 / 255)).view(-1, 1, 1, 1)
        better = self.refine_pixels(F.pixel_unshuffle(pictures, 4), level)
        return pictures + F.pixel_shuffle(better.float() * scale, 4)

    def join(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Both levels in one: coefficient k of colour c in channel ``c * 64 + k``, (B, 192, H / 8, W / 8) in steps."""
        whole = fine.new_zeros(len(fine), 3 * BLOCK, *fine.shape[-2:])
        whole[:, self.fine_order] = fine
        unsorted = torch.zeros_like(coarse)
        unsorted[:, self.coarse_order] = coarse
        with torch.autocast(whole.device.type, enabled=False):
            whole[:, ::BLOCK] = self._idct(unsorted)
        return whole

    def to_pixels(self, coefficients: Tensor, quality: Tensor) -> Tensor:
        """The picture (B, 3, H, W) of coefficients in steps, (B, 192, H / 8, W / 8)."""
        with torch.autocast(coefficients.device.type, enabled=False):
            scale = step_of(quality).view(-1, 1, 1, 1) / self.gains(quality)
            colours = self.lapped.inverse(coefficients.float() * scale)
            return torch.einsum("dc,bdhw->bchw", self.colour, colours) / 127.5

    def gains(self, quality: Tensor) -> Tensor:
        """How much finer each coefficient is quantised, (B, 192, 1, 1): by its part in the picture, and as learned."""
        place = quality.float() / PER_QUALITY
        low = place.floor().clamp(max=QUALITIES - 2).long()
        part = (place - low).view(-1, 1)
        logs = self.log_gains[low] * (1 - part) + self.log_gains[low + 1] * part
        norms = self.lapped.synthesis_norms().repeat(3)
        return (logs.exp() * norms).view(len(quality), -1, 1, 1)

    def _dct(self, means: Tensor) -> Tensor:
        b, c, h, w = means.shape
        blocks = means.reshape(b, c, h // SIZE, SIZE, w // SIZE, SIZE)
        coefficients = torch.einsum("vy,bchywx,ux->bcvuhw", self.dct, blocks, self.dct)
        return coefficients.reshape(b, c * BLOCK, h // SIZE, w // SIZE)

    def _idct(self, coarse: Tensor) -> Tensor:
        b, c, h, w = coarse.shape
        blocks = coarse.float().view(b, c // BLOCK, SIZE, SIZE, h, w)
        means = torch.einsum("vy,bcvuhw,ux->bchywx", self.dct, blocks, self.dct)
        return means.reshape(b, c // BLOCK, h * SIZE, w * SIZE)

    # -- coding --------------------------------------------------------------------------------------------

    def code(
        self, quality: Tensor, size: tuple[int, int], coarse: Quantizer, fine: Quantizer
    ) -> tuple[Tensor, Tensor]:
        """Run both context models.

        Args:
            quality: indices, (B,).
            size: of the coarse level, (H / 64, W / 64).
            coarse: gives the residuals of the coarse level.
            fine: gives those of the fine one.

        Returns:
            Reconstructed ordered coefficients of both levels, in 1/16 of a step.
        """
        whole = quality.long().view(-1, 1, 1, 1)
        finer = ((whole * FINER + 2**15) >> 16).float()
        level = (whole // 2).float()
        known = torch.cat([level, torch.full_like(level, 64.0)], 1).expand(-1, -1, *size)
        coarse16 = self.coarse(known, finer, coarse)
        return coarse16, self.fine(self._known(coarse16, level), finer, fine)

    def _known(self, coarse16: Tensor, level: Tensor) -> Tensor:
        """Integers for the fine context: differences of the blocks' means to their neighbours', companded."""
        unsorted = torch.zeros_like(coarse16)
        unsorted[:, self.coarse_order] = coarse16.detach()
        # A transform with integers, in double precision: exact, so the same everywhere.
        matrix = torch.round(self.dct.double() * 1024)
        b, _, h, w = unsorted.shape
        blocks = torch.round(unsorted.double()).view(b, 3, SIZE, SIZE, h, w)
        rows = torch.floor(torch.einsum("vy,bcvuhw->bcyuhw", matrix, blocks) / 1024 + 0.5)
        means = torch.floor(torch.einsum("bcyuhw,ux->bchywx", rows, matrix) / 1024 + 0.5)
        means = means.reshape(b, 3, h * SIZE, w * SIZE).float()
        around = F.pad(means, (1, 1, 1, 1), mode="replicate")
        sides = (
            around[..., 1:-1, 2:],
            around[..., 1:-1, :-2],
            around[..., 2:, 1:-1],
            around[..., :-2, 1:-1],
        )
        shown = [self.fine.show(means - side)[0] for side in sides]
        return torch.cat([*shown, level.expand(b, 1, *means.shape[-2:])], 1)

    @torch.no_grad()
    def start_from(self, pictures: Tensor) -> None:
        """Begin with the statistics of pictures (B, 3, H, W) in [-1, 1], H and W multiples of 64."""
        levels = self.analyse(pictures, torch.zeros(len(pictures), dtype=torch.long))
        for model, values in zip((self.coarse, self.fine), levels, strict=True):
            model.start_from(index_of(values.abs().mean((0, 2, 3)) * 1.4 + 0.02))

    def forward(self, pictures: Tensor, quality: Tensor, thrift: float = 0.0) -> Coded:
        """Code without writing: reconstruction and estimated bits.

        Args:
            pictures: (B, 3, H, W) in [-1, 1]; sides are multiples of 64.
            quality: indices 0..240, (B,).
            thrift: see `Rounding`.
        """
        levels = self.analyse(pictures, quality)
        coarse, fine = (Rounding(values, self.tables, thrift) for values in levels)
        coarse16, fine16 = self.code(quality, tuple(levels[0].shape[-2:]), coarse, fine)
        pictures = self.synthesise(coarse16 / MEAN_UNIT, fine16 / MEAN_UNIT, quality)
        return Coded(pictures, coarse.bits + fine.bits)
