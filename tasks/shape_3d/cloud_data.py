"""Point clouds for DiT-3D: procedural shapes, meshes of any layout, and ShapeNetCore.v2.PC15k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...core.errors import PolyditError
from ...core.geometry.reading import Up
from ...core.training.data import TaskData
from .pool import PoolOptions, build_pool
from .shapes import LAYOUTS, SYNSETS, Shape, check_up, find_shapes, procedural_shapes

__all__ = ["CloudData", "CloudSet", "read_pc15k", "statistics"]

Array = NDArray[Any]
POOL = 6000
"""Points that are kept of a shape; each sample takes others of them."""


def read_pc15k(
    root: Path, split: str, categories: Sequence[str], points: int, option: str = "--data."
) -> tuple[list[Array], list[str]]:
    """ShapeNetCore.v2.PC15k (PointFlow's): ``<synset>/{train,val,test}/<model>.npy`` with (15000, 3) floats.

    Training takes of the first 10,000 points, the other splits of the last 5,000.

    Args:
        root: the folder.
        split: ``train``, ``val`` or ``test``.
        categories: which.
        points: that a cloud must have.
        option: what stands before ``path`` and ``points`` in the command or the config, for messages.

    Raises:
        PolyditError: nothing is there, a file cannot be read, or has fewer points than asked for.
    """
    if not root.is_dir():
        raise PolyditError(f"{option}path {root}: no such folder; give that of ShapeNetCore.v2.PC15k")
    clouds, names = [], []
    for synset, category in SYNSETS.items():
        if category not in categories:
            continue
        for file in sorted((root / synset / split).glob("*.npy")):
            try:
                cloud = np.load(file, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise PolyditError(f"{file}: cannot be read ({error}); get it again") from error
            if cloud.ndim != 2 or cloud.shape[1] != 3 or not np.isfinite(cloud).all():
                raise PolyditError(f"{file}: holds no (N, 3) finite numbers, but {cloud.shape}; get it again")
            part = cloud[: len(cloud) * 2 // 3] if split == "train" else cloud[len(cloud) * 2 // 3 :]
            if len(part) < points:
                raise PolyditError(
                    f"{file}: {len(part)} points for {split}, and {option}points {points} are asked for; lower it"
                )
            clouds.append(part.astype(np.float32))
            names.append(category)
    if not clouds and split == "train":
        raise PolyditError(
            f"{option}path {root}: no .npy files of {', '.join(categories)} in <synset>/{split}; is it "
            "ShapeNetCore.v2.PC15k?"
        )
    return clouds, names


def statistics(clouds: Sequence[Array]) -> tuple[list[float], float]:
    """Mean by axis, and one standard deviation over all coordinates, as DiT-3D normalises."""
    points = np.concatenate([np.asarray(cloud, np.float64) for cloud in clouds])
    mean = points.mean(0)
    return [float(m) for m in mean], float((points - mean).std())


class CloudSet(Dataset[dict[str, Tensor]]):
    """Clouds by category, each category equally often.

    Args:
        clouds: (M, 3) each.
        categories: of each.
        known: all categories; the label is the place in it.
        points: of a sample.
        length: samples in an epoch; 0 gives each cloud once, in order, without changing it.
        meshes: how many of the first clouds are of meshes rather than procedural.
        share: how often a sample of a category is one of those, where it has both.
        stretch: standard deviation of a random scale of each axis, and mirrored in x half of the time.
        seed: of the draws.
    """

    def __init__(
        self,
        clouds: Sequence[Array],
        categories: Sequence[str],
        known: Sequence[str],
        points: int,
        length: int = 0,
        meshes: int = 0,
        share: float = 0.5,
        stretch: float = 0.0,
        seed: int = 0,
    ) -> None:
        if few := [len(cloud) for cloud in clouds if len(cloud) < points]:
            raise PolyditError(f"--data.points {points}: a cloud has only {min(few)}; lower it")
        self.clouds, self.categories = list(clouds), list(categories)
        self.known, self.points, self.length = list(known), points, length
        self.stretch, self.seed = stretch, seed
        self.share = share
        own = [[i for i, c in enumerate(self.categories) if c == name] for name in known]
        self.of_category = [([i for i in m if i < meshes], [i for i in m if i >= meshes]) for m in own]
        self.present = [number for number, members in enumerate(own) if members]

    def __len__(self) -> int:
        return self.length or len(self.clouds)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.seed, number])
        if self.length:
            label = self.present[number % len(self.present)]
            solid, drawn = self.of_category[label]
            from_mesh = not drawn or (bool(solid) and generator.random() < self.share)
            index = int(generator.choice(solid if from_mesh else drawn))
        else:
            index = number
            label = self.known.index(self.categories[index])
        cloud = self.clouds[index]
        chosen = cloud[generator.permutation(len(cloud))[: self.points]].astype(np.float32)
        if self.stretch and self.length:
            scale = np.exp(generator.normal(size=3) * self.stretch) * [generator.choice([-1, 1]), 1, 1]
            chosen = chosen * scale.astype(np.float32)
            chosen = fit_cloud(chosen)
        return {"points": torch.from_numpy(np.ascontiguousarray(chosen.T)), "label": torch.tensor(label)}


def fit_cloud(points: Array) -> Array:
    """Centred by its box, whose longest side becomes 1.9."""
    low, high = points.min(0), points.max(0)
    return ((points - (low + high) / 2) * (1.9 / max(float((high - low).max()), 1e-12))).astype(np.float32)


class CloudData(TaskData):
    """Clouds for training, and held-out ones of the same categories.

    Args:
        path: folder of the data; ``procedural`` needs none.
        layout: ``procedural``; ``corpus``, ``meshes``, ``shapenet`` or ``objaverse`` (see
            :mod:`.shapes`), with procedural shapes beside them; or ``pc15k``: ShapeNetCore.v2.PC15k.
        categories: to train; the label is the place in this list.
        procedural: shapes of each procedural family; of other layouts than ``procedural`` beside their own, 0 is none.
        share: how often a sample of a category is a mesh rather than procedural, where there are both.
        points: of a sample.
        stretch: standard deviation of a random scale of each axis of what is trained on.
        batch_size: clouds in a step.
        samples_per_epoch: length of an epoch.
        held_out: procedural shapes of each family for validation.
        up: the upward axis of mesh files, ``y`` or ``z``; ``auto`` takes z for STL and 3MF and y for all others.
        cache: folder for what is worked out of shapes; None works it out in each run.
        num_workers: processes that prepare samples.
        seed: of all draws.

    Raises:
        PolyditError: an option is unknown.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/corpus",
        layout: str = "procedural",
        categories: list[str] = ["chair", "table", "lamp", "plane"],  # noqa: B006 - read only
        procedural: int = 1000,
        share: float = 0.3,
        points: int = 2048,
        stretch: float = 0.0,
        batch_size: int = 16,
        samples_per_epoch: int = 1_000_000,
        held_out: int = 16,
        up: Up = "auto",
        cache: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if layout not in (*LAYOUTS, "procedural", "pc15k"):
            raise PolyditError(
                f"--data.layout {layout}: is unknown; choose from procedural, pc15k, {', '.join(LAYOUTS)}"
            )
        if points < 16:
            raise PolyditError(f"--data.points {points}: give 16 or more")
        check_up(up, layout)
        self.path, self.layout, self.categories, self.up = path, layout, list(categories), up
        self.procedural, self.share, self.points, self.stretch = procedural, share, points, stretch
        self.batch_size, self.samples_per_epoch, self.held_out = batch_size, samples_per_epoch, held_out
        self.cache, self.num_workers, self.seed = cache, num_workers, seed
        self.train_set: CloudSet | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read or make the clouds, once.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        if self.train_set is not None:
            return
        clouds, names, meshes = self._clouds("train")
        if missing := [c for c in self.categories if c not in names]:
            raise PolyditError(
                f"--data.categories: there is no shape of {missing[0]} to train on; leave it out"
            )
        held, of, _ = self._clouds("val")
        self.train_set = CloudSet(
            clouds,
            names,
            self.categories,
            self.points,
            self.samples_per_epoch,
            meshes,
            self.share,
            self.stretch,
            self.seed,
        )
        self.val_set = CloudSet(held or clouds[:8], of or names[:8], self.categories, self.points)

    def statistics(self) -> tuple[list[float], float]:
        """Of the training clouds, see :func:`statistics`."""
        self.setup()
        assert self.train_set is not None
        return statistics([cloud[: self.points] for cloud in self.train_set.clouds])

    def _clouds(self, split: str) -> tuple[list[Array], list[str], int]:
        """Clouds, their categories, and how many of the first are of meshes."""
        root = Path(self.path).expanduser()
        if self.layout == "pc15k":
            clouds, names = read_pc15k(root, split, self.categories, self.points)
            return clouds, names, len(clouds)
        options = PoolOptions(points=max(POOL, self.points))
        clouds, names = [], []
        count = self.procedural if split == "train" else self.held_out * (self.procedural > 0)
        families = procedural_shapes(self.categories, count, held_out=split != "train")
        solids: list[Shape] = []
        if self.layout != "procedural":
            solids = find_shapes(self.layout, root, split, self.categories, self.up)
        for shapes in (solids, families):
            if shapes:
                entries, of = build_pool(shapes, options, self.cache)
                clouds += [entry.points for entry in entries]
                names += of
        return clouds, names, len(clouds) - len(families)
