"""Pictures that come in pairs: DIV2K, RealSR, DRealSR and test-set layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import PolyditError
from .images import list_images, read_image, to_float
from .pictures import sample_generator

__all__ = ["LAYOUTS", "Pair", "PairedPictures", "find_pairs", "match"]

# _HR, _LR4, _x1, x4, x4m, x4w2, in any combination at the end of a stem.
_ENDINGS = re.compile(r"(?:[_-](?:HR|GT|SR|LR\d*)|[_-]?[xX]\d(?:[mdw]\d?)?)+$")


@dataclass(frozen=True)
class Pair:
    """A high-quality picture and a low-quality one of the same scene."""

    stem: str
    hr: Path
    lr: Path


def match(hr: list[Path], lr: list[Path]) -> list[Pair]:
    """Pair files by their stems without endings such as ``_HR``, ``_LR4``, ``x4``; never by their order.

    Several low-quality files may belong to one high-quality file (DIV2K's ``wild`` track).

    Raises:
        PolyditError: a file without partner (the first one is named, and how many there are), or an ambiguous stem.
    """
    by_stem: dict[str, Path] = {}
    for path in hr:
        stem = _stem(path)
        if stem in by_stem:
            raise PolyditError(
                f"{path}: has the same stem '{stem}' as {by_stem[stem].name}; rename one of them"
            )
        by_stem[stem] = path
    strangers = [path for path in lr if _stem(path) not in by_stem]
    if strangers:
        raise PolyditError(
            f"{strangers[0]}: has no high-quality partner with the stem '{_stem(strangers[0])}' "
            f"({len(strangers)} of {len(lr)} are unmatched); check the folders"
        )
    known = {_stem(path) for path in lr}
    lonely = [path for stem, path in by_stem.items() if stem not in known]
    if lonely:
        raise PolyditError(
            f"{lonely[0]}: has no low-quality partner with the stem '{_stem(lonely[0])}' "
            f"({len(lonely)} of {len(hr)} are unmatched); check the folders"
        )
    return [Pair(path.stem, by_stem[_stem(path)], path) for path in sorted(lr)]


def find_pairs(root: str | Path, *, layout: str = "auto", split: str = "train", scale: int = 4) -> list[Pair]:
    """Find the pairs of a data set in its own layout.

    Args:
        root: folder of the data set.
        layout: one of `LAYOUTS`, or ``auto`` to recognise it.

            - ``div2k``: ``DIV2K_train_HR/0001.png`` and ``DIV2K_train_LR_bicubic/X4/0001x4.png`` (``valid`` for
              ``split="val"``; where there is no ``bicubic``, ``unknown``, ``mild``, ``difficult`` or ``wild``).
            - ``realsr``: ``{Canon,Nikon}/{Train,Test}/4/Canon_001_HR.png`` and ``Canon_001_LR4.png``.
            - ``drealsr``: ``Train_x4/train_HR`` and ``train_LR`` (``Test_x4/test_HR`` and ``test_LR``).
            - ``crops``: ``test_HR`` and ``test_LR``, the centre crops that RealSR and DRealSR are tested on.
            - ``dit4sr``: ``gt`` and ``sr_bicubic`` (low-quality pictures enlarged to the target's size).
            - ``folders``: ``HR`` and ``LR``, ``GT`` and ``LR``, ``hr`` and ``lr``, ``gt`` and ``lq``, perhaps with a
              folder ``X4`` inside.
        split: ``train``, or ``val`` (also for test sets).
        scale: factor between the two.

    Raises:
        PolyditError: no such layout in `root`, or pictures without partner.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise PolyditError(f"{root}: no such folder; give the data set's folder")
    if split not in ("train", "val"):
        raise PolyditError(f"split '{split}': paired data sets have 'train' and 'val'")
    if layout != "auto" and layout not in LAYOUTS:
        raise PolyditError(f"layout '{layout}': unknown; choose from auto, {', '.join(LAYOUTS)}")
    tried = list(LAYOUTS) if layout == "auto" else [layout]
    for name in tried:
        found = LAYOUTS[name](root, split, scale)
        if found is not None:
            hr, lr = found
            return match(hr, lr)
    raise PolyditError(
        f"{root}: no pairs for split '{split}' and scale {scale} in the layout {' or '.join(tried)}; "
        f"it has {', '.join(sorted(p.name for p in root.iterdir())[:4]) or 'nothing'}"
    )


class PairedPictures(Dataset[dict[str, Any]]):
    """Pairs of pictures, whole or as aligned random crops.

    Args:
        pairs: of `find_pairs` or `match`.
        scale: factor between the two; 1 where the low-quality picture was enlarged already.
        size: side of the target's crop; None gives whole pictures, cut to a multiple of the scale.
        flips: mirror and turn crops at random.
        seed: of the crops; sample number ``epoch * len(dataset) + i`` gives other crops in each epoch.
        read: reads a file as (H, W, 3), for example from a cache; None is `read_image`.

    Each sample is a dict with ``gt`` (3, H, W) and ``lq`` (3, H/scale, W/scale), float32 in [-1, 1], and ``stem``.

    Raises:
        PolyditError: no pairs; while reading: sizes that do not fit the scale, or a picture smaller than the crop.
    """

    def __init__(
        self,
        pairs: list[Pair],
        *,
        scale: int,
        size: int | None = None,
        flips: bool = True,
        seed: int = 0,
        read: Callable[[Path], np.ndarray] | None = None,
    ) -> None:
        if not pairs:
            raise PolyditError("paired pictures: the list of pairs is empty; give a data set with pictures")
        if size is not None and size % scale:
            raise PolyditError(f"size {size}: is not a multiple of scale {scale}; choose another crop size")
        self.pairs, self.scale, self.size, self.flips, self.seed = pairs, scale, size, flips, seed
        self.read = read or _read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index % len(self.pairs)]
        hr, lr = self.read(pair.hr), self.read(pair.lr)
        scale = self.scale
        height, width = lr.shape[:2]
        # The target may have up to scale - 1 pixels more than the low-quality picture accounts for.
        if (hr.shape[0] // scale, hr.shape[1] // scale) != (height, width):
            raise PolyditError(
                f"{pair.lr}: {width}x{height} is not {pair.hr.name} ({hr.shape[1]}x{hr.shape[0]}) divided by {scale}; "
                f"check the scale"
            )
        if self.size is None:
            hr, lr = hr[: height * scale, : width * scale], lr[:height, :width]
        else:
            hr, lr = self._crop(hr, lr, height, width, sample_generator(self.seed, index), pair)
        return {"gt": _signed(hr), "lq": _signed(lr), "stem": pair.stem}

    def _crop(
        self, hr: np.ndarray, lr: np.ndarray, height: int, width: int, generator: torch.Generator, pair: Pair
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self.size is not None
        side, scale = self.size // self.scale, self.scale
        if min(height, width) < side:
            raise PolyditError(
                f"{pair.hr}: {hr.shape[1]}x{hr.shape[0]} is smaller than the crop of {self.size} pixels"
            )
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        top, left = int(draws[0] * (height - side + 1)), int(draws[1] * (width - side + 1))
        lr = lr[top : top + side, left : left + side]
        hr = hr[top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        if self.flips:
            turns = int(draws[2] * 4)
            lr, hr = np.rot90(lr, turns), np.rot90(hr, turns)
            if draws[3] < 0.5:
                lr, hr = lr[:, ::-1], hr[:, ::-1]
        return hr, lr


def _read(path: Path) -> np.ndarray:
    return read_image(path)[0]


def _stem(path: Path) -> str:
    return _ENDINGS.sub("", path.stem) or path.stem


def _signed(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(to_float(pixels).transpose(2, 0, 1))) * 2 - 1


Found = tuple[list[Path], list[Path]] | None


def _both(hr: Path, lr: Path) -> Found:
    return (
        (list_images(hr, recursive=False), list_images(lr, recursive=False))
        if hr.is_dir() and lr.is_dir()
        else None
    )


def _div2k(root: Path, split: str, scale: int) -> Found:
    name = {"train": "train", "val": "valid"}[split]
    for hr in sorted(root.glob(f"*_{name}_HR")):
        for track in ("bicubic", "unknown", "mild", "difficult", "wild"):
            lr = hr.with_name(hr.name[: -len("HR")] + f"LR_{track}")
            if found := _both(hr, lr / f"X{scale}") or _both(hr, lr):
                return found
    return None


def _realsr(root: Path, split: str, scale: int) -> Found:
    part = {"train": "Train", "val": "Test"}[split]
    files = [
        path
        for camera in ("Canon", "Nikon")
        if (root / camera / part / str(scale)).is_dir()
        for path in list_images(root / camera / part / str(scale), recursive=False)
    ]
    hr = [path for path in files if path.stem.endswith("_HR")]
    lr = [path for path in files if re.search(r"_LR\d*$", path.stem)]
    return (hr, lr) if files else None


def _drealsr(root: Path, split: str, scale: int) -> Found:
    part = {"train": "train", "val": "test"}[split]
    for folder in (root / f"{part.capitalize()}_x{scale}", root / part / f"x{scale}", root):
        if split == "val" and folder == root:
            break  # bare test_HR and test_LR are the layout `crops`
        if found := _both(folder / f"{part}_HR", folder / f"{part}_LR"):
            return found
    return None


def _crops(root: Path, split: str, scale: int) -> Found:
    return _both(root / "test_HR", root / "test_LR") if split == "val" else None


def _dit4sr(root: Path, split: str, scale: int) -> Found:
    return _both(root / "gt", root / "sr_bicubic") if split == "train" else None


def _folders(root: Path, split: str, scale: int) -> Found:
    for base in (root / split, root):
        for hr, lr in (("HR", "LR"), ("GT", "LR"), ("hr", "lr"), ("gt", "lq"), ("HR", "LR_bicubic")):
            for inner in (f"X{scale}", f"x{scale}", ""):
                for hr_folder in (base / hr / inner, base / hr):
                    if inner and not (base / lr / inner).is_dir():
                        continue
                    if found := _both(hr_folder, base / lr / inner):
                        return found
    return None


LAYOUTS = {
    "div2k": _div2k,
    "realsr": _realsr,
    "drealsr": _drealsr,
    "crops": _crops,
    "dit4sr": _dit4sr,
    "folders": _folders,
}
