"""Episodes: a few marked pictures of a class, and another picture of it in which it is to be found."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ....core.data.images import read_image, to_uint8
from ....core.errors import PolyditError

__all__ = [
    "Episode",
    "EpisodeGroups",
    "EpisodeSet",
    "EpisodeSource",
    "EveryPicture",
    "Example",
    "FolderEpisodes",
    "Marked",
]

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Marked:
    """A picture (H, W, 3) uint8 and where the class is in it, boolean (H, W)."""

    image: Picture
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Episode:
    """One question: the supports show the class that is asked for in the query.

    Attributes:
        label: number of the class.
        query: with the answer as its mask.
        supports: one for each shot, none of them the query.
        ignore: pixels of the query that do not count (PASCAL's 255), or None.
    """

    label: int
    query: Marked
    supports: tuple[Marked, ...]
    ignore: NDArray[np.bool_] | None = None


class EpisodeSource(Protocol):
    """Where episodes come from; ``classes`` are the names of those that can be asked for."""

    classes: Sequence[str]

    def episode(self, rng: np.random.Generator, label: int, shots: int, size: int) -> Episode:
        """An episode of class number ``label`` whose pictures have the side ``size``."""


class GroupSource(EpisodeSource, Protocol):
    """One that can draw episodes that share their pictures."""

    def group(self, rng: np.random.Generator, episodes: int, shots: int, size: int) -> list[Episode]:
        """So many episodes."""


@dataclass(frozen=True)
class Example:
    """A picture of a class on the disk.

    Attributes:
        image: the file.
        mask: the file of its mask.
        value: the grey level of the class in it; None is everything from 128 on.
        ignore: a grey level that does not count, or None.
    """

    image: Path
    mask: Path
    value: int | None = None
    ignore: int | None = None


class FolderEpisodes:
    """Episodes of pictures on the disk: the query and its supports are different pictures of one class.

    Pictures are resized to a square without a crop, masks to the nearest pixel, as all these protocols do.

    Args:
        examples: the pictures of each class by its name.
        megabytes: decoded pictures that are kept.
    """

    def __init__(self, examples: Mapping[str, Sequence[Example]], megabytes: int = 500) -> None:
        few = [name for name, found in examples.items() if len(found) < 2]
        if few:
            raise PolyditError(f"class {few[0]}: has fewer than two pictures, and one must explain the other")
        if not examples:
            raise PolyditError("there are no classes; give a folder with some")
        self.classes = list(examples)
        self.examples = [list(examples[name]) for name in self.classes]
        self._cache: OrderedDict[tuple[Example, int], tuple[Marked, NDArray[np.bool_] | None]] = OrderedDict()
        self._room = megabytes * 2**20

    def episode(self, rng: np.random.Generator, label: int, shots: int, size: int) -> Episode:
        """A query drawn evenly from the class, and other pictures of it as supports."""
        examples = self.examples[label]
        return self.asking(int(rng.integers(len(examples))), rng, label, shots, size)

    def asking(self, number: int, rng: np.random.Generator, label: int, shots: int, size: int) -> Episode:
        """The episode whose query is picture ``number`` of the class.

        Raises:
            PolyditError: the class has not as many other pictures.
        """
        examples = self.examples[label]
        others = [i for i in range(len(examples)) if i != number]
        if len(others) < shots:
            raise PolyditError(
                f"class {self.classes[label]}: has {len(examples)} pictures, too few for a query and {shots} supports; "
                "ask for fewer shots"
            )
        chosen = rng.permutation(others)[:shots]
        query, ignore = self._read(examples[number], size)
        return Episode(label, query, tuple(self._read(examples[i], size)[0] for i in chosen), ignore)

    def _read(self, example: Example, size: int) -> tuple[Marked, NDArray[np.bool_] | None]:
        if (example, size) in self._cache:
            self._cache.move_to_end((example, size))
            return self._cache[example, size]
        image = Image.fromarray(to_uint8(read_image(example.image)[0]))
        levels = read_levels(example.mask)
        if levels.shape != (image.height, image.width):
            raise PolyditError(
                f"{example.mask}: {levels.shape[1]}x{levels.shape[0]} is not the size of {example.image.name}, "
                f"{image.width}x{image.height}"
            )
        squares = np.asarray(Image.fromarray(levels).resize((size, size), Image.Resampling.NEAREST))
        mask = squares >= 128 if example.value is None else squares == example.value
        ignore = None if example.ignore is None else squares == example.ignore
        picture = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        self._cache[example, size] = (Marked(picture, mask), ignore)
        while len(self._cache) > 1 and len(self._cache) * size**2 * 4 > self._room:
            self._cache.popitem(last=False)
        return self._cache[example, size]


def read_levels(path: Path) -> Picture:
    """The grey levels, or the palette's indices, of a mask: (H, W) uint8.

    Raises:
        PolyditError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            return np.array(file if file.mode in ("P", "L") else file.convert("L"))
    except FileNotFoundError as error:
        raise PolyditError(f"{path}: no such file; every picture needs a mask") from error
    except Exception as error:  # Pillow has many ways to say that a file is damaged
        raise PolyditError(f"{path}: cannot be read as a mask ({error})") from error


class EpisodeSet(Dataset[dict[str, Tensor]]):
    """Episodes as tensors; number ``i`` is a pure function of seed and ``i``.

    Each is a dict of ``query`` (3, S, S) and ``support`` (shots, 3, S, S) in [-1, 1], ``query_mask`` (1, S, S) and
    ``support_mask`` (shots, 1, S, S) of 0 and 1, and ``label``; with ``counted`` (1, S, S), 0 where a pixel does not
    count, if the source has such pixels.

    Args:
        source: what draws them.
        length: number of episodes.
        shots: supports of each.
        size: side in pixels.
        seed: of every draw.
    """

    def __init__(
        self,
        source: EpisodeSource,
        length: int,
        shots: int = 1,
        size: int = 128,
        seed: int = 0,
    ) -> None:
        self.source, self.length, self.shots, self.size, self.seed = source, length, shots, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return tensors(self.draw(index))

    def draw(self, index: int) -> Episode:
        """Episode number ``index``: its class evenly among all."""
        rng = np.random.default_rng([self.seed, index])
        label = int(rng.integers(len(self.source.classes)))
        return self.source.episode(rng, label, self.shots, self.size)


class EveryPicture(EpisodeSet):
    """As :class:`EpisodeSet`, but every picture is a query once, and the supports are drawn (FSS-1000's protocol)."""

    source: FolderEpisodes

    def __init__(self, source: FolderEpisodes, shots: int = 1, size: int = 128, seed: int = 0) -> None:
        self.queries = [(label, n) for label, found in enumerate(source.examples) for n in range(len(found))]
        super().__init__(source, len(self.queries), shots, size, seed)

    def draw(self, index: int) -> Episode:
        """The episode whose query is picture number ``index``."""
        label, number = self.queries[index]
        rng = np.random.default_rng([self.seed, index])
        return self.source.asking(number, rng, label, self.shots, self.size)


class EpisodeGroups(Dataset[dict[str, Tensor]]):
    """Groups of episodes that share pictures, each group a sample: as :class:`EpisodeSet`, with an axis in front.

    Args:
        source: what draws them.
        length: number of groups.
        episodes: in each.
        shots: supports of each episode.
        sizes: side in pixels -> relative frequency; all samples of ``batch`` consecutive numbers have the same.
        batch: see ``sizes``.
        seed: of every draw.
    """

    def __init__(
        self,
        source: GroupSource,
        length: int,
        episodes: int = 8,
        shots: int = 1,
        sizes: Mapping[int, float] | None = None,
        batch: int = 1,
        seed: int = 0,
    ) -> None:
        self.source, self.length, self.episodes, self.shots = source, length, episodes, shots
        self.sizes, self.batch, self.seed = dict(sizes or {128: 1.0}), batch, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        shares = np.array(list(self.sizes.values()), float)
        by_batch = np.random.default_rng([self.seed, 1, index // self.batch])
        size = int(by_batch.choice(list(self.sizes), p=shares / shares.sum()))
        rng = np.random.default_rng([self.seed, 2, index])
        samples = [tensors(episode) for episode in self.source.group(rng, self.episodes, self.shots, size)]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def tensors(episode: Episode) -> dict[str, Tensor]:
    """An episode as :class:`EpisodeSet` gives it."""
    sample = {
        "query": to_pixels(episode.query.image),
        "query_mask": to_mask(episode.query.mask),
        "support": torch.stack([to_pixels(shown.image) for shown in episode.supports]),
        "support_mask": torch.stack([to_mask(shown.mask) for shown in episode.supports]),
        "label": torch.tensor(episode.label),
    }
    if episode.ignore is not None:
        sample["counted"] = to_mask(~episode.ignore)
    return sample


def to_pixels(image: Picture) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(127.5).sub_(1)


def to_mask(mask: NDArray[np.bool_]) -> Tensor:
    """Boolean (H, W) to (1, H, W) float32 of 0 and 1."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None].float()
