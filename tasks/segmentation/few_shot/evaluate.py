"""The test protocol of few-shot segmentation: mIoU and FB-IoU on classes that were never trained on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.devices import check_device_name
from ....core.errors import PolyditError
from ....core.media import OutputWriter, ResultsTable
from ....core.metrics import FewShotIoU
from ....core.open_pipeline import choose_weights, open_pipeline
from .data import held_out
from .episodes import EpisodeSet
from .pipeline import FewShotPipeline

__all__ = ["Evaluation", "colour_peer", "evaluate", "run"]

BINS = 12  # of each colour channel, of the peer's histograms


@dataclass
class Evaluation:
    """Figures of each way of answering the same episodes: ``miou`` and ``fb_iou`` by its name."""

    episodes: int
    classes: int
    shots: int
    figures: dict[str, dict[str, float]]

    def table(self) -> ResultsTable:
        """One row for each way."""
        title = f"{self.episodes} episodes, {self.shots} supports each, {self.classes} classes"
        table = ResultsTable(["", "mIoU", "FB-IoU"], title=title, digits=1)
        for name, found in self.figures.items():
            table.add(name, 100 * found["miou"], 100 * found["fb_iou"])
        return table

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "episodes": self.episodes,
            "classes": self.classes,
            "shots": self.shots,
            "figures": self.figures,
            # what `export --figures` reads
            "mean": {
                f"{figure} {name}": value
                for name, found in self.figures.items()
                for figure, value in found.items()
            },
        }


def evaluate(
    pipe: FewShotPipeline, episodes: EpisodeSet, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Answer episodes with supports, with the complement of their masks, without supports, and by colour alone.

    The network's answer is compared at the side of the episodes' pictures.

    Args:
        pipe: the pipeline.
        episodes: whose classes the network has not seen.
        progress: called with (episodes done, episodes in all).
    """
    classes = len(episodes.source.classes)
    metrics = {
        name: FewShotIoU(classes)
        for name in (
            "with supports",
            "without supports",
            "supports' masks inverted",
            "colours of the supports",
        )
    }
    seen: set[int] = set()
    for index in range(len(episodes)):
        sample = episodes[index]
        query, supports, masks = sample["query"][None], sample["support"], sample["support_mask"]
        usable = masks.flatten(1).any(1)  # a thing that others hide shows nothing
        supports, masks = supports[usable], masks[usable]
        answers = {
            "with supports": _ask(pipe, query, supports, masks),
            "without supports": _ask(pipe, query, supports[:0], masks[:0]),
            "supports' masks inverted": _ask(pipe, query, supports, 1 - masks),
            "colours of the supports": colour_peer(query, supports, masks),
        }
        truth = sample["query_mask"][None] > 0.5
        counted = sample["counted"][None] > 0.5 if "counted" in sample else None
        for name, found in answers.items():
            metrics[name].update(found, truth, sample["label"][None], counted)
        seen.add(int(sample["label"]))
        if progress is not None:
            progress(index + 1, len(episodes))
    figures = {
        name: {key: float(value) for key, value in metric.compute().items()}
        for name, metric in metrics.items()
    }
    return Evaluation(len(episodes), len(seen), episodes.shots, figures)


def _ask(pipe: FewShotPipeline, query: Tensor, supports: Tensor, masks: Tensor) -> Tensor:
    if len(supports) and not masks.flatten(1).any(1).all():
        return torch.zeros_like(query[:, :1], dtype=torch.bool)
    return pipe.ask(pipe.show(supports, masks), query, detail="none")[1]


def colour_peer(query: Tensor, supports: Tensor, masks: Tensor) -> Tensor:
    """What colours alone say: pixels whose colour the supports show more often inside their masks than outside.

    A peer that learns nothing: smoothed histograms of RGB, and the ratio of the two blurred over the query.

    Args:
        query: (1, 3, H, W) in [-1, 1].
        supports: (S, 3, H, W) in [-1, 1].
        masks: (S, 1, H, W) of 0 and 1.
    """
    cells = _cells(supports).flatten()
    inside = masks.flatten() > 0.5

    def histogram(numbers: Tensor) -> Tensor:
        counts = torch.bincount(numbers, minlength=BINS**3).float().reshape(1, 1, BINS, BINS, BINS)
        smooth = F.avg_pool3d(counts, 3, 1, 1) + 1e-3
        return (smooth / smooth.sum()).flatten()

    ratio = (histogram(cells[inside]) / histogram(cells[~inside])).log()
    return F.avg_pool2d(ratio[_cells(query)][:, None], 5, 1, 2) > 0


def _cells(pictures: Tensor) -> Tensor:
    """Number of each pixel's cell in a histogram, (B, H, W)."""
    levels = ((pictures + 1) / 2 * BINS).long().clamp(0, BINS - 1)
    return levels[:, 0] * BINS**2 + levels[:, 1] * BINS + levels[:, 2]


def run(options: Namespace) -> int:
    """Print the table of an evaluation, and write it as JSON where asked to.

    Raises:
        PolyditError: no data, no weights, weights of another system, or an output that exists.
    """
    import sys

    from .. import TASK
    from ..evaluate import check_output

    output: Path | None = options.output
    check_output(output, options.overwrite)
    check_device_name(options.device)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
    weights = choose_weights(TASK, options.weights, None if options.weights else "few-shot")
    settings["weights"] = str(weights)
    options.cache = "none"
    pipe = open_pipeline(TASK, weights, options, settings, say)
    if not isinstance(pipe, FewShotPipeline):
        raise PolyditError(f"--weights {weights}: a {type(pipe).__name__}; few-shot weights are needed")
    episodes = held_out(
        options.path,
        options.layout,
        options.part,
        options.fold,
        options.episodes,
        options.shots,
        pipe.formulation.size,
        options.seed,
    )
    result = evaluate(pipe, episodes)
    table = result.table()
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    gain = 100 * (result.figures["with supports"]["miou"] - result.figures["without supports"]["miou"])
    print(f"mIoU gained by the supports: {gain:+.1f} points")  # noqa: T201
    if output is not None:
        writer = OutputWriter(output.parent, overwrite=options.overwrite)
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        say(f"wrote {writer.json(output.name, {'settings': plain, **result.record()})}")
    return 0
