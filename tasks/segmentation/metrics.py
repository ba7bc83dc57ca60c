"""The task's test protocol: saliency measures of a segmenter over pictures with masks or composites."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.data.composites import CompositeOptions, Compositor
from ...core.errors import PolyditError
from ...core.media import ResultsTable
from ...core.metrics.saliency_set import SaliencyMetrics
from .folders import MaskFolder

__all__ = ["Evaluation", "Example", "composites", "evaluate", "of_folder"]

Pixels = NDArray[np.uint8]
Segmenter = Callable[[Pixels, Path], NDArray[np.float32]]
COLUMNS = {
    "max F": "max_f",
    "mean F": "mean_f",
    "weighted F": "weighted_f",
    "MAE": "mae",
    "S": "s",
    "mean E": "mean_e",
    "max F of the set": "max_f_dataset",
    "IoU": "iou",
    "HCE": "hce",
}
"""Heading -> name in `SaliencyMetrics`."""


@dataclass
class Example:
    """A picture (H, W, 3), its mask (H, W), both uint8, and the file it is from."""

    picture: Pixels
    mask: Pixels
    source: Path


@dataclass
class Evaluation:
    """Scores of several segmenters over the same examples.

    Attributes:
        about: what the examples are.
        count: how many.
        scores: name of the segmenter -> measure -> value; ``seconds`` is the mean time of a picture.
    """

    about: str
    count: int = 0
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def table(self) -> ResultsTable:
        """One row per segmenter."""
        shown = {
            head: name
            for head, name in COLUMNS.items()
            if any(name in scores for scores in self.scores.values())
        }
        table = ResultsTable(["", *shown, "seconds"], title=f"{self.count} pictures: {self.about}", digits=3)
        for segmenter, scores in self.scores.items():
            table.add(segmenter, *(scores.get(name) for name in shown.values()), scores["seconds"])
        return table

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"about": self.about, "count": self.count, "scores": self.scores}


def of_folder(folder: MaskFolder, leave_out: Callable[[str], None] | None = None) -> Iterator[Example]:
    """The pictures of a folder in full size; ``leave_out`` is told of those that cannot be read.

    Raises:
        PolyditError: one cannot be read, and there is no ``leave_out``.
    """
    for index in range(len(folder)):
        try:
            picture, mask, _ = folder.read(index)
        except PolyditError as error:
            if leave_out is None:
                raise
            leave_out(str(error))
            continue
        yield Example(picture, mask, folder[index].picture)


def composites(
    corpus: str | Path,
    count: int,
    size: int = 512,
    split: str = "reserved",
    seed: int = 0,
    small: bool = False,
) -> Iterator[Example]:
    """Held-out cut-outs over held-out photographs, one each, without any degradation.

    The cut-out is the subject: at least half as long as the picture, and 6 % of its area. The photographs hold things
    of their own, which count as background. Example number i is a pure function of the arguments and i.

    Args:
        corpus: folder of a corpus.
        count: how many.
        size: side in pixels.
        split: ``val`` or ``reserved``.
        seed: of the draws.
        small: also objects down to 0.35 of the side and 2 % of the area, among the other things of the photograph.
    """
    options = CompositeOptions.plain(scale=(0.5, 0.95), coverage=(0.06, 0.85))
    if small:
        options = CompositeOptions.plain()
    compositor = Compositor.from_corpus(corpus, split, size, options, allow_reserved=split == "reserved")
    for number in range(count):
        drawn = compositor(np.random.default_rng((seed, number)))
        yield Example(drawn.image, np.rint(drawn.alpha * 255).astype(np.uint8), drawn.sources[1])


def evaluate(
    segmenters: dict[str, Segmenter],
    examples: Iterable[Example],
    about: str,
    binarize: float | None = None,
    hce: bool = False,
    progress: Callable[[int, int], None] | None = None,
    total: int = 0,
    leave_out: Callable[[str], None] | None = None,
) -> Evaluation:
    """Run segmenters on examples.

    Args:
        segmenters: name -> ``(picture, source) -> soft mask``.
        examples: pictures with masks.
        about: what they are, for the table.
        binarize: threshold of the masks before all measures; None keeps them soft.
        hce: also count human correction efforts.
        progress: called with (pictures done, in all).
        total: pictures in all, for the progress.
        leave_out: told of examples that a segmenter cannot do, which then count for none of them.

    Raises:
        PolyditError: a segmenter cannot do an example and there is no ``leave_out``, or it refuses an option.
    """
    sums = {name: SaliencyMetrics(binarize, hce) for name in segmenters}
    seconds = dict.fromkeys(segmenters, 0.0)
    result = Evaluation(about)
    for example in examples:
        masks, taken = {}, {}
        try:
            for name, segmenter in segmenters.items():
                begin = time.perf_counter()
                masks[name] = segmenter(example.picture, example.source)
                taken[name] = time.perf_counter() - begin
        except PolyditError as error:
            if leave_out is None or str(error).startswith("--"):
                raise
            leave_out(str(error))
            continue
        for name, mask in masks.items():
            seconds[name] += taken[name]
            sums[name].update(mask, example.mask)
        result.count += 1
        if progress is not None:
            progress(result.count, total)
    for name, metric in sums.items() if result.count else ():
        result.scores[name] = {key: float(value) for key, value in metric.compute().items()}
        result.scores[name]["seconds"] = seconds[name] / max(1, result.count)
    return result
