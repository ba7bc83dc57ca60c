"""A hierarchical vision transformer with shifted windows, as an encoder of four scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SwinEncoder"]

_MASKED = -100.0  # added to the logits of tokens from another side of the picture


class SwinEncoder(nn.Module):
    """An encoder of four scales.

    "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030), without its head.
    Names of weights are the published ones, so that published weights of the family load as they are. Any size goes:
    windows that reach beyond the picture are filled with zeros, as in the authors' code for dense prediction.

    Args:
        in_channels: of the picture.
        width: tokens' width at the first scale; it doubles at each.
        depths: blocks at each scale.
        heads: heads at each scale.
        window: side of a window in tokens.
        position_size: side in tokens of the learnt absolute positions, resized to the picture; None for none.
        drop_path: how often the last block is skipped in training; it rises from 0 over the blocks.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 12,
        position_size: int | None = 56,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.widths = tuple(width * 2**level for level in range(len(depths)))
        self.patch_embed = PatchEmbedding(in_channels, width)
        self.absolute_pos_embed: nn.Parameter | None = None
        if position_size is not None:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, width, position_size, position_size))
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path * i / last for i in range(sum(depths))])
        self.layers = nn.ModuleList(
            Stage(dim, [next(rates) for _ in range(depth)], count, window, dim != self.widths[-1])
            for dim, depth, count in zip(self.widths, depths, heads, strict=True)
        )
        for level, dim in enumerate(self.widths):
            self.add_module(f"norm{level}", nn.LayerNorm(dim))
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Small weights everywhere; norms start as they are."""
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """(B, C, H, W) to maps at 1/4, 1/8, 1/16 and 1/32: (B, width * 2**level, h, w) each."""
        x = self.patch_embed(picture)  # (B, h, w, D)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(
                self.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False
            )
            x = x + position.permute(0, 2, 3, 1).to(x.dtype)
        levels = []
        for level, layer in enumerate(self.layers):
            x, following = layer(x)
            levels.append(getattr(self, f"norm{level}")(x).permute(0, 3, 1, 2).contiguous())
            x = following
        return levels


class PatchEmbedding(nn.Module):
    """4x4 pixels to a token."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, C, H, W) to (B, ceil(H / 4), ceil(W / 4), D)."""
        height, width = picture.shape[-2:]
        picture = F.pad(picture, (0, -width % 4, 0, -height % 4))
        return self.norm(self.proj(picture).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """The blocks of a scale, and what halves the map for the next."""

    def __init__(self, width: int, drop_path: Sequence[float], heads: int, window: int, halve: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, window // 2 if i % 2 else 0, rate)
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(width) if halve else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, D) to the same after the blocks, and (B, h / 2, w / 2, 2 D)."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchMerging(nn.Module):
    """Four neighbours to one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) to (B, ceil(h / 2), ceil(w / 2), 2 D)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # down first, then right
        return self.reduction(self.norm(torch.cat(corners, -1)))


class SwinBlock(nn.Module):
    """Attention inside windows, which every other block shifts by half of their side; then an MLP."""

    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) to (B, h, w, D)."""
        height, width = x.shape[1:3]
        y = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        mask = None
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            mask = shifted_mask(y.shape[1], y.shape[2], self.window, self.shift, y.device, y.dtype)
        windows = into_windows(y, self.window)  # (B * windows, window^2, D)
        y = from_windows(self.attn(windows, mask), self.window, y.shape[1], y.shape[2])
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + self.skipped(y[:, :height, :width])
        return x + self.skipped(self.mlp(self.norm2(x)))

    def skipped(self, branch: Tensor) -> Tensor:
        """Leave the branch out for some samples of a training batch."""
        if not self.training or not self.drop_path:
            return branch
        keep = branch.new_empty(branch.shape[0], 1, 1, 1).bernoulli_(1 - self.drop_path)
        return branch * keep / (1 - self.drop_path)


class WindowAttention(nn.Module):
    """Self-attention over the tokens of a window, with a learnt bias for each offset between two of them."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B * W, N, D) with mask (W, N, N) or None to (B * W, N, D)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[offsets(self.window, x.device)]
        bias = bias.permute(2, 0, 1).to(q.dtype)[None]  # (1, heads, N, N)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(batch // mask.shape[0], 1, 1, 1)  # (B * W, heads, N, N)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


def into_windows(x: Tensor, window: int) -> Tensor:
    """(B, h, w, D) to (B * windows, window^2, D), rows of windows first."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, dim)
    return x.transpose(2, 3).reshape(-1, window * window, dim)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`into_windows`."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, -1)


def shifted_mask(
    height: int, width: int, window: int, shift: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Keep tokens apart that only the shift has brought into one window: (windows, N, N)."""
    regions = []
    for side in (height, width):
        place = torch.arange(side, device=device)
        regions.append((place >= side - window).long() + (place >= side - shift).long())
    names = 3 * regions[0][:, None] + regions[1][None, :]
    names = into_windows(names[None, :, :, None], window)[..., 0]  # (windows, N)
    apart = names[:, :, None] != names[:, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, _MASKED)


def offsets(window: int, device: torch.device) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: (N, N)."""
    place = torch.arange(window, device=device)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right
