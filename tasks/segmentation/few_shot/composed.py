"""Episodes that are put together: things on photographs, where only the supports tell which thing is meant.

Each picture holds several things, so that a model that ignores the supports can at best guess. The things are cut-outs
of a corpus, or drawn shapes.
"""

from __future__ import annotations

import colorsys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from ....core.data.images import read_image, to_uint8
from ....core.data.picture_lists import pictures_of
from ....core.errors import PolyditError
from .episodes import Episode, Marked

__all__ = [
    "ComposedEpisodes",
    "Cutouts",
    "DrawnShapes",
    "Noise",
    "Photographs",
    "corpus_episodes",
    "drawn_episodes",
]

Picture = NDArray[np.uint8]
CACHED_SIDE = 128


class Things(Protocol):
    """Classes of things; ``draw`` gives one of a class as an RGBA picture."""

    classes: Sequence[str]

    def fit(self, label: int) -> int:
        """The number itself, or of the next class that can be used."""

    def draw(self, rng: np.random.Generator, label: int) -> Image.Image:
        """A thing of class number ``label``."""


class Backgrounds(Protocol):
    """What the things are put on."""

    def draw(self, rng: np.random.Generator, size: int) -> Image.Image:
        """A picture, RGB, of the given side."""


class Cutouts:
    """Every cut-out is a class of its own; its pictures differ in pose, size, colour cast and surroundings.

    Args:
        files: RGBA pictures.
        least_filled: cut-outs whose visible part is a smaller share of their box are not used: a thin line of a few
            pixels can be neither shown nor found.
    """

    def __init__(self, files: Sequence[Path], least_filled: float = 0.12) -> None:
        self.files = list(files)
        self.classes = [file.stem for file in self.files]
        self.least_filled = least_filled
        self._cache: dict[int, Image.Image | None] = {}

    def fit(self, label: int) -> int:
        """The number itself, or of the next cut-out that can be used.

        Raises:
            PolyditError: none can.
        """
        for offset in range(len(self.files)):
            number = (label + offset) % len(self.files)
            if self._picture(number) is not None:
                return number
        raise PolyditError(f"{self.files[0].parent}: none of {len(self.files)} cut-outs can be used")

    def _picture(self, label: int) -> Image.Image | None:
        """The cut-out, or None where it is damaged, tiny or thin; kept after the first time."""
        if label not in self._cache:
            try:
                picture = read_cutout(self.files[label])
            except PolyditError:
                picture = None
            if picture is not None:
                filled = float((np.asarray(picture.getchannel("A")) > 127).mean())
                picture = picture if min(picture.size) > 15 and filled >= self.least_filled else None
            self._cache[label] = picture
        return self._cache[label]

    def draw(self, rng: np.random.Generator, label: int) -> Image.Image:
        """The cut-out with another brightness, contrast and saturation."""
        picture = self._picture(label)
        assert picture is not None
        alpha = picture.getchannel("A")
        colours = picture.convert("RGB")
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            colours = change(colours).enhance(float(rng.uniform(0.75, 1.25)))
        colours.putalpha(alpha)
        return colours


def read_cutout(path: Path) -> Image.Image:
    """The visible part of a cut-out, reduced.

    Raises:
        PolyditError: it cannot be read, or has no transparency.
    """
    array, info = read_image(path, background=None)
    if info.alpha is None:
        raise PolyditError(f"{path}: has no transparency, so it is no cut-out")
    picture = Image.fromarray(np.dstack([to_uint8(array)[..., :3], to_uint8(info.alpha)]), "RGBA")
    box = picture.getchannel("A").point(lambda level: 255 * (level > 127)).getbbox()
    picture = picture.crop(box) if box else picture
    picture.thumbnail((CACHED_SIDE, CACHED_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return picture


class Photographs:
    """Square crops of photographs.

    Args:
        files: the pictures.
        side: they are kept reduced to twice this short side.
    """

    def __init__(self, files: Sequence[Path], side: int = CACHED_SIDE) -> None:
        self.files, self.side = list(files), side
        self._cache: OrderedDict[int, Image.Image] = OrderedDict()

    def draw(self, rng: np.random.Generator, size: int) -> Image.Image:
        """A crop of any part, mirrored half of the time."""
        number = int(rng.integers(len(self.files)))
        if number not in self._cache:
            picture = Image.fromarray(to_uint8(read_image(self.files[number])[0]))
            factor = 2 * self.side / min(picture.size)
            if factor < 1:
                picture = picture.resize(
                    (round(picture.width * factor), round(picture.height * factor)),
                    Image.Resampling.BILINEAR,
                    reducing_gap=2.0,
                )
            self._cache[number] = picture
        picture = self._cache[number]
        part = int(min(picture.size) * rng.uniform(0.5, 1))
        left, top = (int(rng.integers(full - part + 1)) for full in picture.size)
        crop = picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + part, top + part))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


class DrawnShapes:
    """Shapes with a pattern: a class is an outline with a pattern of two colours.

    Args:
        count: classes there are.
        first: number of the first one; ranges that do not overlap share no class.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        self.first = first
        self.classes = [f"shape {first + i}" for i in range(count)]

    def fit(self, label: int) -> int:
        """Every shape can be used."""
        return label

    def draw(self, rng: np.random.Generator, label: int) -> Image.Image:
        """The shape with slightly other colours, and its pattern shifted."""
        side = 64
        fixed = np.random.default_rng([7, self.first + label])
        corners, waist, kind = int(fixed.integers(3, 9)), fixed.uniform(0.4, 1), int(fixed.integers(4))
        hues, period, tilt = fixed.random(2), fixed.uniform(6, 16), fixed.uniform(0, np.pi)
        angles = np.linspace(0, 2 * np.pi, 2 * corners, endpoint=False)
        radii = np.where(np.arange(2 * corners) % 2, waist, 1.0) * (side / 2 - 1)
        outline = [
            (side / 2 + r * np.cos(a), side / 2 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)
        ]
        alpha = Image.new("L", (side, side))
        ImageDraw.Draw(alpha).polygon(outline, fill=255)
        rows, columns = np.mgrid[:side, :side]
        along = rows * np.cos(tilt) + columns * np.sin(tilt) + rng.uniform(0, period)
        across = columns * np.cos(tilt) - rows * np.sin(tilt) + rng.uniform(0, period)
        stripes, dots = along % period < period / 2, across % period < period / 2
        pattern = (np.zeros_like(stripes), stripes, stripes ^ dots, stripes & dots)[kind]
        light = rng.uniform(0.6, 1)
        colours = np.array([colorsys.hsv_to_rgb(hue, 0.9, light) for hue in hues]) * 255
        picture = Image.fromarray(colours[pattern.astype(int)].astype(np.uint8), "RGB")
        picture.putalpha(alpha)
        return picture


class Noise:
    """Soft random colours, for tests and experiments without pictures."""

    def draw(self, rng: np.random.Generator, size: int) -> Image.Image:
        """Blurred grey-ish noise."""
        grid = rng.integers(60, 200, (6, 6, 3)).astype(np.uint8)
        return Image.fromarray(grid, "RGB").resize((size, size), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Scene:
    """A picture (S, S, 3) and which class each pixel is of, -1 for the background."""

    image: Picture
    owner: NDArray[np.int64]

    def visible(self, label: int) -> bool:
        """Whether enough of a class is seen to speak of it: a hundredth of the picture's half."""
        return int((self.owner == label).sum()) * 200 >= self.owner.size

    def showing(self, label: int) -> Marked:
        """The picture with one class marked."""
        return Marked(self.image, self.owner == label)


@dataclass
class ComposedEpisodes:
    """Things on backgrounds.

    Attributes:
        things: what is shown and asked for.
        backgrounds: what it lies on.
        distractors: least and greatest number of other things in a query.
        shared: how often the thing beside a support's own is one that the query shows too, so that only the mask can
            tell which is meant.
        smallest, largest: of a thing's longer side, as part of the picture's.
        turn: greatest rotation in degrees.
    """

    things: Things
    backgrounds: Backgrounds
    distractors: tuple[int, int] = (1, 3)
    shared: float = 0.5
    smallest: float = 0.3
    largest: float = 0.6
    turn: float = 30.0

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return self.things.classes

    def episode(self, rng: np.random.Generator, label: int, shots: int, size: int) -> Episode:
        """Query and supports, on backgrounds of their own."""
        label = self.things.fit(label)
        others = self._others(rng, label, int(rng.integers(self.distractors[0], self.distractors[1] + 1)))
        query = self.scene(rng, [label, *others], size)
        supports = []
        for _ in range(shots):
            beside: list[int] = []
            if rng.random() < 0.75:
                shared = others and rng.random() < self.shared
                beside = [int(rng.choice(others))] if shared else self._others(rng, label, 1)
            supports.append(self.scene(rng, [label, *beside], size).showing(label))
        return Episode(label, query.showing(label), tuple(supports))

    def group(
        self, rng: np.random.Generator, episodes: int, shots: int, size: int, scenes: int = 4
    ) -> list[Episode]:
        """Several episodes out of few pictures, in which the same three classes lie in different company.

        Each picture is asked about each of its things, and explains each to the others: a third of the work of drawing
        single episodes, and no picture tells which of its things is meant.
        """
        chosen = [self.things.fit(int(number)) for number in rng.integers(len(self.classes), size=3)]
        drawn = []
        for _ in range(scenes):
            shown = list(rng.permutation(chosen)[: 2 + int(rng.random() < 0.5)])
            extra = self._others(rng, chosen[0], 1) if rng.random() < 0.4 else []
            drawn.append(self.scene(rng, [*map(int, shown), *extra], size))
        found = []
        while len(found) < episodes:
            label = int(rng.choice(chosen))
            holding = [scene for scene in drawn if scene.visible(label)]
            if len(holding) < 2:  # hidden by others: a picture more
                drawn.append(self.scene(rng, [label, *self._others(rng, label, 1)], size))
                continue
            order = [holding[i] for i in rng.permutation(len(holding))]
            supports = [order[1 + i % (len(order) - 1)].showing(label) for i in range(shots)]
            found.append(Episode(label, order[0].showing(label), tuple(supports)))
        return found

    def _others(self, rng: np.random.Generator, label: int, count: int) -> list[int]:
        drawn = rng.integers(len(self.classes) - 1, size=min(count, len(self.classes) - 1))
        return [self.things.fit(int(number + (number >= label))) for number in drawn]

    def scene(self, rng: np.random.Generator, numbers: Sequence[int], size: int) -> Scene:
        """A picture of some things; a thing's mask is what is seen of it."""
        picture = self.backgrounds.draw(rng, size)
        owner = np.full((size, size), -1)
        for number in rng.permutation(numbers):
            layer, alpha = self._placed(rng, int(number), size, owner >= 0)
            picture.paste(layer, (0, 0), layer)
            owner[alpha] = number
        return Scene(np.asarray(picture), owner)

    def _placed(
        self, rng: np.random.Generator, number: int, size: int, taken: NDArray[np.bool_]
    ) -> tuple[Image.Image, NDArray[np.bool_]]:
        """The thing as a layer of the picture's size, where it covers little of what lies there."""
        thing = self.things.draw(rng, number)
        wanted = rng.uniform(self.smallest, self.largest) * size
        scale = wanted / max(thing.size)
        stretch = np.exp(rng.uniform(-0.15, 0.15))
        angle = np.deg2rad(rng.uniform(-self.turn, self.turn))
        mirror = -1 if rng.random() < 0.5 else 1
        sides = np.array([thing.width * scale * stretch, thing.height * scale / stretch])
        reach = np.abs([[np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ sides / 2
        best, least = None, np.inf
        for _ in range(8):
            centre = rng.uniform(np.minimum(reach * 0.8, size / 2), np.maximum(size - reach * 0.8, size / 2))
            low, high = np.maximum(centre - reach, 0).astype(int), (centre + reach).astype(int) + 1
            covered = taken[low[1] : high[1], low[0] : high[0]].mean()
            if covered < least:
                best, least = centre, covered
            if covered == 0:
                break
        # From a pixel of the layer to one of the thing: PIL asks for the inverse map.
        inverse = np.diag([mirror / (scale * stretch), stretch / scale]) @ np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        offset = np.array(thing.size) / 2 - inverse @ best
        # Reduced first, as the map by itself would skip pixels.
        blurred = thing.filter(ImageFilter.BoxBlur(0.5 / scale - 0.5)) if scale < 0.6 else thing
        layer = blurred.transform(
            (size, size),
            Image.Transform.AFFINE,
            (inverse[0, 0], inverse[0, 1], offset[0], inverse[1, 0], inverse[1, 1], offset[1]),
            Image.Resampling.BILINEAR,
        )
        return layer, np.asarray(layer.getchannel("A")) > 127


def corpus_episodes(root: Path, split: str, allow_reserved: bool = False) -> ComposedEpisodes:
    """Cut-outs of a corpus on its photographs. The splits of a corpus have no cut-out in common.

    Args:
        root: a folder made by ``polydit corpus build``.
        split: ``train``, ``val`` or ``reserved``.
        allow_reserved: needed to read ``reserved``, on which nothing may be trained.

    Raises:
        PolyditError: there are none.
    """
    cutouts = [path for path, _ in pictures_of(root, split, kind="cutouts", allow_reserved=allow_reserved)]
    photos = [path for path, _ in pictures_of(root, split, kind="photos", allow_reserved=allow_reserved)]
    return ComposedEpisodes(Cutouts(cutouts), Photographs(photos))


def drawn_episodes(split: str, count: int = 1000) -> ComposedEpisodes:
    """Drawn shapes on soft colours, which need no files; ``train`` and any other split have no shape in common."""
    first = 0 if split == "train" else 10**6
    return ComposedEpisodes(DrawnShapes(count, first), Noise())
