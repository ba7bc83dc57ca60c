"""DiT on point clouds through voxels (DiT-3D, arXiv 2307.01831)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from ..attention import Attention
from .dit import DiT, DiTBlock
from .sizes import SIZES, Size
from .variant import extends
from .voxels import devoxelize, voxel_coordinates, voxelize

__all__ = ["DIT_3D_SIZES", "DiT3D", "load_blocks_from_2d", "make_dit_3d"]

DIT_3D_SIZES: dict[str, Size] = {**{name: SIZES[name] for name in ("S", "B", "XL")}, "L": Size(24, 1152, 16)}
"""L is wider than DiT-L: positions over three axes need a width that divides by 6."""


class ScrambledWindowAttention(Attention):
    """What the released file computes where its windows are switched on: global attention, then a shuffle of tokens.

    Its tokens are cut into windows, but joined to one sequence again before they attend; putting windows together
    afterwards then mixes places and samples of the batch. For comparison with that file only.
    """

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        window: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
    ) -> Tensor:
        """(B, H, N, d) -> (B, N, D)."""
        out = super().attend(query, key, value, mask)
        if window is None or grid is None:
            return out
        batch, tokens, width = out.shape
        counts = [g // w for g, w in zip(grid, window, strict=True)]
        windows = counts[0] * counts[1] * counts[2]
        if batch % windows:
            raise ValueError(
                f"batch of {batch}: the released windows need a multiple of their number, {windows}"
            )
        (a, b, c), (i, j, k) = counts, tuple(window)
        cut = out.reshape(batch, a, i, b, j, c, k, width).permute(0, 1, 3, 5, 2, 4, 6, 7)
        joined = cut.reshape(batch // windows, a, b, c, i, j, k, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return joined.reshape(batch, tokens, width)


class DiT3D(DiT):
    """DiT-3D, "Exploring Plain Diffusion Transformers for 3D Shape Generation" (arXiv 2307.01831).

    A cloud of points (B, 3, N) is averaged into voxels, which are cut into patches; what the transformer predicts on
    the voxels is interpolated at the points.

    Args:
        input_size: voxels per axis.
        patch_size: of a token, in voxels.
        in_channels: features of a point; the first three are its coordinates.
        window_size: side of the attention windows, in tokens.
        window_blocks: numbers of the blocks that attend in windows, as published every third: 0, 3, 6, ...; None with
            a ``window_size`` is that.
        released_windows: the windows of the released file, which are none: see :class:`ScrambledWindowAttention`.
        mlp: the released file has the exact GELU.
        num_classes: categories.
        **kwargs: of :class:`DiT`.

    Raises:
        ValueError: a number of ``window_blocks`` is that of no block.
    """

    @extends(DiT)
    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        window_size: int | None = None,
        window_blocks: list[int] | None = None,
        released_windows: bool = False,
        mlp: str = "gelu",
        num_classes: int | None = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            input_size=[input_size] * 3,
            patch_size=patch_size,
            in_channels=in_channels,
            window_size=window_size,
            mlp=mlp,
            num_classes=num_classes,
            **kwargs,
        )
        if window_blocks is None:
            window_blocks = list(range(0, len(self.blocks), 3))
        if strangers := [n for n in window_blocks if not 0 <= n < len(self.blocks)]:
            raise ValueError(f"window_blocks {strangers}: there are blocks 0 to {len(self.blocks) - 1}")
        for number, block in enumerate(self.blocks):
            if number not in window_blocks:
                setattr(block, "window_size", None)  # noqa: B010 - to a type checker a block is any module
        self.register_to_config(input_size=input_size, patch_size=patch_size)

    def build_block(self, hidden_size: int, num_heads: int, **options: Any) -> DiTBlock:
        """A block; its attention is the released file's if that was asked for."""
        block = super().build_block(hidden_size, num_heads, **options)
        if self.config.released_windows:
            block.attn = ScrambledWindowAttention(hidden_size, num_heads, options.get("qk_norm"))
        return block

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict for each point.

        Args:
            hidden_states: points (B, in_channels, N), noisy, any scale and any number.
            timestep: (B,).
            class_labels: (B,) in 0..num_classes; num_classes is the null class.
            return_dict: False returns a plain tuple.
            **kwargs: of :class:`DiT`.

        Returns:
            An object with ``.sample`` (B, out_channels, N).
        """
        resolution = self.config.input_size
        coordinates = voxel_coordinates(hidden_states[:, :3], resolution)
        voxels = voxelize(hidden_states, coordinates, resolution)
        predicted = super().forward(voxels, timestep, class_labels, **kwargs).sample
        sample = devoxelize(predicted, coordinates).to(predicted)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)


def make_dit_3d(name: str, **overrides: Any) -> DiT3D:
    """A published size by its name, such as ``"DiT-3D-S/4"``: sizes S, B, L, XL, any patch.

    Raises:
        ValueError: for a name that is not known.
    """
    size, _, patch = name.removeprefix("DiT-3D-").partition("/")
    if not name.startswith("DiT-3D-") or size not in DIT_3D_SIZES or not patch.isdigit():
        raise ValueError(
            f"no model named {name!r}; it is DiT-3D-SIZE/PATCH with SIZE in {list(DIT_3D_SIZES)}"
        )
    return DiT3D(**{"patch_size": int(patch), **asdict(DIT_3D_SIZES[size]), **overrides})


def load_blocks_from_2d(model: DiT3D, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Start a DiT-3D from a DiT for pictures: its blocks are taken, all else stays as it is.

    Args:
        model: of the depth and width of the other.
        state_dict: of the two-dimensional DiT, under its official or its native names.

    Returns:
        The names that were taken.

    Raises:
        ValueError: the blocks are of another shape or number.
    """
    taken = {
        name.replace("adaLN_modulation.1.", "modulation."): value
        for name, value in state_dict.items()
        if name.startswith("blocks.")
    }
    own = {name: value for name, value in model.state_dict().items() if name.startswith("blocks.")}
    wrong = sorted(own.keys() ^ taken.keys()) or [n for n in own if own[n].shape != taken[n].shape]
    if wrong:
        raise ValueError(
            f"these blocks are not of a DiT of this depth and width: {wrong[0]} does not fit; choose the same size"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(taken[name])
    return list(own)
