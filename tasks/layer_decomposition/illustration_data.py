"""Illustrations with their layers: vector drawings of the corpus, folders of layers, and drawn cartoons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ...core.data.corpus.illustrations import compose
from ...core.data.corpus.manifest import load_manifest, split_of
from ...core.errors import PolyditError
from ...core.media.layer_files import read_layers
from ...core.training.data import TaskData
from .cartoons import cel_shading, draw_cartoon, stack, under_lines
from .illustration import ROLES

__all__ = ["IllustrationData", "Illustrations", "held_out_drawing", "illustration_files"]

HELD_OUT_SIDE = 128


def illustration_files(path: Path, split: str) -> list[Path]:
    """The ``layers.json`` files of a split of a corpus or of a folder of folders.

    In a plain folder 8 % of the folders, chosen by their names, are ``val``.

    Raises:
        PolyditError: there are none.
    """
    if (path / "manifest.jsonl").is_file():
        records = [r for r in load_manifest(path) if r.kind == "illustrations" and r.split == split]
        files = [path / record.file for record in records]
    else:
        files = [f for f in sorted(path.glob("**/*layers.json")) if split_of("", f.parent.name) == split]
    if not files:
        raise PolyditError(
            f"--data.path {path}: has no {split} illustrations; give a folder of folders with a layers.json each, or "
            "make a corpus with `polydit corpus build --kinds illustrations`"
        )
    return files


def read_drawing(path: Path) -> np.ndarray:
    """The four layers (4, H, W, 4) in [0, 1] of an illustration on disk, by their roles or names.

    Raises:
        PolyditError: it has none of the roles.
    """
    found = read_layers(path)
    named = {layer.role or layer.name: layer for layer in found.layers}
    if not set(named) & set(ROLES):
        raise PolyditError(f"{path}: none of its layers is called {', '.join(ROLES)}")
    layers = np.zeros((len(ROLES), found.height, found.width, 4), np.float32)
    for slot, role in enumerate(ROLES):
        if role in named:
            layers[slot] = named[role].on_canvas(found.width, found.height).astype(np.float32) / 255
            layers[slot, ..., 3] *= named[role].opacity
    return layers


def two_tone(amount: np.ndarray) -> np.ndarray:
    """A gradient's shading (H, W) as a cel painter would do it: one tone where it is strong, nothing elsewhere."""
    edge = np.clip((amount - 0.1) / 0.04, 0, 1)
    strong = edge > 0.5
    if strong.mean() < 0.003:
        return np.zeros_like(amount)
    return (edge * np.median(amount[strong])).astype(np.float32)


def shaded(layers: np.ndarray, rng: np.random.Generator, keep: float = 1.0) -> np.ndarray:
    """A drawing with cel shading: its own in two tones where it has some, kept with a probability; else a drawn one."""
    shadow, highlight = two_tone(layers[1, ..., 3]), two_tone(layers[2, ..., 3])
    own = max(shadow.mean(), highlight.mean()) > 0.01
    if not own or rng.random() >= keep:
        shadow, highlight = cel_shading(rng, layers[0, ..., 3], layers[3, ..., 3])
    return stack(layers[0], *visible(layers[0], shadow, highlight), layers[3])


def settled(layers: np.ndarray) -> np.ndarray:
    """Layers with one answer where a picture leaves several: white that reaches the border is paper, no other is.

    Nobody could tell white colour from white paper. What lines or colours enclose is taken for the figure's.
    """
    from scipy import ndimage

    white = compose(tuple(layers)).min(-1) > 0.97
    regions, _ = ndimage.label(white)
    edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    paper = np.isin(regions, np.unique(edge[edge > 0]))
    result = layers.copy()
    result[:3, paper, 3] = 0
    enclosed = white & ~paper
    result[0, enclosed & (result[0, ..., 3] < 0.5), :] = 1
    result[0] = under_lines(result[0], result[3, ..., 3])
    return result


def visible(flat: np.ndarray, shadow: np.ndarray, highlight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without shadow on black and without highlight on white: nobody could see them."""
    below = flat[..., :3] * flat[..., 3:] + 1 - flat[..., 3:]
    return shadow * (below.max(-1) > 0.1), highlight * (below.min(-1) < 0.95)


def held_out_drawing(path: Path, number: int, side: int) -> np.ndarray:
    """A held-out drawing at a side, (4, side, side, 4); one without shading of its own gets the same cel shading."""
    return settled(shaded(resized(read_drawing(path), side), np.random.default_rng((77, number))))


def resized(layers: np.ndarray, side: int) -> np.ndarray:
    """Layers (4, H, W, 4) at another size; colours are averaged where they are seen."""
    if layers.shape[1:3] == (side, side):
        return layers
    result = np.empty((len(layers), side, side, 4), np.float32)
    for slot, layer in enumerate(layers):
        premultiplied = np.concatenate([layer[..., :3] * layer[..., 3:], layer[..., 3:]], -1)
        for channel in range(4):
            plane = Image.fromarray(np.ascontiguousarray(premultiplied[..., channel]))
            result[slot, ..., channel] = np.asarray(plane.resize((side, side), Image.Resampling.BOX))
    result[..., :3] /= np.maximum(result[..., 3:], 1e-3)
    return result.clip(0, 1)


class Illustrations(Dataset[dict[str, Any]]):
    """Random crops of illustrations; sample i is a pure function of seed and i.

    Args:
        files: of drawings; none draws cartoons only.
        side: of a crop, in pixels.
        length: samples in all.
        drawn: how often a cartoon is drawn instead.
        largest: side that a drawing is reduced to at most.
        seed: of every draw.
    """

    def __init__(
        self,
        files: list[Path],
        side: int,
        length: int,
        drawn: float = 0.3,
        largest: int = 192,
        seed: int = 0,
    ) -> None:
        self.files, self.side, self.length, self.seed = files, side, length, seed
        self.drawn, self.largest = drawn if files else 1.0, max(largest, side)
        self._held: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        if rng.random() < self.drawn:
            layers = draw_cartoon(rng, self.side)
            layers = stack(layers[0], *visible(layers[0], layers[1, ..., 3], layers[2, ..., 3]), layers[3])
        else:
            layers = self._crop(rng)
        layers = settled(
            np.ascontiguousarray(layers)
        )  # by the crop's own border: it is all that the network sees
        return {"layers": torch.from_numpy(np.ascontiguousarray(layers)).permute(3, 0, 1, 2)}

    def _drawing(self, number: int) -> np.ndarray:
        """Layers in [0, 1]; kept in 8 bits, since decoding takes longer than everything else."""
        if number not in self._held:
            layers = resized(read_drawing(self.files[number]), self.largest)
            self._held[number] = (layers * 255).round().astype(np.uint8)
        return self._held[number].astype(np.float32) / 255

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        layers = self._drawing(int(rng.integers(len(self.files))))
        size = max(self.side, round(self.largest * rng.uniform(0.55, 1.0)))
        layers = shaded(resized(layers, size), rng, keep=0.7)
        if rng.random() < 0.5:
            layers = layers[:, :, ::-1]
        layers = np.rot90(layers, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.5:  # other colours: a permutation of red, green and blue
            layers = layers[..., [*rng.permutation(3), 3]]
        top, left = (int(rng.integers(size - self.side + 1)) for _ in range(2))
        crop = layers[:, top : top + self.side, left : left + self.side]
        if rng.random() < 0.12:  # the paper can be a colour: then it belongs to the flat layer
            crop = _grounded(crop, rng.uniform(0.3, 1, 3).astype(np.float32))
        return crop


def _grounded(layers: np.ndarray, colour: np.ndarray) -> np.ndarray:
    flat = layers[0]
    alpha = flat[..., 3:]
    ground = np.concatenate([flat[..., :3] * alpha + colour * (1 - alpha), np.ones_like(alpha)], -1)
    return np.concatenate([ground[None], layers[1:]])


class HeldOut(Dataset[dict[str, Any]]):
    """Held-out drawings, whole, always the same."""

    def __init__(self, files: list[Path], side: int) -> None:
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        layers = held_out_drawing(self.files[index], index, self.side)
        return {"layers": torch.from_numpy(layers).permute(3, 0, 1, 2)}


class IllustrationData(TaskData):
    """Illustrations for training.

    Args:
        path: a corpus with illustrations, or a folder of folders with a ``layers.json`` and its pictures each, whose
            layers are called flat, shadow, highlight and line.
        side: of the crops, in pixels.
        batch_size: crops per step.
        drawn: share of drawn cartoons; 1 needs no files.
        largest: side that a drawing is reduced to at most; crops are of drawings down to half of it.
        held_out: held-out drawings that validation looks at.
        num_workers: processes that prepare crops.
        samples_per_epoch: length of an epoch; crops are drawn at random.
        seed: of all draws.

    Raises:
        PolyditError: an option is out of range.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        side: int = 128,
        batch_size: int = 4,
        drawn: float = 0.3,
        largest: int = 192,
        held_out: int = 32,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if side < 16 or not 0 <= drawn <= 1 or batch_size < 1:
            raise PolyditError(
                f"--data.side {side}, --data.drawn {drawn}, --data.batch_size {batch_size}: give a side of 16 or more, "
                "a share between 0 and 1 and at least one crop"
            )
        self.path, self.side, self.drawn, self.largest = Path(path).expanduser(), side, drawn, largest
        self.batch_size, self.num_workers, self.held_out = batch_size, num_workers, held_out
        self.samples_per_epoch, self.seed = samples_per_epoch, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the drawings.

        Raises:
            PolyditError: there are none.
        """
        train = [] if self.drawn == 1 else illustration_files(self.path, "train")
        self.train_set = Illustrations(
            train, self.side, self.samples_per_epoch, self.drawn, self.largest, self.seed
        )
        if train:
            val = illustration_files(self.path, "val")[: self.held_out]
            self.val_set = HeldOut(val, HELD_OUT_SIDE)
        else:
            self.val_set = Illustrations([], self.side, self.held_out, 1.0, seed=self.seed + 1)
