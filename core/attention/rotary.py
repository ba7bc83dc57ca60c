"""Rotary position embedding over any number of axes (RoFormer, arXiv 2104.09864; axial form of EVA-02, 2303.11331)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["RotaryEmbed", "apply_rotary", "rotary_axes_dim", "rotary_table"]


def rotary_axes_dim(head_dim: int, axes: int) -> tuple[int, ...]:
    """Even channels per axis; what does not divide goes to the first axis. Two axes: half of the head each."""
    each = head_dim // axes // 2 * 2
    if each == 0:
        raise ValueError(f"a head of {head_dim} channels is too narrow for rotary positions over {axes} axes")
    return (head_dim // 2 * 2 - each * (axes - 1), *[each] * (axes - 1))


def rotary_table(
    position_ids: Tensor, axes_dim: Sequence[int], theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a set of positions.

    Args:
        position_ids: (..., N, A), one coordinate per axis, integer or fractional.
        axes_dim: channels per axis (even); channel pairs (2k, 2k+1) share the frequency theta^(-2k/dim).
        theta: base of the frequencies.

    Returns:
        Two float32 tables (..., N, sum(axes_dim)).
    """
    angles = []
    for axis, dim in enumerate(axes_dim):
        # Float32 throughout: no float64 on some devices, and this is what the published code computes.
        frequencies = 1.0 / theta ** (
            torch.arange(0, dim, 2, dtype=torch.float32, device=position_ids.device)[: dim // 2] / dim
        )
        angles.append(position_ids[..., axis, None].float() * frequencies)
    table = torch.cat(angles, dim=-1).repeat_interleave(2, dim=-1)
    return table.cos(), table.sin()


class RotaryEmbed(nn.Module):
    """:func:`rotary_table` as a module without weights, so that parallel plans can split what it returns."""

    def __init__(self, axes_dim: Sequence[int], theta: float = 10000.0) -> None:
        super().__init__()
        self.axes_dim, self.theta = tuple(axes_dim), theta

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(..., N, A) -> cosines and sines (..., N, d)."""
        return rotary_table(position_ids, self.axes_dim, self.theta)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs of (B, H, N, d) by a :func:`rotary_table`, in float32.

    Channels beyond the table's width pass unrotated.
    """
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([apply_rotary(x[..., :width], cos, sin), x[..., width:]], dim=-1)
    pairs = x.unflatten(-1, (-1, 2))
    if _as_complex(x, cos):
        turn = torch.complex(cos[..., ::2], sin[..., ::2])
        pairs = pairs.float()
        if any(stride % 2 for stride in (*pairs.stride()[:-1], pairs.storage_offset())):
            pairs = pairs.contiguous()
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x.dtype)
    even, odd = pairs.unbind(-1)
    rotated = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cos + rotated * sin).to(x.dtype)


def _as_complex(x: Tensor, cos: Tensor) -> bool:
    """One complex product is 2 to 10 times faster on a CPU; compilers and exporters want real ones."""
    return (
        x.device.type in ("cpu", "cuda")
        and type(x) is Tensor
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and cos.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
    )
