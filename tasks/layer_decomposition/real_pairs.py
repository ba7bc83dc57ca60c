"""Pictures with an object and the same scene without it: no true foreground, but a true background.

RORD's layout (folders ``img``, ``gt`` and ``mask`` with files of the same stem), also with other folders' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ...core.data.images import list_images, read_image, to_uint8
from ...core.errors import PolyditError
from .simulated import as_sample

__all__ = ["RemovalPair", "RemovalPairs", "find_rord"]


@dataclass(frozen=True)
class RemovalPair:
    """Files of one pair.

    Attributes:
        image: with the object.
        background: without it.
        mask: of the object.
        inverted: the mask is 0 on the object, as RORD's are.
    """

    image: Path
    background: Path
    mask: Path
    inverted: bool = True


def find_rord(root: str | Path, split: str = "train") -> list[RemovalPair]:
    """Pairs of a processed RORD: ``<root>/<split>/{img,gt,mask}``, or the three folders in ``root`` itself.

    The published masks are 255 minus the object, so the object is 0. Its split into train and test was drawn without a
    seed: keep a list of your own to compare with others.

    Raises:
        PolyditError: a folder is missing, or a picture has no partner.
    """
    folder = Path(root) / split if (Path(root) / split).is_dir() else Path(root)
    files: dict[str, dict[str, Path]] = {}
    for part in ("img", "gt", "mask"):
        if not (folder / part).is_dir():
            raise PolyditError(f"{folder}: has no folder {part!r}; RORD's layout is img, gt and mask")
        files[part] = {path.stem: path for path in list_images(folder / part)}
    for stem in files["img"]:
        lacking = next((part for part in ("gt", "mask") if stem not in files[part]), None)
        if lacking:
            raise PolyditError(f"{folder / lacking}: there is none for {files['img'][stem].name}")
    return [RemovalPair(path, files["gt"][stem], files["mask"][stem]) for stem, path in files["img"].items()]


class RemovalPairs(Dataset[dict[str, Any]]):
    """Square crops around the object of pairs, without a true foreground.

    Args:
        pairs: the files.
        size: side of the crops in pixels.
        seed: of the draws; sample number i is a function of seed and i.
    """

    def __init__(self, pairs: Sequence[RemovalPair], size: int, seed: int = 0) -> None:
        if not pairs:
            raise PolyditError("real pairs: there are none")
        self.pairs, self.size, self.seed = list(pairs), size, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        pair = self.pairs[index % len(self.pairs)]
        image, background = (read_image(path)[0] for path in (pair.image, pair.background))
        mask = to_uint8(read_image(pair.mask)[0])[..., 0]
        if image.shape != background.shape or mask.shape != image.shape[:2]:
            raise PolyditError(f"{pair.image}: picture, background and mask differ in size")
        if pair.inverted:
            mask = 255 - mask
        height, width = mask.shape
        rows, columns = np.flatnonzero((mask > 127).any(1)), np.flatnonzero((mask > 127).any(0))
        if not len(rows):
            raise PolyditError(f"{pair.mask}: shows no object")
        extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        side = int(min(height, width, max(extent * rng.uniform(1.3, 2.5), self.size)))
        middle = ((rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2)
        top, left = (
            int(np.clip(m - side * rng.uniform(0.3, 0.7), 0, length - side))
            for m, length in zip(middle, (height, width), strict=True)
        )
        box = (left, top, left + side, top + side)
        image, background = (_crop(to_uint8(part), box, self.size) for part in (image, background))
        shown = (_crop(mask, box, self.size) > 0.5).float()
        return as_sample(image, shown, background, None)


def _crop(pixels: np.ndarray, box: tuple[int, int, int, int], size: int) -> Tensor:
    """Part of (H, W[, C]) uint8 as (C, size, size) in [0, 1]."""
    part = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3)
    tensor = torch.from_numpy(np.array(part)).float() / 255
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
