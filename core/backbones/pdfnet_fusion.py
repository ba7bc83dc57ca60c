"""PDFNet's fusion block: picture, depth and tiles look at each other, guided by the mask so far."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PolyditError

__all__ = [
    "CrossAttentionUnit",
    "Fusion",
    "Sizes",
    "boundary_and_integrity",
    "check_square",
    "conv_norm",
    "resized",
    "to_tiles",
]

OUTLINE = 0.1
"""How far a probability must be from the mean around it to count as outline."""


class Sizes(NamedTuple):
    """Channels of a fusion: of the three inputs, and of what comes out."""

    image: int
    depth: int
    tiles: int
    out: int


class ChannelNorm(nn.Module):
    """Root-mean-square norm over axis 1 of a map, or the last one of tokens, in float32."""

    def __init__(self, width: int, axis: int = 1, eps: float = 1e-6) -> None:
        super().__init__()
        self.axis, self.eps = axis, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of x."""
        full = x.float()
        y = (full * torch.rsqrt(full.pow(2).mean(self.axis, keepdim=True) + self.eps)).to(x.dtype)
        return y * (self.weight[:, None, None] if self.axis == 1 else self.weight)


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, norm over channels, SiLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), ChannelNorm(outputs), nn.SiLU())


def resized(x: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Bilinear, corners on corners, as the published network has it; untouched if it has the size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def to_tiles(x: Tensor, tiles: int) -> Tensor:
    """(B, C, H, W) to tiles^2 tiles, (tiles^2 * B, C, h, w), row by row, samples of one tile together."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, tiles, height // tiles, tiles, width // tiles)
    return x.permute(2, 4, 0, 1, 3, 5).reshape(-1, channels, height // tiles, width // tiles)


def boundary_and_integrity(logits: Tensor, released_quirks: bool = False) -> tuple[Tensor, Tensor]:
    """Where the outline of the mask so far is, 0 or 1, and how sure the mask is elsewhere: (B, 1, h, w) each.

    Args:
        logits: of the mask, (B, 1, h, w).
        released_quirks: the window has an eighth of the size (plus one if that is even); where it is odd, the released
            code forgets the threshold, and everywhere it takes the sigmoid twice. It takes squares only.

    Raises:
        PolyditError: the logits are no square, and ``released_quirks`` is set.
    """
    if released_quirks:
        check_square(*logits.shape[-2:])
    probability = logits.sigmoid()
    values = probability.sigmoid() if released_quirks else probability
    eighths = (logits.shape[-2] // 8, logits.shape[-1] // 8)
    even = eighths[0] % 2 == 0
    window = [side + even for side in eighths] if released_quirks else [side // 2 * 2 + 1 for side in eighths]
    around = F.avg_pool2d(values, window, stride=1, padding=[side // 2 for side in eighths])
    boundary = (values - around).abs()
    if even or not released_quirks:
        boundary = (boundary > OUTLINE).to(boundary.dtype)
    return boundary, F.relu(probability - boundary)


def check_square(height: int, width: int) -> None:
    """What the released network asks of its pictures, and with them of all its maps.

    Raises:
        PolyditError: it is no square.
    """
    if height != width:
        raise PolyditError(
            f"a picture of {width}x{height}: the released PDFNet takes squares only; resize it to a square"
        )


class CrossAttention(nn.Module):
    """One head, without biases."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(B, N, D) and (B, M, D) to (B, N, D)."""
        key, value = self.to_kv(others).chunk(2, -1)
        rate = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(
            self.to_q(tokens)[:, None], key[:, None], value[:, None], dropout_p=rate
        )
        return self.to_out(seen[:, 0])


class CrossAttentionUnit(nn.Module):
    """Tokens look at other tokens, then a gated MLP; norms are on the branches."""

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.attn = CrossAttention(dim, dropout)
        self.norm1, self.norm2 = ChannelNorm(dim, -1), ChannelNorm(dim, -1)
        self.gate, self.up, self.down = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(B, N, D) and (B, M, D) to (B, N, D)."""
        x = tokens + F.dropout(self.norm1(self.attn(tokens, others)), self.dropout, self.training)
        mixed = self.down(F.silu(self.gate(x)) * self.up(x))
        return x + F.dropout(self.norm2(mixed), self.dropout, self.training)


class Fusion(nn.Module):
    """Feature selection and enhancement.

    Args:
        sizes: channels.
        pool: by how much picture, depth and tiles are reduced where they are keys, values or queries.
        tiles: cells along a side in which tiles are chosen.
        dropout: of the attention units.
        released_quirks: see :func:`boundary_and_integrity`; and the choice of cells passes no gradient.
    """

    def __init__(
        self,
        sizes: Sizes,
        pool: tuple[int, int, int] = (1, 1, 1),
        tiles: int = 8,
        dropout: float = 0.1,
        released_quirks: bool = False,
    ) -> None:
        super().__init__()
        self.pool, self.tiles, self.released_quirks = pool, tiles, released_quirks
        self.image_in = conv_norm(sizes.image, sizes.out)
        self.depth_in = conv_norm(sizes.depth, sizes.out)
        self.tiles_in = conv_norm(sizes.tiles, sizes.out)
        self.image_to_tiles = CrossAttentionUnit(sizes.out, dropout)  # its queries come from the picture
        self.tiles_to_both = CrossAttentionUnit(sizes.out, dropout)
        self.image_to_depth = CrossAttentionUnit(sizes.out, dropout)
        self.depth_to_both = CrossAttentionUnit(sizes.out, dropout)

    def forward(
        self, image: Tensor, depth: Tensor, tiles: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fuse.

        Args:
            image: (B, C, h, w) of the picture.
            depth: (B, C, h, w) of the depth.
            tiles: (B, C, H, W) of the tiles.
            logits: the mask so far, (B, 1, H', W').

        Returns:
            the three with ``sizes.out`` channels.
        """
        boundary, integrity = boundary_and_integrity(logits, self.released_quirks)
        probability = logits.sigmoid()
        image = image * resized(probability, image.shape[-2:])
        depth = depth * resized(probability, depth.shape[-2:])
        # The released code takes the sigmoid of resized logits here, and resizes probabilities above.
        trust = resized(logits, depth.shape[-2:]).sigmoid() + resized(integrity, depth.shape[-2:])
        tiles = self.enhanced(tiles * resized(probability, tiles.shape[-2:]), boundary)
        image, depth, tiles = self.image_in(image), self.depth_in(depth * trust), self.tiles_in(tiles)
        pooled = [
            F.adaptive_avg_pool2d(x, (x.shape[-2] // ratio, x.shape[-1] // ratio))
            for x, ratio in zip((image, depth, tiles), self.pool, strict=True)
        ]
        image_tokens, depth_tokens, tile_tokens = (x.flatten(2).transpose(1, 2) for x in pooled)
        seen_tiles = self.tiles_to_both(tile_tokens, torch.cat([image_tokens, depth_tokens], 1))
        seen_image = self.image_to_tiles(image.flatten(2).transpose(1, 2), seen_tiles)
        seen_depth = self.depth_to_both(depth_tokens, torch.cat([image_tokens, tile_tokens], 1))
        seen_image = self.image_to_depth(seen_image, seen_depth)
        return (
            image + as_map(seen_image, image),
            depth + resized(as_map(seen_depth, pooled[1]), depth.shape[-2:]),
            tiles + resized(as_map(seen_tiles, pooled[2]), tiles.shape[-2:]),
        )

    def enhanced(self, tiles: Tensor, boundary: Tensor) -> Tensor:
        """Double the cells in which there is outline."""
        cells = F.adaptive_max_pool2d(boundary, self.tiles)
        weight = 1 + (cells > 0).to(tiles.dtype)
        weight = F.interpolate(weight, tiles.shape[-2:], mode="nearest")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.released_quirks):
            return tiles * weight


def as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h * w, D) to (B, D, h, w) of another map's size."""
    return tokens.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[-2:])
