"""``polydit layer-decomposition evaluate`` for illustration layers: held-out drawings, beside classical processing."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.media import OutputWriter, ResultsTable, contact_sheet, on_checkerboard
from .illustration import ROLES, LayerCode, recompose_code
from .illustration_baseline import classical_layers
from .illustration_data import held_out_drawing, illustration_files
from .illustration_pipeline import IllustrationLayersPipeline
from .metrics import region_psnr, soft_iou
from .stack_metrics import stack_scores

__all__ = ["evaluate_illustrations", "report", "score"]

PRESENT = 0.003
"""A layer counts where its true mean alpha is at least this: the IoU of an empty layer says nothing."""

Layers = NDArray[np.float32]


def compose_layers(layers: Layers) -> NDArray[np.uint8]:
    """The picture (H, W, 3), 8-bit, of layers (4, H, W, 4) on white paper."""
    code = LayerCode.encode(torch.from_numpy(layers).permute(3, 0, 1, 2)[None])
    return (recompose_code(code)[0].permute(1, 2, 0) * 255).round().byte().numpy()


def score(layers: Layers, true: Layers) -> dict[str, float]:
    """Figures of predicted layers (4, H, W, 4): per layer that is present ``iou_<role>``, their mean, and more.

    ``stray_<role>`` is the mean alpha of a predicted layer that should be empty; ``flat_l1`` the error of the flat
    colours where they are; ``recomposition`` the PSNR of the picture; ``order_*`` are LayerD's, without merges.
    """
    figures: dict[str, float] = {}
    for slot, role in enumerate(ROLES):
        alpha, truth = layers[slot, ..., 3], true[slot, ..., 3]
        if truth.mean() >= PRESENT:
            figures[f"iou_{role}"] = soft_iou(alpha, truth)
        else:
            figures[f"stray_{role}"] = float(alpha.mean())
    figures["iou"] = float(np.mean([v for k, v in figures.items() if k.startswith("iou_")]))
    covered = true[0, ..., 3] > 0.5
    if covered.any():
        figures["flat_l1"] = float(np.abs(layers[0, ..., :3] - true[0, ..., :3])[covered].mean())
    everything = np.ones(covered.shape, bool)
    psnr = region_psnr(compose_layers(layers), compose_layers(true), everything)
    figures["recomposition"] = min(psnr, 99.0)
    order = stack_scores(list(layers), list(true), merges=0, group=False)[0]
    figures["order_l1"], figures["order_iou"] = order.rgb_l1, order.alpha_iou
    return figures


def evaluate_illustrations(
    pipe: IllustrationLayersPipeline,
    root: Path,
    count: int = 60,
    side: int = 128,
    seed: int = 0,
    steps: int = 1,
    sheet: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[dict[str, float]]], list[list[NDArray[np.uint8]]]]:
    """Take held-out drawings apart.

    Args:
        pipe: the pipeline.
        root: a corpus with illustrations, or a folder of folders of layers.
        count: drawings at most.
        side: of them, in pixels.
        seed: of the noise.
        steps: denoising steps.
        sheet: show the first so many.
        progress: called with (done, all).

    Returns:
        The figures of each drawing for ``network`` and ``classical``, and rows of pictures.
    """
    files = illustration_files(root, "val")[:count]
    rows: dict[str, list[dict[str, float]]] = {"network": [], "classical": []}
    shown = []
    for number, file in enumerate(files):
        true = held_out_drawing(file, number, side)
        picture = compose_layers(true)
        begin = time.perf_counter()
        made = pipe(picture, steps, torch.Generator().manual_seed(seed), size=max(side, 32)).layers[0]
        seconds = time.perf_counter() - begin
        layers = np.ascontiguousarray(made.permute(0, 2, 3, 1).numpy())
        baseline = classical_layers(picture.astype(np.float32) / 255)
        rows["network"].append({**score(layers, true), "seconds": seconds})
        rows["classical"].append(score(baseline, true))
        if number < sheet:
            for panel in (layers, true, baseline):
                seen = [on_checkerboard((layer * 255).round().astype(np.uint8)) for layer in panel]
                shown.append([compose_layers(panel), *seen])
        if progress is not None:
            progress(number + 1, len(files))
    return rows, shown


def mean(rows: list[dict[str, float]], name: str) -> float:
    """Over the drawings that have the figure."""
    values = [row[name] for row in rows if name in row]
    return float(np.mean(values)) if values else float("nan")


def report(pipe: IllustrationLayersPipeline, options: Namespace, settings: dict[str, Any]) -> int:
    """Print the table of an evaluation, and write it where asked to."""
    rows, shown = evaluate_illustrations(
        pipe,
        options.input,
        options.count,
        options.side,
        options.seed,
        options.steps,
        sheet=4 if options.sheet else 0,
    )
    names = {
        "iou": "mean layer alpha IoU",
        **{f"iou_{role}": f"alpha IoU, {role}" for role in ROLES},
        **{f"stray_{role}": f"mean alpha of {role} where there is none" for role in ROLES[1:3]},
        "flat_l1": "flat colour L1",
        "recomposition": "recomposition dB",
        "order_iou": "LayerD alpha IoU",
        "order_l1": "LayerD RGB L1",
    }
    count = len(rows["network"])
    table = ResultsTable(
        ["", "network", "classical"], f"{count} held-out drawings of {options.side} pixels", 3
    )
    means = {}
    for name, title in names.items():
        means[name] = {who: mean(rows[who], name) for who in rows}
        table.add(title, *means[name].values())
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        path = writer.json(options.output.name, {"settings": settings, "mean": means, "rows": rows})
        print(f"wrote {path}", file=sys.stderr)  # noqa: T201
    if options.sheet is not None:
        writer = OutputWriter(options.sheet.parent, overwrite=options.overwrite)
        kinds = ["network", "true", "classical"]
        cells = [
            (f"{kinds[index % 3]}: {title}", cell)
            for index, row in enumerate(shown)
            for title, cell in zip(["picture", *ROLES], row, strict=True)
        ]
        path = writer.image(options.sheet.name, contact_sheet(cells, columns=1 + len(ROLES)))
        print(f"wrote {path}", file=sys.stderr)  # noqa: T201
    return 0
