"""General stacks for training: folders of layers, any number of them in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ...core.data.corpus.manifest import split_of
from ...core.errors import PolyditError
from ...core.media.layer_files import read_layers
from ...core.training.data import TaskData
from .illustration_data import resized
from .stack_metrics import merge

__all__ = ["StackData", "Stacks", "read_stack"]


def read_stack(path: Path) -> NDArray[np.float32]:
    """Layers (N, H, W, 4) in [0, 1], bottom to top: what is visible, with opacity in the alpha; paper is a layer.

    Raises:
        PolyditError: there is no visible layer, or one is not laid plainly over the others.
    """
    found = read_layers(path).with_paper()
    layers = []
    for layer in found.layers:
        if not layer.visible:
            continue
        if layer.blend_mode != "normal":
            raise PolyditError(
                f"{path}: layer {layer.name!r} is laid {layer.blend_mode}; general stacks are plain layers, so bake it "
                "or take the stack out"
            )
        canvas = layer.on_canvas(found.width, found.height).astype(np.float32) / 255
        canvas[..., 3] *= layer.opacity
        layers.append(canvas)
    if not layers:
        raise PolyditError(f"{path}: has no visible layer; take the stack out")
    return np.stack(layers)


class Stacks(Dataset[dict[str, Any]]):
    """Square crops of stacks; sample i is a pure function of seed and i.

    Args:
        files: ``layers.json`` of each.
        side: of a crop, in pixels.
        length: samples in all; 0 is every stack once, its middle.
        most: layers at most; of a taller stack the lowest are merged.
        seed: of every draw.
    """

    def __init__(self, files: list[Path], side: int, length: int = 0, most: int = 20, seed: int = 0) -> None:
        self.files, self.side, self.length, self.most, self.seed = files, side, length, most, seed

    def __len__(self) -> int:
        return self.length or len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, index))
        layers = read_stack(self.files[int(rng.integers(len(self.files))) if self.length else index])
        height, width = layers.shape[1:3]
        size = round(min(height, width) * (rng.uniform(0.7, 1.0) if self.length else 1.0))
        places = [
            int(rng.integers(room + 1)) if self.length else room // 2
            for room in (height - size, width - size)
        ]
        layers = layers[:, places[0] : places[0] + size, places[1] : places[1] + size]
        if self.length and rng.random() < 0.5:
            layers = layers[:, :, ::-1]
        layers = resized(np.ascontiguousarray(layers), self.side)
        seen = [layer for layer in layers if layer[..., 3].any()] or [layers[0]]
        while len(seen) > self.most:
            seen[:2] = [merge(seen[0], seen[1])]
        stack = np.ascontiguousarray(np.stack(seen), dtype=np.float32)
        return {"layers": torch.from_numpy(stack).permute(3, 0, 1, 2)}  # (4, N, side, side)


class StackData(TaskData):
    """Stacks of any number of layers for training.

    Args:
        path: a folder with a folder for each stack, its ``layers.json`` and pictures in it as ``predict`` writes them;
            8 % of the folders, chosen by their names, are held out.
        side: of the square crops, in pixels.
        most: layers at most; of a taller stack the lowest are merged.
        batch_size: 1: stacks differ in their number of layers.
        held_out: held-out stacks that validation looks at.
        num_workers: processes that prepare crops.
        samples_per_epoch: length of an epoch; crops are drawn at random.
        seed: of all draws.

    Raises:
        PolyditError: an option is out of range.
    """

    drawn = True

    def __init__(
        self,
        path: str = "data/layers",
        side: int = 640,
        most: int = 20,
        batch_size: int = 1,
        held_out: int = 32,
        num_workers: int = 1,
        samples_per_epoch: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size != 1:
            raise PolyditError(
                f"--data.batch_size {batch_size}: stacks differ in their number of layers; leave it at 1 and give "
                "--trainer.accumulate_grad_batches"
            )
        if side < 16 or most < 1 or held_out < 1:
            raise PolyditError(
                f"--data.side {side}, --data.most {most}, --data.held_out {held_out}: give a side of 16 or more, "
                "and at least one layer and one held-out stack"
            )
        self.path, self.side, self.most = Path(path).expanduser(), side, most
        self.batch_size, self.num_workers, self.held_out = batch_size, num_workers, held_out
        self.samples_per_epoch, self.seed = samples_per_epoch, seed

    def setup(self, stage: str | None = None) -> None:
        """Find the stacks.

        Raises:
            PolyditError: there are none, or none to train on or to hold out.
        """
        splits: dict[str, list[Path]] = {"train": [], "val": []}
        for file in sorted(self.path.glob("**/*layers.json")):
            splits[split_of("", file.parent.name)].append(file)
        for split, files in splits.items():
            if not files:
                raise PolyditError(
                    f"--data.path {self.path}: has no {split} stacks; give a folder with a folder for each stack and a "
                    "layers.json in it (8 % of them, by their names, are val)"
                )
        self.train_set = Stacks(splits["train"], self.side, self.samples_per_epoch, self.most, self.seed)
        self.val_set = Stacks(splits["val"][: self.held_out], self.side, most=self.most)
