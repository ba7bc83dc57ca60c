"""PDFNet: a feed-forward network that segments from a picture, its tiles and its depth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..errors import PolyditError
from .pdfnet_fusion import Fusion, Sizes, check_square, conv_norm, resized, to_tiles
from .swin import SwinEncoder

__all__ = ["ConvEncoder", "PDFNet", "PDFNetOutput", "depth_edges", "normalized"]


@dataclass
class PDFNetOutput(BaseOutput):
    """What PDFNet says.

    Attributes:
        sample: logits of the mask, (B, 1, H, W).
        sides: logits at coarser scales, for training: five of (B, 1, h, w), from fine to coarse.
        depths: logits of the depth, from fine to coarse, five of (B, 1, h, w), where they were asked for.
    """

    sample: Tensor
    sides: tuple[Tensor, ...] = ()
    depths: tuple[Tensor, ...] = ()


class Levels(NamedTuple):
    """Maps of one stream, all of the embedding's width: four scales, and all of them at the coarsest."""

    maps: tuple[Tensor, ...]
    overview: Tensor

    def of(self, samples: slice) -> Levels:
        """Those of some samples."""
        return Levels(tuple(m[samples] for m in self.maps), self.overview[samples])


class PDFNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Patch-depth fusion.

    "Patch-Depth Fusion: Dichotomous Image Segmentation via Fine-Grained Patch Strategy and Depth Integrity-Prior"
    (arXiv 2503.06100). One encoder reads the picture and its depth at half size and the full picture in tiles; from
    the coarsest scale to the finest the three streams look at each other, guided by the mask so far. The defaults are
    the published network, of 97,846,544 parameters without ``refine_depth``.

    The released code has slips that the published weights were trained with: ``released_quirks`` repeats them.
    Without it the depth is normalised per sample, not per batch, the outline of the mask so far is that of its
    probabilities at every size, and gradients reach the encoder through the tiles, too.

    Args:
        encoder: ``swin``, or ``conv``: small and quick on a CPU.
        embed_dim: width of everything behind the encoder.
        widths: of the encoder's scales; those of a Swin double.
        depths: blocks of each of its scales.
        heads: heads of each scale of a Swin.
        window: of a Swin.
        position_size: of a Swin, see :class:`SwinEncoder`.
        strides: of each scale of a ``conv`` encoder.
        tiles: tiles along a side.
        pool: how much each fusion, from coarse to fine, reduces keys and values.
        drop_path: of a Swin.
        dropout: in the fusions.
        refine_depth: whether there is a decoder for the depth, which training uses.
        released_quirks: see above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Fusion", "Stage"]
    _repeated_blocks = ["Fusion"]
    _skip_layerwise_casting_patterns = ["norm", "sides"]

    @register_to_config
    def __init__(
        self,
        encoder: Literal["swin", "conv"] = "swin",
        embed_dim: int = 128,
        widths: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 12,
        position_size: int | None = 56,
        strides: Sequence[int] = (4, 2, 2, 2),
        tiles: int = 8,
        pool: Sequence[int] = (1, 1, 2, 2),
        drop_path: float = 0.1,
        dropout: float = 0.1,
        refine_depth: bool = False,
        released_quirks: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.tiles, self.released_quirks = tiles, released_quirks
        if encoder == "swin":
            if any(b != 2 * a for a, b in itertools.pairwise(widths)):
                raise PolyditError(
                    f"PDFNet widths {list(widths)}: those of a Swin encoder double at each scale"
                )
            self.hierarchy: nn.Module = SwinEncoder(
                3, widths[0], depths, heads, window, position_size, drop_path
            )
            self.reduction = 4 * 2 ** (len(depths) - 1)
        elif encoder == "conv":
            self.hierarchy = ConvEncoder(widths, strides, depths)
            self.reduction = math.prod(strides)
        else:
            raise PolyditError(f"PDFNet encoder {encoder!r}: choose swin or conv")
        dim = embed_dim
        self.level_mix = nn.ModuleList(conv_norm(width, dim) for width in widths)
        self.overview_mix = nn.Sequential(conv_norm(4 * dim, dim), conv_norm(dim, dim))
        self.fusions = nn.ModuleList(
            Fusion(Sizes(2 * dim, 2 * dim, 2 * dim, dim), (p, p, p), tiles, dropout, released_quirks)
            for p in pool
        )
        self.stream_mix = nn.ModuleList(conv_norm(3 * dim, dim) for _ in pool)
        self.detail = nn.Sequential(nn.Conv2d(6, dim, 4, stride=4), conv_norm(dim, dim))
        self.finish = nn.ModuleList(conv_norm(dim, dim) for _ in range(2))
        # full size first, then from fine to coarse; the last is of the overview
        self.sides = nn.ModuleList(nn.Conv2d(dim, 1, 3, padding=1) for _ in range(6))
        self.depth_decoder = DepthDecoder(dim) if refine_depth else None
        # Fixed filters, which only the loss looks through. They are here because the published count has them.
        self.sobel = nn.Parameter(torch.zeros(2, 1, 3, 3), requires_grad=False)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Small convolutions; the encoder has initialised itself."""
        with torch.no_grad():
            self.sobel.copy_(sobel_filters())
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("hierarchy."):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of: whole cells at every scale of every tile."""
        return self.tiles * self.reduction

    def forward(
        self, picture: Tensor, depth: Tensor, refine_depth: bool = False, return_dict: bool = True
    ) -> PDFNetOutput | tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Segment.

        Args:
            picture: (B, 3, H, W), normalised as the weights want it; sides are multiples of :attr:`multiple`.
            depth: (B, 1, H, W) of any range; only its order and proportions count.
            refine_depth: also predict the depth.
            return_dict: whether to return a :class:`PDFNetOutput` or a tuple.

        Raises:
            PolyditError: the two do not fit, or the size does not; or it is no square, with ``released_quirks``.
        """
        batch, _, height, width = picture.shape
        if depth.shape != (batch, 1, height, width):
            raise PolyditError(
                f"depth {tuple(depth.shape)}: must be {(batch, 1, height, width)}, as the picture; resize it"
            )
        if self.released_quirks:
            check_square(height, width)
        if height % self.multiple or width % self.multiple:
            raise PolyditError(
                f"picture of {width}x{height}: its sides must be multiples of {self.multiple}; resize it"
            )
        depth = normalized(depth.to(picture.dtype), per_sample=not self.released_quirks).expand(-1, 3, -1, -1)
        halved = resized(torch.cat([picture, depth]), (height // 2, width // 2))
        both = self.encode(halved)
        image_levels, depth_levels = both.of(slice(batch)), both.of(slice(batch, None))
        tile_levels = self.encode_tiles(picture)
        finest, sides = self.decode(image_levels, depth_levels, tile_levels)
        sample = self.full_size(finest, picture, depth)
        depths: tuple[Tensor, ...] = ()
        if refine_depth:
            if self.depth_decoder is None:
                raise PolyditError("PDFNet has no depth decoder; build it with refine_depth: true")
            joined = [
                torch.cat([a, b, resized(c, a.shape[-2:])], 1)
                for a, b, c in zip(
                    (*image_levels.maps, image_levels.overview),
                    (*depth_levels.maps, depth_levels.overview),
                    (*tile_levels.maps, tile_levels.overview),
                    strict=True,
                )
            ]
            depths = self.depth_decoder(picture, depth, joined)
        result = PDFNetOutput(sample=sample, sides=sides, depths=depths)
        return result if return_dict else (result.sample, result.sides, result.depths)

    def encode(self, picture: Tensor) -> Levels:
        """(B, 3, H, W) to its levels."""
        maps = tuple(mix(level) for mix, level in zip(self.level_mix, self.hierarchy(picture), strict=True))
        size = maps[-1].shape[-2:]
        return Levels(maps, self.overview_mix(torch.cat([resized(level, size) for level in maps], 1)))

    def encode_tiles(self, picture: Tensor) -> Levels:
        """The levels of tiles of the picture, put together again."""
        encoded = self.encode(to_tiles(picture, self.tiles))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.released_quirks):
            return Levels(
                tuple(from_tiles(level, self.tiles) for level in encoded.maps),
                from_tiles(encoded.overview, self.tiles),
            )

    def depth_edges(self, depth: Tensor) -> Tensor:
        """Strength of the edges of a depth map, (B, 1, H, W), see :func:`depth_edges`."""
        return depth_edges(depth, self.sobel, zero_border=self.released_quirks)

    def decode(self, image: Levels, depth: Levels, tiles: Levels) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The finest mixed map, and the logits from fine to coarse; the last are of the overview."""
        size = tiles.overview.shape[-2:]
        logits = self.sides[5](resized(image.overview, size) + resized(depth.overview, size) + tiles.overview)
        streams = (image.overview, depth.overview, tiles.overview)
        sides = [logits]
        for step, (fusion, mix) in enumerate(zip(self.fusions, self.stream_mix, strict=True)):
            current = [levels.maps[-1 - step] for levels in (image, depth, tiles)]
            joined = [
                torch.cat([resized(before, now.shape[-2:]), now], 1)
                for before, now in zip(streams, current, strict=True)
            ]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                streams = self._gradient_checkpointing_func(fusion, *joined, logits)
            else:
                streams = fusion(*joined, logits)
            size = streams[2].shape[-2:]
            mixed = mix(torch.cat([resized(stream, size) for stream in streams], 1))
            logits = self.sides[4 - step](mixed)
            sides.insert(0, logits)
        return mixed, tuple(sides)

    def full_size(self, mixed: Tensor, picture: Tensor, depth: Tensor) -> Tensor:
        """Logits in the size of the picture."""
        height, width = picture.shape[-2:]
        detail = self.detail(resized(torch.cat([picture, depth], 1), (4 * height, 4 * width)))
        half = (height // 2, width // 2)
        x = self.finish[0](resized(mixed, half) + resized(detail, half))
        x = self.finish[1](resized(x, (height, width)) + detail)
        return self.sides[0](x)


class ConvEncoder(nn.Module):
    """Four scales by convolutions whose kernel is their stride, each with GELU and residual blocks behind.

    Args:
        widths: channels of each scale.
        strides: reduction at each scale.
        depths: residual blocks at each.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        inputs = (3, *widths)
        self.stages = nn.ModuleList(
            nn.Conv2d(inputs[i], width, stride, stride)
            for i, (width, stride) in enumerate(zip(widths, strides, strict=True))
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to its scales, (B, width, h, w) each."""
        levels, x = [], picture
        for stage, blocks in zip(self.stages, self.blocks, strict=True):
            x = blocks(F.gelu(stage(x)))
            levels.append(x)
        return levels


class ResidualBlock(nn.Module):
    """``x + convolutions(x)``; at the start half of it is 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(width, width), nn.Conv2d(width, width, 1))
        nn.init.zeros_(self.body[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D, h, w)."""
        return x + self.body(x)


class DepthDecoder(nn.Module):
    """Predicts the depth from what the encoder says of all streams: five scales. Training uses it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            nn.Sequential(conv_norm(inputs * dim, 2 * dim), conv_norm(2 * dim, dim))
            for inputs in (6, 4, 4, 4)
        )
        self.detail = nn.Conv2d(6, dim, 3, padding=1)
        self.finish = nn.ModuleList(conv_norm(dim, dim) for _ in range(2))
        self.sides = nn.ModuleList(nn.Conv2d(dim, 1, 3, padding=1) for _ in range(5))

    def forward(self, picture: Tensor, depth: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Picture and depth (B, 3, H, W), levels fine to coarse and the overview (B, 3 D, h, w): five logits."""
        x = levels[-1]
        sides: list[Tensor] = []
        for step, level in zip(self.steps, reversed(levels[:-1]), strict=True):
            x = step(torch.cat([resized(x, level.shape[-2:]), level], 1))
            sides.insert(0, self.sides[len(self.steps) - len(sides)](x))
        detail = self.detail(torch.cat([picture, depth], 1))
        x = x + resized(detail, x.shape[-2:])
        x = self.finish[0](resized(x, (2 * x.shape[-2], 2 * x.shape[-1])))
        x = x + resized(detail, x.shape[-2:])
        x = self.finish[1](resized(x, (2 * x.shape[-2], 2 * x.shape[-1])))
        return (self.sides[0](x), *sides)


def from_tiles(x: Tensor, tiles: int) -> Tensor:
    """The inverse of :func:`to_tiles`: (tiles^2 * B, C, h, w) to (B, C, tiles * h, tiles * w)."""
    batch = x.shape[0] // tiles**2
    x = x.reshape(tiles, tiles, batch, *x.shape[1:]).permute(2, 3, 0, 4, 1, 5)
    return x.reshape(batch, x.shape[1], tiles * x.shape[3], tiles * x.shape[5])


def sobel_filters() -> Tensor:
    """Differences to the right and downwards: (2, 1, 3, 3)."""
    right = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    return torch.stack([right, right.T])[:, None]


def depth_edges(depth: Tensor, filters: Tensor | None = None, zero_border: bool = False) -> Tensor:
    """``abs(d/dx) + abs(d/dy)`` of a map (B, 1, H, W), by Sobel's filters.

    Args:
        depth: the map.
        filters: those of :func:`sobel_filters`.
        zero_border: let the map end in zeros, as the released code does, which makes the border of the picture an edge.
    """
    filters = (sobel_filters() if filters is None else filters).to(depth)
    around = F.pad(depth, (1, 1, 1, 1), mode="constant" if zero_border else "replicate")
    return F.conv2d(around, filters).abs().sum(1, keepdim=True)


def normalized(depth: Tensor, per_sample: bool = True) -> Tensor:
    """Stretch to [0, 1], each sample or the whole batch; a constant depth becomes 0."""
    low, high = (
        (depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True))
        if per_sample
        else (depth.min(), depth.max())
    )
    return (depth - low) / (high - low).clamp_min(1e-12)
