"""Where drawn scenes take their pictures from: photographs and cut-outs of a corpus, or plain procedures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.data.held import HeldPictures
from ....core.data.images import read_image, to_uint8
from ....core.data.picture_lists import pictures_of
from ....core.errors import PolyditError

__all__ = ["CorpusSources", "ProceduralSources", "pictures_for"]

PHOTO_SIDE = 512
CUTOUT_SIDE = 160


class ProceduralSources:
    """Clouds of colour for photographs and simple figures for cut-outs; needs no files.

    Attributes:
        has_pictures: whether photographs and cut-outs are real ones.
    """

    has_pictures = False

    def photo(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A (128, 128, 3) picture of soft clouds in a few colours."""
        clouds = np.zeros((128, 128, 3), np.float32)
        for n in (4, 8, 16, 32):
            # One channel for light and three, weaker, for colour.
            light, colour = (_enlarge(rng.random((n, n, channels)) - 0.5, 128) for channels in (1, 3))
            clouds += (0.9 * light + 0.35 * colour) / n**0.4
        return (np.clip(rng.uniform(0.25, 0.75, 3) + clouds, 0, 1) * 255).astype(np.uint8)

    def cutout(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A (64, 64, 4) figure: star, ring, flower or blob, in two colours."""
        y, x = np.mgrid[-1:1:64j, -1:1:64j]
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        points = int(rng.integers(3, 8))
        wave = np.cos(points * angle + rng.uniform(0, 6.3))
        outline = rng.uniform(0.6, 0.75) + rng.uniform(-0.22, 0.22) * wave
        inner = rng.uniform(0.2, 0.6)
        colours = rng.integers(0, 256, (2, 3))
        rgb = np.where((radius < outline * inner)[..., None], colours[0], colours[1])
        alpha = np.clip((outline - radius) * 32 + 0.5, 0, 1) * 255
        return np.concatenate([rgb, alpha[..., None]], axis=-1).astype(np.uint8)


class CorpusSources:
    """Photographs and cut-outs of one split of a corpus made by ``polydit corpus build``.

    Pictures are reduced when they are first read and then kept, about 200 MB for the whole corpus.

    Args:
        root: the corpus.
        split: ``train``, ``val``, or ``test``, which are the reserved pictures: for evaluation only.

    Raises:
        PolyditError: there is no corpus, or it lacks photographs or cut-outs.
    """

    has_pictures = True

    def __init__(self, root: str | Path, split: str) -> None:
        name = "reserved" if split == "test" else split
        options: dict[str, Any] = {"allow_reserved": split == "test"}
        self._files = {
            kind: [path for path, _ in pictures_of(root, name, kind=kind, **options)]
            for kind in ("photos", "cutouts")
        }
        self._photos, self._cutouts = HeldPictures(_small_photo, 150), HeldPictures(_small_cutout, 250)

    def photo(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W, 3), at most 512 pixels long."""
        return self._draw("photos", self._photos, rng)

    def cutout(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W, 4), at most 160 pixels long, without empty borders."""
        return self._draw("cutouts", self._cutouts, rng)

    def _draw(self, kind: str, read: HeldPictures, rng: np.random.Generator) -> NDArray[np.uint8]:
        files = self._files[kind]
        first = int(rng.integers(len(files)))
        for path in files[first:] + files[:first]:  # the next one, where one cannot be read
            try:
                return read(path)
            except PolyditError:
                continue
        raise PolyditError(f"{files[0].parent}: none of {len(files)} pictures can be read; build it again")


def _small_photo(path: Path) -> NDArray[np.uint8]:
    picture = Image.fromarray(to_uint8(read_image(path)[0]))
    picture.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(picture)


def _small_cutout(path: Path) -> NDArray[np.uint8]:
    pixels, info = read_image(path, background=None)
    alpha = info.alpha if info.alpha is not None else np.full(pixels.shape[:2], 255, np.uint8)
    picture = Image.fromarray(to_uint8(np.concatenate([pixels, alpha[..., None]], axis=-1)))
    picture = picture.crop(picture.getchannel("A").getbbox())
    picture.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(picture)


def _enlarge(values: NDArray[Any], side: int) -> NDArray[np.float32]:
    channels = [
        np.asarray(
            Image.fromarray(values[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        )
        for c in range(values.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def pictures_for(corpus: str | Path | None, split: str) -> CorpusSources | ProceduralSources:
    """The sources of a split: of a corpus, or procedural where there is none.

    Raises:
        PolyditError: there is no corpus where one was named.
    """
    if corpus is None:
        return ProceduralSources()
    root = Path(corpus).expanduser()
    if not (root / "manifest.jsonl").is_file():
        raise PolyditError(
            f"{corpus}: no corpus there; make one with `polydit corpus build --output {corpus}`, or draw everything "
            "(none on the command line, null in a config)"
        )
    return CorpusSources(root, split)
