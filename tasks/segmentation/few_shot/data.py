"""Where few-shot segmentation finds its episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ....core.errors import PolyditError
from ....core.training.data import TaskData
from .composed import corpus_episodes, drawn_episodes
from .episodes import EpisodeGroups, EpisodeSet, EpisodeSource, EveryPicture, FolderEpisodes
from .layouts import FOLDS, LAYOUTS

__all__ = ["FewShotData", "episodes_of", "held_out"]

COMPOSED = ("corpus", "drawn")


def episodes_of(path: str | Path, layout: str, part: str, fold: int = 0) -> EpisodeSource:
    """The episodes of a part of some data.

    Args:
        path: its folder; ``drawn`` needs none.
        layout: ``corpus``, ``drawn``, or one of :data:`LAYOUTS`.
        part: ``train``, ``val``, ``test``; ``reserved`` of a corpus. Their classes are disjoint.
        fold: of the data sets that have folds.

    Raises:
        PolyditError: the layout is unknown, or something is missing.
    """
    root = Path(path).expanduser()
    if layout == "drawn":
        return drawn_episodes(part)
    if layout != "corpus" and layout not in LAYOUTS:
        raise PolyditError(
            f"--data.layout {layout}: is unknown; choose from {', '.join((*COMPOSED, *LAYOUTS))}"
        )
    if not root.is_dir():
        raise PolyditError(
            f"--data.path {path}: no such folder; give the data set's, or make one with `polydit corpus build`"
        )
    if layout == "corpus":
        return corpus_episodes(root, "val" if part == "test" else part, allow_reserved=part == "reserved")
    return FolderEpisodes(LAYOUTS[layout](root, part, fold))


def held_out(
    path: str | Path, layout: str, part: str, fold: int, episodes: int, shots: int, size: int, seed: int = 0
) -> EpisodeSet:
    """The episodes that a model is judged by: a fixed number, or of FSS-1000 every picture once."""
    source = episodes_of(path, layout, part, fold)
    if layout == "fss-1000" and isinstance(source, FolderEpisodes):
        return EveryPicture(source, shots, size, seed)
    return EpisodeSet(source, episodes, shots, size, seed)


class FewShotData(TaskData):
    """Episodes for training and, of other classes, for validation.

    Args:
        path: a corpus made by ``polydit corpus build``, or the folder of a data set.
        layout: ``corpus``: cut-outs on photographs, each cut-out a class; ``drawn``: shapes, no files needed;
            ``coco-20i``, ``pascal-5i`` or ``fss-1000``.
        fold: of COCO-20i and PASCAL-5i, 0 to 3.
        size: side of the pictures, in pixels.
        sizes: side -> relative frequency, for training on several; composed pictures only. None is ``size``.
        shots: supports of each episode; in training the model uses 1 to so many of them.
        batch_size: samples in a step: episodes, or where pictures are composed groups of them.
        episodes_per_group: episodes that share the pictures of a group.
        samples_per_epoch: length of an epoch.
        val_episodes: held-out episodes.
        num_workers: processes that prepare episodes; 0 prepares them in the training process.
        seed: of all draws.

    Raises:
        PolyditError: an option is unknown or does not go with another one.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/corpus",
        layout: str = "corpus",
        fold: int = 0,
        size: int = 128,
        sizes: dict[int, float] | None = None,
        shots: int = 2,
        batch_size: int = 2,
        episodes_per_group: int = 8,
        samples_per_epoch: int = 1_000_000,
        val_episodes: int = 64,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= fold < FOLDS:
            raise PolyditError(f"--data.fold {fold}: must lie between 0 and {FOLDS - 1}")
        if shots < 1:
            raise PolyditError(f"--data.shots {shots}: an episode needs at least one support")
        if sizes and layout not in COMPOSED:
            raise PolyditError(f"--data.sizes: does not go with --data.layout {layout}; leave it out")
        self.path, self.layout, self.fold = path, layout, fold
        self.size, self.sizes, self.shots = size, sizes or {size: 1.0}, shots
        self.batch_size, self.episodes_per_group = batch_size, episodes_per_group
        self.samples_per_epoch, self.val_episodes = samples_per_epoch, val_episodes
        self.num_workers, self.seed = num_workers, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the pictures.

        Raises:
            PolyditError: a folder is missing, or holds nothing that can be used.
        """
        source: Any = episodes_of(self.path, self.layout, "train", self.fold)
        if self.layout in COMPOSED:
            self.train_set = EpisodeGroups(
                source,
                self.samples_per_epoch,
                self.episodes_per_group,
                self.shots,
                self.sizes,
                self.batch_size,
                self.seed,
            )
        else:
            self.train_set = EpisodeSet(source, self.samples_per_epoch, self.shots, self.size, self.seed)
        self.val_set = held_out(
            self.path, self.layout, "val", self.fold, self.val_episodes, 1, self.size, seed=0
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Episodes in an order that depends on the seed only: they are drawn at random by their numbers."""
        if isinstance(self.train_set, EpisodeGroups) and self.trainer is not None:
            self.train_set.batch = self.batch_size * self.trainer.world_size  # of one size on all processes
        return super().train_dataloader()
