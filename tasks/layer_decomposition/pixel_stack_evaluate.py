"""``polydit layer-decomposition evaluate`` for general stacks in pixel space: composites, beside trivial stacks."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.alpha import composite
from ...core.media import OutputWriter, ResultsTable, contact_sheet, on_checkerboard
from .composed_stacks import ComposedStacks, compositor_of
from .illustration_evaluate import mean
from .metrics import region_psnr, soft_iou
from .pixel_stack_model import as_pixels
from .pixel_stack_pipeline import PixelStackPipeline
from .stack_metrics import stack_scores

__all__ = ["COLUMNS", "evaluate_stacks", "report", "score", "trivial_stacks"]

COUNTS = (2, 3, 4)
"""Layers of the composites, in turn."""

COLUMNS = {
    "order_iou": "LayerD alpha IoU",
    "order_l1": "LayerD RGB L1",
    "cost": "LayerD cost",
    "object_iou": "alpha soft IoU of the cut-outs, each in its own place",
    "in_order": "two or three cut-outs: share in the right order",
    "hidden": "photograph where it was covered, dB",
    "recomposition": "recomposition, dB",
}


def compose(layers: Tensor) -> NDArray[np.uint8]:
    """The picture (H, W, 3), 8-bit, of layers (N, 4, H, W) on white."""
    return as_pixels(composite(list(layers), backdrop=torch.ones_like(layers[0, :3])))


def trivial_stacks(picture: NDArray[np.uint8], count: int) -> dict[str, Tensor]:
    """What costs nothing, (count, 4, H, W) each: the picture at the bottom under empty layers, and in every layer."""
    whole = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    whole = torch.cat([whole, torch.ones_like(whole[:1])])
    empty = [torch.zeros_like(whole)] * (count - 1)
    return {"bottom": torch.stack([whole, *empty]), "copies": torch.stack([whole] * count)}


def score(layers: Tensor, true: Tensor) -> dict[str, float]:
    """Figures of predicted layers (N, 4, H, W), by the names in :data:`COLUMNS`; in [0, 1] but for those in dB.

    ``in_order`` is there for two cut-outs and more: 1 where the predicted ones fit better than in any other order, by
    more than a thousandth: layers that are all alike are in none.
    """
    made, truth = ([layer.permute(1, 2, 0).numpy() for layer in stack] for stack in (layers, true))
    aligned = stack_scores(made, truth, merges=0)[0]
    figures = {"order_iou": aligned.alpha_iou, "order_l1": aligned.rgb_l1, "cost": aligned.cost}
    objects = tuple(range(1, len(truth)))
    table = {(i, j): soft_iou(made[i][..., 3], truth[j][..., 3]) for i in objects for j in objects}
    fit = {
        order: float(np.mean([table[pair] for pair in zip(order, objects, strict=True)]))
        for order in permutations(objects)
    }
    straight = fit.pop(objects)
    figures["object_iou"] = straight
    if fit:
        figures["in_order"] = float(straight > max(fit.values()) + 1e-3)
    covered = (true[1:, 3] > 0.02).any(0).numpy()
    figures["hidden"] = min(region_psnr(compose(layers[:1]), compose(true[:1]), covered), 99.0)
    everywhere = np.ones_like(covered)
    figures["recomposition"] = min(region_psnr(compose(layers), compose(true), everywhere), 99.0)
    return figures


def evaluate_stacks(
    pipe: PixelStackPipeline,
    root: Path,
    count: int = 60,
    side: int = 128,
    seed: int = 0,
    steps: int = 1,
    sheet: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[dict[str, float]]], list[list[NDArray[np.uint8]]]]:
    """Take held-out composites apart, each into as many layers as it has.

    Args:
        pipe: the pipeline.
        root: a corpus; its ``val`` split is used.
        count: composites, with two, three and four layers in turn.
        side: of them, in pixels.
        seed: of composites and noise.
        steps: denoising steps.
        sheet: show the first so many of those with the most layers.
        progress: called with (done, all).

    Returns:
        The figures of each for ``network`` and the :func:`trivial_stacks`; and two rows of pictures for each that is
        shown, the network's and the true one: picture and layers.
    """
    composites = ComposedStacks(compositor_of(root, "val", side), count, bank=1000, seed=seed)
    rows: dict[str, list[dict[str, float]]] = {"network": [], "bottom": [], "copies": []}
    shown: list[list[NDArray[np.uint8]]] = []
    for number in range(count):
        many = COUNTS[number % len(COUNTS)]
        true = composites.sample(number, many)["layers"].transpose(0, 1).contiguous()
        picture = compose(true)
        made = pipe(picture, many, steps, torch.Generator().manual_seed(seed)).layers[0]
        for who, layers in {"network": made, **trivial_stacks(picture, many)}.items():
            rows[who].append(score(layers, true))
        if many == max(COUNTS) and len(shown) < 2 * sheet:
            for stack in (made, true):
                shown.append([compose(stack), *(on_checkerboard(as_pixels(layer)) for layer in stack)])
        if progress is not None:
            progress(number + 1, count)
    return rows, shown


def report(pipe: PixelStackPipeline, options: Namespace, settings: dict[str, Any]) -> int:
    """Print the table of an evaluation, and write it where asked to."""
    rows, shown = evaluate_stacks(
        pipe,
        options.input,
        options.count,
        options.side,
        options.seed,
        options.steps,
        sheet=6 if options.sheet else 0,
    )
    titles = {"network": "network", "bottom": "picture at the bottom", "copies": "picture in every layer"}
    table = ResultsTable(
        ["", *titles.values()], f"{options.count} held-out composites of {options.side} pixels", 3
    )
    means = {name: {who: mean(rows[who], name) for who in titles} for name in COLUMNS}
    for name, title in COLUMNS.items():
        table.add(title, *means[name].values())
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        path = writer.json(options.output.name, {"settings": settings, "mean": means, "rows": rows})
        print(f"wrote {path}", file=sys.stderr)  # noqa: T201
    if options.sheet is not None:
        writer = OutputWriter(options.sheet.parent, overwrite=options.overwrite)
        names = ["picture", *(f"layer {number}" for number in range(1, max(COUNTS) + 1))]
        cells = [
            (f"{('network', 'true')[index % 2]}: {title}", cell)
            for index, row in enumerate(shown)
            for title, cell in zip(names, row, strict=True)
        ]
        sheet = contact_sheet(cells, columns=len(names), cell=options.side)
        print(f"wrote {writer.image(options.sheet.name, sheet)}", file=sys.stderr)  # noqa: T201
    return 0
