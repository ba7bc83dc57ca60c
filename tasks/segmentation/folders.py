"""Pictures with masks on disk: DIS5K, HRSOD, UHRSD, COD10K, and any pair of folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.images import IMAGE_SUFFIXES, image_size, read_image, to_uint8
from ...core.data.masks import counted, edge_band
from ...core.errors import PolyditError

__all__ = ["LAYOUTS", "MaskFolder", "Masked", "edge_target", "find_layout", "read_mask"]

PAIRS = (
    ("im", "gt"),
    ("images", "masks"),
    ("image", "mask"),
    ("Imgs", "GT"),
    ("Image", "GT_Object"),
    ("imgs", "gts"),
)
"""Names of the folders of pictures and masks, as the data sets have them."""

EDGES = {"gt": "contour", "GT_Object": "GT_Edge"}
"""Folder of masks -> folder of edges beside it, where a data set has one."""

LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "dis5k": {
        "train": ("DIS-TR",),
        "val": ("DIS-VD",),
        "test": ("DIS-TE1", "DIS-TE2", "DIS-TE3", "DIS-TE4"),
    },
    "hrsod": {
        "train": ("HRSOD-TR", "HRSOD_train", "train", "TR"),
        "test": ("HRSOD-TE", "HRSOD_test", "test", "TE"),
    },
    "uhrsd": {
        "train": ("UHRSD-TR", "UHRSD_TR_2K", "UHRSD_TR"),
        "test": ("UHRSD-TE", "UHRSD_TE_2K", "UHRSD_TE"),
    },
    "cod10k": {"train": ("TrainDataset", "Train"), "test": ("TestDataset", "Test")},
    "folders": {"train": (".", "train"), "val": ("val",), "test": ("test",)},
}
"""Data set -> split -> where it may lie, relative to the root. All that are there are read."""

SETS = {"cod10k": "COD10K"}
"""Data set -> its folder where others, such as CAMO and NC4K, lie beside it; without an entry all are read."""

EDGE_THRESHOLD = 6
"""Of 255: where a grey mask changes by this much within five pixels, the edge target is set; published."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Masked:
    """Files of one sample; ``edges`` and ``depth`` where there are any."""

    picture: Path
    mask: Path
    edges: Path | None = None
    depth: Path | None = None


class MaskFolder(Sequence[Masked]):
    """Pictures and masks paired by their names.

    Args:
        pictures: folder of pictures.
        masks: folder of masks, 8-bit grey; another file type than the picture's is fine.
        edges: folder of edge maps; where a picture has none, they are made of the mask.
        depth: folder of depth maps.
        strict: fail on files without a partner instead of naming their number.

    Attributes:
        unmatched: files without a partner.

    Raises:
        PolyditError: a folder is missing, or nothing can be paired.
    """

    def __init__(
        self,
        pictures: str | Path,
        masks: str | Path,
        edges: str | Path | None = None,
        depth: str | Path | None = None,
        strict: bool = False,
    ) -> None:
        found, targets = _by_stem(Path(pictures)), _by_stem(Path(masks))
        more = [_by_stem(Path(folder)) if folder is not None else {} for folder in (edges, depth)]
        shared = sorted(found.keys() & targets.keys())
        lonely = sorted(found.keys() ^ targets.keys())
        self.unmatched = [found.get(stem) or targets[stem] for stem in lonely]
        if not shared:
            raise PolyditError(
                f"{pictures}: none of {len(found)} pictures has a mask of its name in {masks} ({len(targets)} files); "
                "picture and mask must have the same name up to the ending"
            )
        if lonely and strict:
            raise PolyditError(
                f"{self.unmatched[0]}: has no partner, as have {len(lonely) - 1} others; add or remove them"
            )
        self.samples = [
            Masked(found[stem], targets[stem], more[0].get(stem), more[1].get(stem)) for stem in shared
        ]
        self.strict = strict

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Masked:  # type: ignore[override]
        return self.samples[index]

    def read(self, index: int, limit_side: int | None = None) -> tuple[Pixels, Pixels, Pixels]:
        """Picture (H, W, 3), mask and edges (H, W), all uint8.

        Args:
            index: of the sample.
            limit_side: reduce so that the longer side is at most this.

        Raises:
            PolyditError: a file cannot be read, or the mask has another size than the picture.
        """
        sample = self.samples[index]
        picture = to_uint8(read_image(sample.picture)[0])
        mask = read_mask(sample.mask, picture.shape[:2])
        edges = read_mask(sample.edges, picture.shape[:2]) if sample.edges is not None else None
        if limit_side and max(mask.shape) > limit_side:
            ratio = limit_side / max(mask.shape)
            size = (max(1, round(mask.shape[1] * ratio)), max(1, round(mask.shape[0] * ratio)))
            picture = np.asarray(
                Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
            )
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BOX))
            if edges is not None:
                edges = np.asarray(Image.fromarray(edges).resize(size, Image.Resampling.BOX))
        return picture, mask, edge_target(mask) if edges is None else edges


def edge_target(mask: Pixels, radius: int = 2) -> Pixels:
    """The edge map that DiffDIS learns: (..., H, W) uint8, 255 where dilation exceeds erosion by a little, else 0.

    Args:
        mask: (..., H, W) of 0..255.
        radius: of both, in pixels; published is a square of 5x5.
    """
    return np.where(edge_band(mask, radius) >= EDGE_THRESHOLD, 255, 0).astype(np.uint8)


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> Pixels:
    """A mask (H, W) uint8: the grey of the file, or its alpha where the file is nothing but alpha.

    Of a file that counts in 0 and 1 the ones are white.

    Args:
        path: a picture file.
        size: (height, width) that it must have.

    Raises:
        PolyditError: it cannot be read, or has another size.
    """
    pixels, info = read_image(path, background=(0, 0, 0))
    grey = to_uint8(pixels)
    mask = (
        np.ascontiguousarray(grey[..., 0])
        if _is_grey(grey)
        else np.asarray(Image.fromarray(grey).convert("L"))
    )
    if info.alpha is not None and not mask.any():
        mask = to_uint8(info.alpha)
    mask = counted(mask)
    if size is not None and mask.shape != tuple(size):
        raise PolyditError(
            f"{path}: is {mask.shape[1]}x{mask.shape[0]}, and its picture is {size[1]}x{size[0]}; "
            "a mask has the size of its picture"
        )
    return mask


def find_layout(
    root: str | Path, layout: str = "auto", split: str = "train"
) -> list[tuple[Path, Path, Path | None]]:
    """Folders of pictures, masks and (or None) edges of a data set's split.

    Args:
        root: of the data set, or the folder that holds folders of pictures and masks.
        layout: one of `LAYOUTS`, or ``auto``.
        split: ``train``, ``val`` or ``test``.

    Raises:
        PolyditError: there is no such layout or nothing of the split.
    """
    root = Path(root)
    if layout != "auto" and layout not in LAYOUTS:
        raise PolyditError(f"layout {layout!r}: unknown; choose auto, {', '.join(LAYOUTS)}")
    names = list(LAYOUTS) if layout == "auto" else [layout]
    for name in names:
        found = [
            (part / pictures, part / masks, _beside(part, masks))
            for place in LAYOUTS[name].get(split, ())
            for part in ([root] if place == "." else _with_sets(root / place, SETS.get(name)))
            for pictures, masks in PAIRS
            if (part / pictures).is_dir() and (part / masks).is_dir()
        ]
        if found:
            return found
    looked = ", ".join(f"{a}/{b}" for a, b in PAIRS)
    raise PolyditError(
        f"{root}: no pictures and masks of the split '{split}' ({layout}); folders may be called {looked}"
    )


def _beside(part: Path, masks: str) -> Path | None:
    edges = part / EDGES.get(masks, "edges")
    return edges if edges.is_dir() else None


def _with_sets(place: Path, only: str | None = None) -> list[Path]:
    """The folder itself and those one level down, or the one of this name: test sets lie beside each other."""
    if not place.is_dir():
        return []
    beside = sorted(child for child in place.iterdir() if child.is_dir() and only in (None, child.name))
    return [place, *beside]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise PolyditError(f"{folder}: no such folder; give one of pictures")
    # Not by pattern: DIS5K's names hold '#', and other sets' brackets.
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    return {path.stem: path for path in files}


def _is_grey(pixels: Pixels) -> bool:
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def check_sizes(samples: Sequence[Masked]) -> None:
    """Compare the sizes of pictures and masks by their headers.

    Raises:
        PolyditError: names the first that differ.
    """
    for sample in samples:
        picture, mask = image_size(sample.picture), image_size(sample.mask)
        if picture != mask:
            raise PolyditError(
                f"{sample.mask}: is {mask[0]}x{mask[1]}, and its picture is {picture[0]}x{picture[1]}; "
                "a mask has the size of its picture"
            )
