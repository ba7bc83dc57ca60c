"""Where segmentation finds its pictures and masks: composites of a corpus, DIS5K, HRSOD, COD10K, any two folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from ...core.data.composites import CompositeOptions, Compositor
from ...core.errors import PolyditError
from ...core.training.data import TaskData
from .folders import MaskFolder, find_layout
from .samples import CompositeSamples, FolderSamples

__all__ = ["SegmentationData"]


class SegmentationData(TaskData):
    """Composites of a corpus made by ``polydit corpus build``, or pictures with masks.

    Args:
        path: the corpus; or the root of a data set; or the folder that holds folders of pictures and masks
            (``im`` and ``gt``, ``images`` and ``masks``, ``Imgs`` and ``GT``).
        masks_path: folder of masks; ``path`` is then the folder of their pictures.
        layout: ``auto``, ``dis5k``, ``hrsod``, ``uhrsd``, ``cod10k`` or ``folders``.
        val_path: root of held-out pictures; without it the corpus' or the data set's own, or every 20th.
        size: side of the samples in pixels.
        batch_size: samples per step.
        composites: how composites are drawn.
        tiles: share of samples that are tiles with a coarse context, for formulations with one; None gives none.
        num_workers: processes that prepare samples; 0 prepares them in the training process.
        samples_per_epoch: length of an epoch of composites.
        held_out: held-out samples to look at.
        cache_megabytes: decoded pictures kept per worker.
        strict: fail on an unreadable or unpaired file instead of naming it and going on.
        seed: of all draws.
    """

    def __init__(
        self,
        path: str = "data/corpus",
        masks_path: str | None = None,
        layout: str = "auto",
        val_path: str | None = None,
        size: int = 192,
        batch_size: int = 8,
        composites: CompositeOptions = CompositeOptions(),  # noqa: B008 - frozen; the parser shows its fields
        tiles: float | None = None,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        held_out: int = 64,
        cache_megabytes: int = 1500,
        strict: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.layout = Path(path).expanduser(), layout
        self.masks_path = Path(masks_path).expanduser() if masks_path else None
        self.val_path = Path(val_path).expanduser() if val_path else None
        self.size, self.batch_size, self.composites, self.tiles = size, batch_size, composites, tiles
        self.num_workers, self.samples_per_epoch, self.held_out = num_workers, samples_per_epoch, held_out
        self.cache_megabytes, self.strict, self.seed = cache_megabytes, strict, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        for option in ("path", "masks_path", "val_path"):
            given = getattr(self, option)
            if given is not None and not given.exists():
                raise PolyditError(
                    f"--data.{option} {given}: no such folder; give one of pictures and masks"
                    + (", or make a corpus with `polydit corpus build`" if option == "path" else "")
                )
        if (self.path / "manifest.jsonl").is_file():
            train = Compositor.from_corpus(
                self.path, "train", self.size, self.composites, cache_megabytes=self.cache_megabytes
            )
            self.train_set = CompositeSamples(train, self.samples_per_epoch, self.seed, self.tiles)
            held_out = Compositor.from_corpus(self.path, "val", self.size, CompositeOptions.plain())
            self.val_set = CompositeSamples(
                held_out, self.held_out, self.seed, None if self.tiles is None else 0.0
            )
            if self.val_path is None:
                return
        else:
            folders = self._folders(self.path, "train")
            self.train_set = FolderSamples(folders, self.size, True, 1, self.seed, self.tiles)
        self.val_set = self._held_out()

    def _held_out(self) -> Dataset[Any]:
        root, tiles = self.val_path or self.path, None if self.tiles is None else 0.0
        split = "train" if self.val_path is not None else "val"
        for name in ("val", "test", "train") if self.val_path is not None else ("val",):
            try:
                folders = self._folders(root, name)
            except PolyditError:
                if name == split or self.val_path is None:
                    break
            else:
                return Subset(
                    FolderSamples(folders, self.size, False, 1, self.seed, tiles), self._some(folders)
                )
        assert isinstance(self.train_set, FolderSamples)
        same = FolderSamples([], self.size, False, 1, self.seed, tiles)
        items = self.train_set.items
        if len(items) > 1:
            same.items = items[::20][: self.held_out]
            self.train_set.items = [item for number, item in enumerate(items) if number % 20]
        else:
            same.items = items
        return same

    def _some(self, folders: list[MaskFolder]) -> list[int]:
        count = sum(map(len, folders))
        step = max(1, count // self.held_out)
        return list(range(0, count, step))[: self.held_out]

    def _folders(self, root: Path, split: str) -> list[MaskFolder]:
        if self.masks_path is not None and root == self.path:
            if split != "train":
                raise PolyditError(f"{root}: two folders have no split '{split}'")
            return [self._named(MaskFolder(root, self.masks_path, strict=self.strict))]
        return [
            self._named(MaskFolder(pictures, masks, edges, strict=self.strict))
            for pictures, masks, edges in find_layout(root, self.layout, split)
        ]

    def _named(self, folder: MaskFolder) -> MaskFolder:
        if folder.unmatched:
            print(f"{len(folder.unmatched)} files without a partner, {folder.unmatched[0]} first")  # noqa: T201
        return folder
