"""LoRAs of several layers as one of their fused layer, and back: q, k, v as ``qkv``.

Fused they are block-diagonal: ``A = [A_q; A_k; A_v]`` and B has B_q, B_k, B_v on its diagonal, zeros elsewhere, so
k parts of rank r make rank k r. Loaders know the pattern and undo it. A LoRA that was trained on the fused layer has
one A for all parts; splitting gives each part a copy, and fusing equal copies gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .lora_file import LoraModule

__all__ = ["fuse", "split", "swap_halves"]


def fuse(parts: Mapping[str, LoraModule], names: Sequence[str], widths: Sequence[int]) -> LoraModule:
    """One LoRA of the fused layer; layers without a LoRA stay as they are.

    Args:
        parts: LoRAs at scale 1 by layer; of some or all layers.
        names: All layers in the order of the fused rows.
        widths: Rows of each, in units of the input's width, for those that have no LoRA.

    Returns:
        Of rank r if all share one A, else of rank ``len(names) * r`` with r the largest rank among them.

    Raises:
        ValueError: some but not all have DoRA magnitudes: the missing ones cannot be known without the base.
    """
    have = [parts[name] for name in names if name in parts]
    first = have[0]
    magnitudes = [part.magnitude for part in have if part.magnitude is not None]
    if magnitudes and len(magnitudes) != len(names):
        raise ValueError("DoRA on a part of a fused layer")
    keys = [key for part in have for key in part.keys]
    magnitude = torch.cat(magnitudes) if magnitudes else None
    if len(have) == len(names) and all(torch.equal(part.a, first.a) for part in have):
        return LoraModule(first.a, torch.cat([part.b for part in have]), magnitude, 1.0, keys)
    rank, width = max(part.a.shape[0] for part in have), first.a.shape[1]
    rows = [
        parts[name].b.shape[0] if name in parts else units * width
        for name, units in zip(names, widths, strict=True)
    ]
    a = first.a.new_zeros(len(names) * rank, width)
    b = first.b.new_zeros(sum(rows), len(names) * rank)
    row = 0
    for index, name in enumerate(names):
        if name in parts:
            part, column = parts[name], index * rank
            a[column : column + part.a.shape[0]] = part.a
            b[row : row + rows[index], column : column + part.b.shape[1]] = part.b
        row += rows[index]
    return LoraModule(a, b, magnitude, 1.0, keys)


def split(module: LoraModule, names: Sequence[str], widths: Sequence[int]) -> dict[str, LoraModule]:
    """The LoRAs of the layers that are fused in one; layers that it does not change are left out.

    Raises:
        ValueError: the rows are not those of these layers.
    """
    rank, width = module.a.shape[0], module.a.shape[1]
    rows = [units * width for units in widths]
    if module.b.shape[0] != sum(rows):
        raise ValueError(f"{module.b.shape[0]} rows, not {' + '.join(map(str, rows))}")
    bs = module.b.split(rows)
    magnitudes: Sequence[Tensor | None] = (
        [None] * len(rows) if module.magnitude is None else module.magnitude.split(rows)
    )
    each, left_over = divmod(rank, len(names))
    diagonal = not left_over and all(
        not b[:, other * each : (other + 1) * each].any()
        for index, b in enumerate(bs)
        for other in range(len(names))
        if other != index
    )
    parts = {}
    silent = module.b.any() and module.magnitude is None  # then parts that are all zero say nothing
    for index, (name, b, magnitude) in enumerate(zip(names, bs, magnitudes, strict=True)):
        if silent and not b.any():
            continue
        a = module.a
        if diagonal:
            columns = slice(index * each, (index + 1) * each)
            a, b = _without_padding(a[columns], b[:, columns])
        parts[name] = LoraModule(a, b, magnitude, module.scale, module.keys)
    return parts


def _without_padding(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Without the zeros at the end that :func:`fuse` gave a part of lower rank than the others."""
    used = a.any(1) | b.any(0)
    rank = max(1, int(used.nonzero().max()) + 1) if used.any() else a.shape[0]
    return a[:rank], b[:, :rank]


def swap_halves(module: LoraModule) -> LoraModule:
    """The same for a modulation whose two parts stand in the other order; other row counts stay as they are."""
    if module.b.shape[0] != 2 * module.a.shape[1]:
        return module
    magnitude = None if module.magnitude is None else torch.cat(module.magnitude.chunk(2)[::-1])
    return LoraModule(module.a, torch.cat(module.b.chunk(2)[::-1]), magnitude, module.scale, module.keys)
