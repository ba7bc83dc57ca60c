"""``polydit layer-decomposition evaluate --truth``: stacks on disk against true ones, by LayerD's protocol."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import PolyditError
from ...core.media import LayerStack, OutputWriter, ResultsTable, read_layers
from .stack_metrics import stack_scores

__all__ = ["compare_stacks", "run", "stack_files"]

ENDING = "layers.json"


def stack_files(root: Path, option: str) -> dict[str, Path]:
    """The stacks of a folder by name: ``<name>_layers.json``, or ``<name>/layers.json``.

    Args:
        root: the folder.
        option: what gave it, for the message.

    Raises:
        PolyditError: no folder, none in it, or two of one name.
    """
    found: dict[str, Path] = {}
    for file in sorted(root.expanduser().rglob(f"*{ENDING}")):
        name = file.name.removesuffix(ENDING).removesuffix("_") or file.parent.name
        if name in found:
            raise PolyditError(f"--{option}: {found[name]} and {file} are both {name!r}; rename one")
        found[name] = file
    if not found:
        raise PolyditError(
            f"--{option} {root}: no layers there; give a folder with NAME_{ENDING}, as predict writes it, or "
            f"NAME/{ENDING}"
        )
    return found


def compare_stacks(predicted: Path, true: Path, merges: int = 5) -> list[dict[str, Any]]:
    """Score every true stack against the predicted one of its name.

    Args:
        predicted: folder.
        true: likewise.
        merges: up to how many adjacent layers may be merged, see :func:`stack_scores`.

    Returns:
        For each stack its ``name`` and ``scores``: ``rgb_l1``, ``alpha_iou``, ``cost`` and ``path`` with 0, 1, ...
        merges; where there is nothing left to merge, the last one counts on.

    Raises:
        PolyditError: a prediction is missing, or of another size, or a stack has no layers.
    """
    found, truth = stack_files(predicted, "input"), stack_files(true, "truth")
    if missing := sorted(set(truth) - set(found)):
        raise PolyditError(
            f"--input {predicted}: {len(missing)} of {len(truth)} true stacks have no prediction, such as "
            f"{missing[0]!r}; predict it, or take it out of --truth"
        )
    rows = []
    for name, file in truth.items():
        ours, theirs = read_layers(found[name]), read_layers(file)
        if (ours.width, ours.height) != (theirs.width, theirs.height):
            raise PolyditError(
                f"{found[name]}: is {ours.width}x{ours.height} and the true stack {theirs.width}x{theirs.height}; "
                "give stacks of one size"
            )
        stacks = [_layers(stack) for stack in (ours, theirs)]
        for path, stack in zip((found[name], file), stacks, strict=True):
            if not stack:
                raise PolyditError(f"{path}: has no visible layer; take the stack out")
        scores = stack_scores(*stacks, merges=merges)
        scores += [scores[-1]] * (merges + 1 - len(scores))
        rows.append(
            {
                "name": name,
                "scores": [
                    {"rgb_l1": s.rgb_l1, "alpha_iou": s.alpha_iou, "cost": s.cost, "path": s.path}
                    for s in scores
                ],
            }
        )
    return rows


def run(options: Namespace) -> int:
    """Print the table, and write it where asked to."""
    rows = compare_stacks(options.input, options.truth, options.merges)
    table = ResultsTable(["merges", "RGB L1", "alpha soft IoU", "cost"], f"{len(rows)} stacks of layers", 4)
    means = []
    for count in range(options.merges + 1):
        mean = {
            name: float(np.mean([row["scores"][count][name] for row in rows]))
            for name in ("rgb_l1", "alpha_iou", "cost")
        }
        means.append(mean)
        table.add(str(count), *mean.values())
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        settings = {"input": options.input, "truth": options.truth, "merges": options.merges}
        path = writer.json(options.output.name, {"settings": settings, "mean": means, "rows": rows})
        print(f"wrote {path}", file=sys.stderr)  # noqa: T201
    return 0


def _layers(stack: LayerStack) -> list[NDArray[np.float32]]:
    """(H, W, 4) in [0, 1] of what is visible, paper included, with opacity in the alpha; blend modes have no part."""
    layers = []
    for layer in stack.with_paper().layers:
        if layer.visible:
            canvas = layer.on_canvas(stack.width, stack.height).astype(np.float32) / 255
            canvas[..., 3] *= layer.opacity
            layers.append(canvas)
    return layers
