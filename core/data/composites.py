"""Composites of cut-outs over photographs: pictures with an exact alpha, as many as are wanted.

A cut-out is turned, mirrored, scaled, recoloured and placed on a crop of a photograph; noise, JPEG and blur of either
side, and pieces of other photographs pasted into the background, keep the seam from giving the object away. Everything
is drawn from the generator that is passed: the same generator state gives the same composite.
"""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ..errors import PolyditError
from .held import HeldPictures
from .images import read_image, to_uint8
from .picture_lists import pictures_of

__all__ = ["Composite", "CompositeOptions", "Compositor", "blend", "degrade", "flatten", "recolor"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class CompositeOptions:
    """How composites are drawn. Pairs are ranges, drawn from uniformly.

    Attributes:
        scale: longer side of a cut-out over the shorter side of the picture.
        rotation: largest turn, degrees, to either side.
        flips: mirror cut-out and photograph at random.
        inside: least share of each side of the cut-out that lies within the picture.
        count: number of cut-outs, least and most. All of them are foreground.
        color: strength of the change of brightness, contrast, saturation and hue of both sides; 0 is none.
        harmonize: probability that the cut-out takes on some of the photograph's colours.
        background_blur: probability that the photograph is blurred, by up to 0.8 % of the side.
        foreground_blur: probability that the cut-outs are, by up to 0.3 %.
        distractors: number of pieces of photographs pasted into the background, least and most.
        noise: largest standard deviation of the noise over all, of 255.
        jpeg: qualities of the JPEG over all; None is none.
        degrade: probability of noise, and of JPEG.
        photo_zoom: how much of the photograph's shorter side the crop shows.
        photo_held: sides of the composite that a photograph's shorter side is reduced to when it is read; crops of
            less than its inverse are enlarged.
        balance: how often cut-outs of one source (before ``--`` in the names of a corpus) are drawn, as a power
            of their number: 1 draws all files alike, 0 all sources. Photographs are drawn alike always.
        shares: source of cut-outs -> how many times as often its files are drawn; 1 where it is not named.
        coverage: least and largest share of the picture that the foreground covers; what is outside is drawn again.
    """

    scale: tuple[float, float] = (0.35, 0.95)
    rotation: float = 25.0
    flips: bool = True
    inside: float = 0.8
    count: tuple[int, int] = (1, 1)
    color: float = 0.5
    harmonize: float = 0.25
    background_blur: float = 0.25
    foreground_blur: float = 0.15
    distractors: tuple[int, int] = (0, 2)
    noise: float = 8.0
    jpeg: tuple[int, int] | None = (50, 98)
    degrade: float = 0.5
    photo_zoom: tuple[float, float] = (0.5, 1.0)
    photo_held: float = 2.0
    balance: float = 1.0
    shares: dict[str, float] = field(default_factory=dict)
    coverage: tuple[float, float] = (0.02, 0.8)

    @classmethod
    def plain(cls, **changes: object) -> CompositeOptions:
        """No change of colours, no blur, noise, JPEG or distractors: what evaluation uses."""
        calm = cls(
            color=0.0,
            harmonize=0.0,
            background_blur=0.0,
            foreground_blur=0.0,
            distractors=(0, 0),
            noise=0.0,
            jpeg=None,
            degrade=0.0,
        )
        return replace(calm, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Composite:
    """A composite and what it was made of.

    Attributes:
        image: (H, W, 3) uint8, with noise and JPEG where they were drawn.
        background: (H, W, 3) uint8, the photograph behind.
        layers: (H, W, 4) uint8 each, straight alpha, from bottom to top.
        sources: file of the photograph, then those of the layers.
    """

    image: Pixels
    background: Pixels
    layers: tuple[Pixels, ...]
    sources: tuple[Path, ...]

    @property
    def foreground(self) -> Pixels:
        """(H, W, 4) uint8, straight alpha: all layers as one."""
        return self.layers[0] if len(self.layers) == 1 else flatten(self.layers)

    @property
    def alpha(self) -> NDArray[np.float32]:
        """(H, W) in [0, 1] of all layers together."""
        clear = np.ones(self.image.shape[:2], np.float32)
        for layer in self.layers:
            clear *= 1 - layer[..., 3].astype(np.float32) / 255
        return 1 - clear

    def exact(self) -> NDArray[np.float32]:
        """(H, W, 3) in [0, 255]: the layers over the background, without noise and JPEG, not rounded."""
        return blend(self.background, self.layers)


class Compositor:
    """Draws composites.

    Args:
        photos: files for the backgrounds.
        cutouts: files with transparency; those without are skipped when they are drawn.
        size: (height, width) of the composites in pixels, or one number for squares.
        options: see :class:`CompositeOptions`.
        cache_megabytes: decoded files kept, photographs and cut-outs together.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        cutouts: Sequence[Path],
        size: int | tuple[int, int] = 256,
        options: CompositeOptions | None = None,
        cache_megabytes: int = 1500,
    ) -> None:
        if not photos or not cutouts:
            raise PolyditError("composites: need photographs and cut-outs; one of the two lists is empty")
        self.photos, self.cutouts = list(photos), list(cutouts)
        self.size = (size, size) if isinstance(size, int) else size
        self.options = options or CompositeOptions()
        # Larger than a composite shows: crops and turns still reduce, so that nothing gets soft.
        self.photo_side = round(self.options.photo_held * max(self.size))
        self.cutout_side = round(1.5 * max(self.size))
        self._weights = _balanced(self.cutouts, self.options.balance, self.options.shares)
        self._photos = HeldPictures(self._read_photo, cache_megabytes // 2)
        self._cutouts = HeldPictures(self._read_cutout, cache_megabytes // 2)

    @classmethod
    def from_corpus(
        cls,
        root: str | Path,
        split: str = "train",
        size: int | tuple[int, int] = 256,
        options: CompositeOptions | None = None,
        *,
        allow_reserved: bool = False,
        cache_megabytes: int = 1500,
    ) -> Compositor:
        """Over the photographs and cut-outs of a corpus' split.

        Raises:
            PolyditError: there is no such corpus, or it has none of either; or reserved ones without being asked to.
        """
        if not (Path(root) / "manifest.jsonl").is_file():
            raise PolyditError(
                f"{root}: no corpus is here; make one with `polydit corpus build --output {root}`"
            )
        photos, cutouts = (
            [path for path, _ in pictures_of(root, split, kind=kind, allow_reserved=allow_reserved)]
            for kind in ("photos", "cutouts")
        )
        return cls(photos, cutouts, size, options, cache_megabytes)

    def with_options(self, options: CompositeOptions) -> Compositor:
        """Another one over the same files, which keeps them in memory together with this one."""
        other = copy.copy(self)
        other.options = options
        return other

    def __call__(self, rng: np.random.Generator) -> Composite:
        """Draw one."""
        options = self.options
        photo = _pick(self.photos, None, rng)
        background = self.background(photo, rng)
        if rng.random() < options.background_blur:
            background = _blurred(background, rng.random() * 0.008 * min(self.size))
        layers, files = [], [photo]
        for _ in range(int(rng.integers(options.count[0], options.count[1] + 1))):
            layer, file = self.layer(rng, background)
            layers.append(layer)
            files.append(file)
        exact = np.rint(blend(background, layers)).astype(np.uint8)
        return Composite(degrade(exact, rng, options), background, tuple(layers), tuple(files))

    def draw_photo(self, rng: np.random.Generator) -> tuple[Pixels, Path]:
        """A photograph as it is held, (h, w, 3) not to be written to, and its file."""
        file = _pick(self.photos, None, rng)
        return self._photos(file), file

    def draw_cutout(self, rng: np.random.Generator) -> tuple[Pixels, Path]:
        """A cut-out as it is held, (h, w, 4) cut to what is visible and not to be written to, and its file.

        Raises:
            PolyditError: 100 files in a row have no transparency.
        """
        for _ in range(100):
            file = _pick(self.cutouts, self._weights, rng)
            cutout = self._cutouts(file)
            if cutout.shape[:2] != (1, 1):
                return cutout, file
        raise PolyditError(f"{file}: 100 files in a row have no transparent part; give cut-outs")

    # -- the background ------------------------------------------------------------------------------------

    def background(self, photo: Path, rng: np.random.Generator) -> Pixels:
        """A crop of a photograph in other colours, with pieces of others pasted in."""
        options = self.options
        crop = self._crop(self._photos(photo), rng)
        crop = recolor(crop, rng, options.color)
        for _ in range(int(rng.integers(options.distractors[0], options.distractors[1] + 1))):
            other = _pick(self.photos, None, rng)
            piece = recolor(self._crop(self._photos(other), rng), rng, options.color)
            mask = _random_shape(self.size, rng)[..., None].astype(np.float32) / 255
            crop = np.rint(piece * mask + crop * (1 - mask)).astype(np.uint8)
        return crop

    def _crop(self, picture: Pixels, rng: np.random.Generator) -> Pixels:
        (height, width), (rows, columns) = self.size, picture.shape[:2]
        zoom = rng.uniform(*self.options.photo_zoom)
        ratio = min(rows / height, columns / width) * zoom
        high, wide = max(1, round(height * ratio)), max(1, round(width * ratio))
        top, left = int(rng.integers(rows - high + 1)), int(rng.integers(columns - wide + 1))
        box = Image.fromarray(picture[top : top + high, left : left + wide])
        crop = np.asarray(box.resize((width, height), Image.Resampling.BICUBIC))
        if self.options.flips and rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.ascontiguousarray(crop)

    # -- the foreground ------------------------------------------------------------------------------------

    def layer(self, rng: np.random.Generator, background: Pixels | None = None) -> tuple[Pixels, Path]:
        """One cut-out on an empty canvas, (H, W, 4) with straight alpha, and its file.

        Raises:
            PolyditError: no cut-out gave a layer of the wanted coverage in 100 draws.
        """
        low, high = self.options.coverage
        for _ in range(100):
            file = _pick(self.cutouts, self._weights, rng)
            layer = self._placed(self._cutouts(file), rng)
            if low <= layer[..., 3].mean() / 255 <= high:
                break
        else:
            raise PolyditError(f"{file}: 100 cut-outs in a row cover too little or too much of the picture")
        layer[..., :3] = recolor(layer[..., :3], rng, self.options.color)
        if background is not None and rng.random() < self.options.harmonize:
            layer[..., :3] = _harmonized(layer, background, rng.random())
        if rng.random() < self.options.foreground_blur:
            layer = _blurred(layer, rng.random() * 0.003 * min(self.size))
        return layer, file

    def _placed(self, cutout: Pixels, rng: np.random.Generator) -> Pixels:
        options, (height, width) = self.options, self.size
        picture = Image.fromarray(cutout)
        if options.flips and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        ratio = rng.uniform(*options.scale) * min(self.size) / max(picture.size)
        wide, high = (max(2, round(side * ratio)) for side in picture.size)
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
        angle = rng.uniform(-options.rotation, options.rotation)
        if options.rotation:
            picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        wide, high = picture.size
        at = []
        for whole, part in ((width, wide), (height, high)):
            ends = [0.0, float(whole - part)]
            if rng.random() < 0.3:
                ends = [-(1 - options.inside) * part, whole - options.inside * part]
            at.append(round(float(rng.uniform(min(ends), max(ends)))))
        canvas = Image.new("RGBA", (width, height))
        canvas.paste(picture, (at[0], at[1]))
        return np.array(canvas)

    # -- files ---------------------------------------------------------------------------------------------

    def _read_photo(self, path: Path) -> Pixels:
        picture = Image.fromarray(to_uint8(read_image(path)[0]))
        ratio = self.photo_side / min(picture.size)
        if ratio < 1:
            size = tuple(max(1, round(side * ratio)) for side in picture.size)
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3)
        return np.asarray(picture)

    def _read_cutout(self, path: Path) -> Pixels:
        """(h, w, 4), cut to what is visible; one empty pixel if the file has no transparency or nothing to see."""
        empty = np.zeros((1, 1, 4), np.uint8)
        pixels, info = read_image(path, background=None)
        if info.alpha is None:
            return empty
        rgba = np.dstack([to_uint8(pixels), to_uint8(info.alpha)])
        alpha = rgba[..., 3]
        rows, columns = np.flatnonzero((alpha > 8).any(1)), np.flatnonzero((alpha > 8).any(0))
        if not len(rows) or alpha.min() > 8:
            return empty
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        picture = Image.fromarray(rgba)
        ratio = self.cutout_side / max(picture.size)
        if ratio < 1:
            size = tuple(max(1, round(side * ratio)) for side in picture.size)
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3)
        return np.asarray(picture)


def _balanced(files: Sequence[Path], power: float, shares: Mapping[str, float]) -> NDArray[np.float64] | None:
    """Cumulated probabilities of files: a source of n files is drawn in proportion to ``share * n ** power``.

    Raises:
        PolyditError: a share is negative or of a source that is not there, or nothing would be drawn.
    """
    if power == 1 and not shares:
        return None
    sources = [path.name.partition("--")[0] for path in files]
    counts = Counter(sources)
    for name, share in shares.items():
        if name not in counts:
            raise PolyditError(
                f"composites.shares {name!r}: no cut-outs of this source; there are {', '.join(sorted(counts))}; "
                "set data.init_args.composites.shares to those, or to {}"
            )
        if share < 0:
            raise PolyditError(f"composites.shares {name}: {share:g} is negative; give 0 or more")
    weights = np.array([shares.get(name, 1.0) * counts[name] ** (power - 1.0) for name in sources])
    if not weights.sum():
        raise PolyditError("composites.shares: all sources that there are have 0; nothing would be drawn")
    return np.cumsum(weights / weights.sum())


def _pick(files: Sequence[Path], cumulated: NDArray[np.float64] | None, rng: np.random.Generator) -> Path:
    if cumulated is None:
        return files[int(rng.integers(len(files)))]
    return files[min(int(np.searchsorted(cumulated, rng.random())), len(files) - 1)]


# -- arithmetic --------------------------------------------------------------------------------------------


def blend(background: NDArray[np.generic], layers: Sequence[Pixels]) -> NDArray[np.float32]:
    """Straight-alpha layers (H, W, 4) uint8, bottom to top, over (H, W, 3) in [0, 255]; float32, not rounded."""
    result = background.astype(np.float32)
    for layer in layers:
        alpha = layer[..., 3:].astype(np.float32) / 255
        result = result + alpha * (layer[..., :3].astype(np.float32) - result)
    return result


def flatten(layers: Sequence[Pixels]) -> Pixels:
    """Straight-alpha layers, bottom to top, as one (H, W, 4) uint8 layer that looks the same over any background."""
    color = np.zeros((*layers[0].shape[:2], 3), np.float32)  # premultiplied
    alpha = np.zeros((*layers[0].shape[:2], 1), np.float32)
    for layer in layers:
        a = layer[..., 3:].astype(np.float32) / 255
        color = layer[..., :3] * a + color * (1 - a)
        alpha = a + alpha * (1 - a)
    color = color / np.maximum(alpha, 1e-6)
    return np.rint(np.dstack([color, alpha * 255])).clip(0, 255).astype(np.uint8)


def degrade(picture: Pixels, rng: np.random.Generator, options: CompositeOptions) -> Pixels:
    """Noise, then JPEG, each with the options' probability; over the whole picture, so that they mark no edge."""
    if options.noise and rng.random() < options.degrade:
        sigma = rng.random() * options.noise
        noise = rng.standard_normal(picture.shape, np.float32) * sigma
        picture = np.rint(picture + noise).clip(0, 255).astype(np.uint8)
    if options.jpeg is not None and rng.random() < options.degrade:
        low, high = options.jpeg
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=int(rng.integers(low, high + 1)))
        picture = np.array(Image.open(file))
    return picture


def recolor(picture: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """(H, W, 3) in other colours: contrast, brightness, saturation, a tint, now and then another hue."""
    if not strength or rng.random() < 0.3:
        return picture
    # All of it is one affine map of the colours.
    matrix = np.eye(3, dtype=np.float32)
    if rng.random() < 0.25:
        matrix = _hue(rng.uniform(-np.pi, np.pi) * strength) @ matrix
    grey = np.full((3, 3), 1 / 3, np.float32)
    saturation = 1 + rng.uniform(-0.8, 0.8) * strength
    matrix = (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey) @ matrix
    matrix *= 1 + rng.uniform(-0.6, 0.6) * strength
    tint = rng.uniform(-25, 25, 3) * strength
    offset = 127.5 + rng.uniform(-60, 60) * strength + tint
    pixels = (picture.astype(np.float32) - 127.5) @ matrix.T.astype(np.float32) + offset.astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def _hue(angle: float) -> NDArray[np.float32]:
    """A turn around the grey axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    third, root = (1 - cosine) / 3, sine / np.sqrt(3)
    row = np.array([cosine + third, third - root, third + root], np.float32)
    return np.stack([row, np.roll(row, 1), np.roll(row, 2)])


def _harmonized(layer: Pixels, background: Pixels, strength: float) -> Pixels:
    """The layer's colours moved towards mean and spread of the background's."""
    seen = layer[layer[..., 3] > 127][:, :3].astype(np.float32)
    if len(seen) < 16:
        return layer[..., :3]
    behind = background.reshape(-1, 3)[::7].astype(np.float32)
    spread = np.clip(behind.std(0) / np.maximum(seen.std(0), 4), 0.5, 1.5)
    moved = (layer[..., :3] - seen.mean(0)) * spread + behind.mean(0)
    mixed = layer[..., :3] + 0.8 * strength * (moved - layer[..., :3])
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _blurred(picture: Pixels, radius: float) -> Pixels:
    """Gaussian blur; of a layer, in premultiplied colours."""
    image = Image.fromarray(picture)
    if image.mode == "RGBA":
        return np.array(image.convert("RGBa").filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return np.array(image.filter(ImageFilter.GaussianBlur(radius)))


def _random_shape(size: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """(H, W) mask of an ellipse, rectangle or polygon with a hard or a soft rim."""
    height, width = size
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    center = rng.uniform(0, 1, 2) * (width, height)
    reach = rng.uniform(0.05, 0.35, 2) * min(size)
    low, high = center - reach, center + reach
    kind = rng.integers(3)
    if kind == 0:
        draw.ellipse((*low, *high), fill=255)
    elif kind == 1:
        draw.rectangle((*low, *high), fill=255)
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        points = center + np.stack([np.cos(angles), np.sin(angles)], 1) * reach * rng.uniform(
            0.4, 1.2, (len(angles), 1)
        )
        draw.polygon([(float(x), float(y)) for x, y in points], fill=255)
    soft = rng.random() * 0.04 * min(size) if rng.random() < 0.7 else 0.5
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(soft)))
