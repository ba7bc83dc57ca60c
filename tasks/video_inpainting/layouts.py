"""Where data sets of videos keep their frames and masks: DAVIS, YouTube-VOS, ProPainter's copies, folders of clips."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.images import list_images
from ...core.data.masks import dilate
from ...core.errors import PolyditError
from ...core.inputs import SUFFIXES

__all__ = ["LAYOUTS", "ClipFolder", "find_clips", "protocol_masks"]

LAYOUTS = ("auto", "davis", "youtube-vos", "propainter", "clips")


@dataclass(frozen=True)
class ClipFolder:
    """A clip of a data set.

    Attributes:
        name: of the sequence.
        frames: folder of its frames, or a video file.
        masks: folder of its masks, above 0 where an object (or a hole) is; None without.
    """

    name: str
    frames: Path
    masks: Path | None = None

    def object_masks(self, frames: int, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Outlines of one object, or of all, of consecutive masks from a random place on; (frames, height, width)."""
        assert self.masks is not None
        files = sorted(list_images(self.masks, recursive=False))
        first = int(rng.integers(max(1, len(files) - frames + 1)))
        chosen = [files[min(first + i, len(files) - 1)] for i in range(frames)]
        return np.stack([_read(file, size) for file in chosen])


def protocol_masks(folder: Path, grow: int = 4) -> NDArray[np.bool_]:
    """The masks of a clip as ProPainter's evaluation reads them: above 0, dilated four times by a 3 x 3 cross.

    Args:
        folder: with ``00000.png``, ...
        grow: times.

    Returns:
        (T, H, W).
    """
    files = sorted(list_images(folder, recursive=False))
    masks = np.stack([_read(file, None) for file in files])
    for _ in range(grow):
        masks = dilate(masks, 1, "cross")
    return masks


def find_clips(root: Path, layout: str = "auto", split: str = "train") -> list[ClipFolder]:
    """The clips of a data set.

    Args:
        root: its folder.
        layout: one of :data:`LAYOUTS`: ``davis``: ``JPEGImages/480p/<name>``, ``Annotations/480p/<name>`` and
            ``ImageSets/2017/<split>.txt`` (or 2016). ``youtube-vos``: ``<split>[_all_frames]/JPEGImages/<name>`` and
            ``Annotations/<name>``. ``propainter``: ``JPEGImages_432_240/<name>``, ``test_masks/<name>`` and
            ``<split>.json`` of {name: frames}. ``clips``: folders of frames, or video files.
        split: of the data set.

    Raises:
        PolyditError: the folder is missing, or it holds no clip in this layout.
    """
    if layout not in LAYOUTS:
        raise PolyditError(f"layout {layout!r}: unknown; choose {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise PolyditError(f"{root}: no such folder; give the root of a data set or of clips")
    if layout == "auto":
        layout = _guess(root, split)
    found = {"davis": _davis, "youtube-vos": _youtube, "propainter": _propainter, "clips": _clips}[layout](
        root, split
    )
    clips = [clip for clip in found if clip.frames.exists()]
    if not clips:
        missing = f", of {len(found)} that it lists" if found else ""
        raise PolyditError(
            f"{root}: no clip in the layout {layout} and split {split}{missing}; name another layout"
        )
    return clips


def _guess(root: Path, split: str) -> str:
    if any(root.glob("JPEGImages_*")):
        return "propainter"
    if (root / "ImageSets").is_dir():
        return "davis"
    if any((root / f"{split}{tail}" / "JPEGImages").is_dir() for tail in ("", "_all_frames")):
        return "youtube-vos"
    return "clips"


def _davis(root: Path, split: str) -> list[ClipFolder]:
    lists = [root / "ImageSets" / year / f"{split}.txt" for year in ("2017", "2016")]
    file = next((path for path in lists if path.is_file()), None)
    if file is None:
        raise PolyditError(f"{lists[0]}: no such file; choose another split")
    # 2017 lists names, 2016 pairs of files.
    names = {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()}
    names = {Path(name).parent.name if "/" in name else name for name in names}
    return [_pair(name, root / "JPEGImages/480p", root / "Annotations/480p") for name in sorted(names)]


def _youtube(root: Path, split: str) -> list[ClipFolder]:
    homes = [root / f"{split}_all_frames", root / split]
    pictures = next((home / "JPEGImages" for home in homes if (home / "JPEGImages").is_dir()), None)
    if pictures is None:
        raise PolyditError(f"{homes[1]}/JPEGImages: no such folder; choose another split")
    masks = next(
        (home / "Annotations" for home in homes if (home / "Annotations").is_dir()), homes[1] / "Annotations"
    )
    return [_pair(folder.name, pictures, masks) for folder in sorted(pictures.iterdir()) if folder.is_dir()]


def _propainter(root: Path, split: str) -> list[ClipFolder]:
    pictures = sorted(root.glob("JPEGImages_*"))
    if not pictures:
        raise PolyditError(f"{root}: has no JPEGImages_<width>_<height>")
    file = root / f"{split}.json"
    names = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    folders = sorted(names) if names else sorted(p.name for p in pictures[0].iterdir() if p.is_dir())
    return [_pair(name, pictures[0], root / "test_masks") for name in folders]


def _clips(root: Path, split: str) -> list[ClipFolder]:
    home = root / split if (root / split).is_dir() else root
    found = []
    for entry in sorted(home.iterdir()):
        holds = entry.is_dir() and any(f.suffix.lower() in SUFFIXES["image"] for f in entry.iterdir())
        if holds or entry.suffix.lower() in SUFFIXES["video"]:
            found.append(ClipFolder(entry.stem, entry))
    return found


def _pair(name: str, frames: Path, masks: Path) -> ClipFolder:
    return ClipFolder(name, frames / name, masks / name if (masks / name).is_dir() else None)


def _read(file: Path, size: tuple[int, int] | None) -> NDArray[np.bool_]:
    """A palette picture of object numbers, or a grey one, as bool: anything above 0 is set."""
    with Image.open(file) as picture:
        values = np.asarray(picture if picture.mode in ("P", "L", "1") else picture.convert("L"))
        mask = values > 0
    if size is None or mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
