"""Clips made of still pictures, with everything known: a camera moves over a photograph, cut-outs move over it.

Every frame is one affine view of the photograph and of each cut-out, so background, layers, masks and motion are exact.
What moves, and how, is drawn from the generator that is passed: the same state gives the same clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .composites import CompositeOptions, Compositor, recolor

__all__ = ["ClipOptions", "SyntheticClip", "SyntheticClips"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClipOptions:
    """How clips are drawn. Pairs are ranges, drawn from uniformly; speeds are per frame.

    Attributes:
        frames: length of a clip.
        objects: number of cut-outs, least and most.
        pan: largest speed of the camera, as a share of the shorter side.
        zoom: largest change of the camera's scale.
        turn: largest turn of the camera, degrees.
        object_speed: largest speed of a cut-out, as a share of the shorter side.
        object_zoom: largest change of its scale.
        object_turn: its largest turn, degrees.
        still: probability that the camera stands still.
        sway: how much speeds change in the course of a clip, 0 is not at all.
        light: largest change of the brightness over a clip, as a share.
        noise: largest standard deviation of each frame's own noise, of 255.
    """

    frames: int = 16
    objects: tuple[int, int] = (0, 3)
    pan: float = 0.03
    zoom: float = 0.012
    turn: float = 0.6
    object_speed: float = 0.05
    object_zoom: float = 0.02
    object_turn: float = 3.0
    still: float = 0.3
    sway: float = 0.6
    light: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """A clip and what it was made of.

    Attributes:
        frames: (T, H, W, 3) uint8.
        background: (T, H, W, 3) uint8, without the cut-outs: what removing them must give.
        layers: (N, T, H, W, 4) uint8, straight alpha, from bottom to top.
        flow: (T - 1, H, W, 2) float32, where each pixel goes in the next frame: columns to the right, rows down; of
            the topmost layer whose alpha is above one half.
        background_flow: the same of the background.
        sources: file of the photograph, then those of the layers.
    """

    frames: Pixels
    background: Pixels
    layers: Pixels
    flow: NDArray[np.float32]
    background_flow: NDArray[np.float32]
    sources: tuple[Path, ...]

    @property
    def alpha(self) -> NDArray[np.float32]:
        """(T, H, W) in [0, 1] of all layers together."""
        clear = np.ones(self.frames.shape[:3], np.float32)
        for layer in self.layers:
            clear *= 1 - layer[..., 3].astype(np.float32) / 255
        return 1 - clear

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(T, H, W): where any cut-out shows at all."""
        return np.any(self.layers[..., 3] > 0, axis=0)


class SyntheticClips:
    """Draws clips.

    Args:
        photos: files for the backgrounds.
        cutouts: files with transparency; may be empty if no objects are wanted.
        size: (height, width) of the clips in pixels, or one number for squares.
        options: see :class:`ClipOptions`.
        looks: how photographs and cut-outs are recoloured, scaled and mirrored; see :class:`CompositeOptions`.
        cache_megabytes: decoded files kept.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        cutouts: Sequence[Path],
        size: int | tuple[int, int] = 128,
        options: ClipOptions | None = None,
        looks: CompositeOptions | None = None,
        cache_megabytes: int = 1000,
    ) -> None:
        self.options = options or ClipOptions()
        looks = looks or CompositeOptions(
            scale=(0.2, 0.6), inside=0.3, noise=0, jpeg=None, coverage=(0.002, 0.6), photo_zoom=(0.4, 0.9)
        )
        # It reads, keeps and recolours the files, with margins for a camera that moves.
        self.pictures = Compositor(photos, cutouts or photos[:1], size, looks, cache_megabytes)
        self.size = self.pictures.size
        self.has_cutouts = bool(cutouts)

    @classmethod
    def from_corpus(cls, root: str | Path, split: str = "train", **settings: Any) -> SyntheticClips:
        """Over the photographs and cut-outs of a corpus' split; reserved ones are refused.

        Raises:
            PolyditError: there is no such corpus.
        """
        compositor = Compositor.from_corpus(root, split)
        return cls(compositor.photos, compositor.cutouts, **settings)

    def __call__(self, rng: np.random.Generator) -> SyntheticClip:
        """Draw one."""
        options, (height, width) = self.options, self.size
        photo = self.pictures.draw_photo(rng)
        still = rng.random() < options.still
        camera = self._camera(photo[0].shape[:2], rng, still)
        tint = self.pictures.options.color
        picture = recolor(photo[0], rng, tint)
        background = np.stack([_view(picture, at, height, width) for at in camera])
        background_flow = np.stack(
            [_flow(a, b, height, width) for a, b in pairwise(camera)] or [_none(height, width)]
        )
        frames, flow = background.astype(np.float32), background_flow.copy()
        layers, sources = [], [photo[1]]
        count = int(rng.integers(options.objects[0], options.objects[1] + 1)) if self.has_cutouts else 0
        for _ in range(count):
            cutout, file = self.pictures.draw_cutout(rng)
            cutout = np.dstack([recolor(cutout[..., :3], rng, tint), cutout[..., 3]])
            path = self._path(cutout.shape[:2], camera, rng)
            layer = np.stack([_view(cutout, at, height, width) for at in path])
            alpha = layer[..., 3:].astype(np.float32) / 255
            frames += alpha * (layer[..., :3] - frames)
            moved = np.stack(
                [_flow(a, b, height, width) for a, b in pairwise(path)] or [_none(height, width)]
            )
            flow = np.where(alpha[: len(moved)] > 0.5, moved, flow)
            layers.append(layer)
            sources.append(file)
        if options.light:
            change = rng.uniform(-options.light, options.light) * np.linspace(-0.5, 0.5, options.frames)
            frames *= (1 + change.astype(np.float32))[:, None, None, None]
        if options.noise:
            frames += rng.standard_normal(frames.shape, np.float32) * np.float32(rng.random() * options.noise)
        empty = np.zeros((0, options.frames, height, width, 4), np.uint8)
        return SyntheticClip(
            np.rint(frames).clip(0, 255).astype(np.uint8),
            background,
            np.stack(layers) if layers else empty,
            flow[: options.frames - 1],
            background_flow[: options.frames - 1],
            tuple(sources),
        )

    def _camera(self, photo: tuple[int, ...], rng: np.random.Generator, still: bool) -> list[Floats]:
        """Views (2, 3) of the photograph: from (column, row) of a frame to those of the photograph."""
        options, (height, width) = self.options, self.size
        side = min(self.size)
        fit = min(photo[0] / height, photo[1] / width)
        zoom = rng.uniform(*self.pictures.options.photo_zoom) * fit
        steps = np.zeros((options.frames, 4))
        if not still:
            angle = rng.uniform(0, 2 * np.pi)
            speed = rng.uniform(0, options.pan) * side
            rates = [speed * np.cos(angle), speed * np.sin(angle), rng.uniform(-1, 1) * options.zoom]
            rates.append(np.deg2rad(rng.uniform(-1, 1) * options.turn))
            steps = self._motion(np.array(rates), rng)
        # Whatever leaves the photograph is shown by its mirror image, which moves like it.
        middle = rng.uniform(0.3, 0.7, 2) * (photo[1], photo[0])
        mirror = -1.0 if rng.random() < 0.5 and self.pictures.options.flips else 1.0
        views = []
        for x, y, log_zoom, turn in steps:
            scale = zoom * np.exp(log_zoom)
            rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            rotation = np.diag([mirror, 1.0]) @ rotation
            center = rotation @ np.array([x - (width - 1) / 2, y - (height - 1) / 2])
            views.append(np.column_stack([rotation, middle + center]))
        return views

    def _path(self, cutout: tuple[int, ...], camera: list[Floats], rng: np.random.Generator) -> list[Floats]:
        """Views of a cut-out: it has its own motion, and half of them follow the camera too."""
        options, (height, width) = self.options, self.size
        side = min(self.size)
        ratio = rng.uniform(*self.pictures.options.scale) * side / max(cutout)
        angle = rng.uniform(0, 2 * np.pi)
        speed = rng.uniform(0, options.object_speed) * side
        rates = [speed * np.cos(angle), speed * np.sin(angle), rng.uniform(-1, 1) * options.object_zoom]
        rates.append(np.deg2rad(rng.uniform(-1, 1) * options.object_turn))
        steps = self._motion(np.array(rates), rng)
        # Half way through it is somewhere inside.
        start = rng.uniform(0.1, 0.9, 2) * (width, height) - steps[len(steps) // 2, :2]
        tilt = np.deg2rad(rng.uniform(-1, 1) * self.pictures.options.rotation)
        mirror = -1.0 if rng.random() < 0.5 and self.pictures.options.flips else 1.0
        follow = rng.random() < 0.5
        home = _inverse(camera[0])
        views = []
        for (x, y, log_zoom, turn), view in zip(steps, camera, strict=True):
            scale, angle = np.exp(-log_zoom) / ratio, turn + tilt
            rotation = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            rotation = np.diag([mirror, 1.0]) @ rotation
            offset = np.array([(cutout[1] - 1) / 2, (cutout[0] - 1) / 2]) - rotation @ (
                start + np.array([x, y])
            )
            at = np.column_stack([rotation, offset])
            views.append(_after(at, _after(home, view)) if follow else at)
        return views

    def _motion(self, rates: Floats, rng: np.random.Generator) -> Floats:
        """Positions (T, 4) from speeds that sway slowly, from 0 on."""
        frames = self.options.frames
        time = np.arange(frames)[:, None]
        period = rng.uniform(0.8, 2.5, 4) * max(frames, 12)
        phase = rng.uniform(0, 2 * np.pi, 4)
        speeds = rates * (1 + self.options.sway * np.sin(2 * np.pi * time / period + phase))
        return np.cumsum(speeds, 0) - speeds[0]


def _view(picture: Pixels, view: Floats, height: int, width: int) -> Pixels:
    """An affine view; of a photograph continued by mirroring, of a cut-out by nothing."""
    scale = float(np.sqrt(abs(np.linalg.det(view[:, :2]))))
    kind = Image.Resampling.BICUBIC
    image = Image.fromarray(picture)
    if picture.shape[-1] == 4:
        image = image.convert("RGBa")
    else:
        corners = view @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
        low = np.floor(corners.min(1)).astype(int) - 3
        high = np.ceil(corners.max(1)).astype(int) + 4
        rows = _reflected(np.arange(low[1], high[1]), picture.shape[0])
        columns = _reflected(np.arange(low[0], high[0]), picture.shape[1])
        image = Image.fromarray(np.ascontiguousarray(picture[rows][:, columns]))
        view = view - np.array([[0, 0, low[0]], [0, 0, low[1]]])
    if scale > 1.5:  # the transform takes single samples, so what is reduced is reduced first
        factor = int(np.ceil(scale - 0.5))
        image = image.reduce(factor)
        view = view / factor + np.array(
            [[0, 0, (1 - factor) / (2 * factor)], [0, 0, (1 - factor) / (2 * factor)]]
        )
    # Pillow counts from pixels' corners.
    shift = view[:, :2].sum(1) * -0.5 + 0.5
    a = np.column_stack([view[:, :2], view[:, 2] + shift]).flatten().tolist()
    result = image.transform((width, height), Image.Transform.AFFINE, a, kind)
    return np.asarray(result.convert("RGBA") if picture.shape[-1] == 4 else result)


def _reflected(places: NDArray[np.int_], length: int) -> NDArray[np.int_]:
    period = max(1, 2 * length - 2)
    places = np.mod(places, period)
    return np.where(places < length, places, period - places)


def _flow(view: Floats, following: Floats, height: int, width: int) -> NDArray[np.float32]:
    """Where a frame's pixels are in the next one, minus where they are."""
    moved = _after(_inverse(following), view)
    rows, columns = np.indices((height, width))
    x = moved[0, 0] * columns + moved[0, 1] * rows + moved[0, 2]
    y = moved[1, 0] * columns + moved[1, 1] * rows + moved[1, 2]
    return np.stack([x - columns, y - rows], -1).astype(np.float32)


def _none(height: int, width: int) -> NDArray[np.float32]:
    return np.zeros((height, width, 2), np.float32)


def _after(second: Floats, first: Floats) -> Floats:
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def _inverse(view: Floats) -> Floats:
    turned = np.linalg.inv(view[:, :2])
    return np.column_stack([turned, -turned @ view[:, 2]])
