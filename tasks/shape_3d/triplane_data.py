"""Solids for Direct3D: surface points with normals, signed distances, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...core.errors import PolyditError
from ...core.geometry.reading import Up
from ...core.training.data import TaskData
from .pictures import prepare_picture
from .pool import Entry, PoolOptions, build_pool
from .shapes import (
    LAYOUTS,
    Shape,
    check_up,
    find_shapes,
    other_shapes,
    procedural_shapes,
    with_variations,
)

__all__ = ["SolidData", "SolidSet"]


class SolidSet(Dataset[dict[str, Tensor]]):
    """Entries of a pool by category, each category equally often; a sample's draws depend on its number.

    Args:
        entries: shapes that were worked out.
        categories: of each; ``""`` for those of none.
        known: all categories; the label is the place in it, and after the last place for shapes of none.
        points: of the surface in a sample.
        queries: of the distances in a sample; half anywhere, half near the surface.
        length: samples in an epoch; 0 gives each shape once.
        meshes: how many of the first entries are of meshes rather than procedural.
        share: how often a sample of a category is one of those, where it has both.
        seed: of the draws.
        others: how often a sample is a shape of no category, where there are any.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        categories: Sequence[str],
        known: Sequence[str],
        points: int,
        queries: int,
        length: int = 0,
        meshes: int = 0,
        share: float = 0.5,
        seed: int = 0,
        others: float = 0.0,
    ) -> None:
        self.entries, self.categories, self.known = list(entries), list(categories), list(known)
        self.points, self.queries, self.length = points, queries, length
        self.share, self.seed, self.others = share, seed, others
        self.of_none = [i for i, c in enumerate(self.categories) if not c]
        own = [[i for i, c in enumerate(self.categories) if c == name] for name in known]
        self.of_category = [([i for i in m if i < meshes], [i for i in m if i >= meshes]) for m in own]
        self.present = [number for number, members in enumerate(own) if members]

    def __len__(self) -> int:
        return self.length or len(self.entries)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.seed, number])
        if self.length and self.of_none and generator.random() < self.others:
            index, label = int(generator.choice(self.of_none)), len(self.known)
        elif self.length:
            label = self.present[number % len(self.present)]
            solid, drawn = self.of_category[label]
            from_mesh = not drawn or (bool(solid) and generator.random() < self.share)
            index = int(generator.choice(solid if from_mesh else drawn))
        else:
            index = number
            label = self.known.index(self.categories[number]) if self.categories[number] else len(self.known)
        entry = self.entries[index]
        cloud = generator.permutation(len(entry.points))[: self.points]
        half = len(entry.queries) // 2
        asked = np.concatenate(
            [
                generator.permutation(half)[: self.queries // 2],
                half + generator.permutation(len(entry.queries) - half)[: self.queries - self.queries // 2],
            ]
        )
        sample: dict[str, Any] = {
            "points": entry.points[cloud],
            "normals": entry.normals[cloud],
            "queries": entry.queries[asked],
            "distances": entry.distances[asked],
        }
        found = {name: torch.from_numpy(value.astype(np.float32)) for name, value in sample.items()}
        if len(entry.pictures):
            view = int(generator.integers(len(entry.pictures))) if self.length else 0
            found["picture"] = prepare_picture(entry.pictures[view], entry.pictures.shape[1])
        found["label"] = torch.tensor(label)
        return found


class SolidData(TaskData):
    """Solids for training, and held-out ones of the same categories.

    Args:
        path: folder of the data; ``procedural`` needs none.
        layout: ``procedural``; or ``corpus``, ``meshes``, ``shapenet`` or ``objaverse`` (see :mod:`.shapes`), with
            procedural shapes beside them.
        categories: to train; the label is the place in this list.
        procedural: shapes of each procedural family; 0 is none.
        share: how often a sample of a category is a mesh rather than procedural, where there are both.
        variations: of each mesh, stretched and turned, beside the mesh itself.
        others: how often a sample is a thing of the corpus of none of the categories; only pictures tell of it.
        points: of the surface in a sample.
        queries: where occupancy is asked in a sample.
        near: standard deviation of the distance of the nearer half of them from the surface.
        views: pictures of each shape; 0 for training the autoencoder.
        size: their side.
        batch_size: shapes in a step.
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
        variations: int = 0,
        others: float = 0.0,
        points: int = 2048,
        queries: int = 4096,
        near: float = 0.04,
        views: int = 0,
        size: int = 64,
        batch_size: int = 8,
        samples_per_epoch: int = 1_000_000,
        held_out: int = 8,
        up: Up = "auto",
        cache: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if layout not in (*LAYOUTS, "procedural"):
            raise PolyditError(
                f"--data.layout {layout}: is unknown; choose from procedural, {', '.join(LAYOUTS)}"
            )
        check_up(up, layout)
        if others and layout != "corpus":
            raise PolyditError(
                f"--data.others {others}: is for the layout corpus; leave it out, or name more --data.categories"
            )
        self.variations, self.others = variations, others
        self.path, self.layout, self.categories, self.up = path, layout, list(categories), up
        self.procedural, self.share, self.held_out = procedural, share, held_out
        self.points, self.queries = points, queries
        self.options = PoolOptions(max(2 * points, 1024), 2 * queries, near, views, size)
        self.batch_size, self.samples_per_epoch = batch_size, samples_per_epoch
        self.cache, self.num_workers, self.seed = cache, num_workers, seed
        self.train_set: SolidSet | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read or make the shapes, once.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        if self.train_set is not None:
            return
        entries, names, meshes = self._entries("train")
        if missing := [c for c in self.categories if c not in names]:
            raise PolyditError(
                f"--data.categories: there is no shape of {missing[0]} to train on; leave it out"
            )
        held, of, _ = self._entries("val")
        sizes = (self.points, self.queries)
        self.train_set = SolidSet(
            entries,
            names,
            self.categories,
            *sizes,
            self.samples_per_epoch,
            meshes,
            self.share,
            self.seed,
            self.others,
        )
        self.val_set = SolidSet(held or entries[:4], of or names[:4], self.categories, *sizes)

    def _entries(self, split: str) -> tuple[list[Entry], list[str], int]:
        root = Path(self.path).expanduser()
        count = self.procedural if split == "train" else self.held_out * (self.procedural > 0)
        families = procedural_shapes(self.categories, count, held_out=split != "train")
        solids: list[Shape] = []
        if self.layout != "procedural":
            solids = find_shapes(self.layout, root, split, self.categories, self.up)
            if self.others:
                solids += other_shapes(root, split, self.categories)
            if split == "train":
                solids = with_variations(solids, self.variations)
        entries: list[Entry] = []
        names: list[str] = []
        for shapes in (solids, families):
            if shapes:
                made, of = build_pool(shapes, self.options, self.cache)
                entries += made
                names += of
        return entries, names, len(entries) - len(families)
