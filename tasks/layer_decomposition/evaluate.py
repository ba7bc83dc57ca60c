"""``polydit layer-decomposition evaluate``: held-out composites with shadows, beside biharmonic inpainting."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.alpha import recompose
from ...core.data.composites import Compositor
from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media import OutputWriter, ResultsTable, contact_sheet, on_checkerboard
from ...core.open_pipeline import choose_weights, open_pipeline
from . import TASK
from .data import composite_options
from .metrics import alpha_error, alpha_sad, region_psnr, soft_iou
from .pipeline import LayerDecompositionPipeline
from .shadows import ShadowOptions, with_effects

__all__ = ["Scene", "biharmonic", "evaluate", "measure", "run", "scenes"]

HIDDEN = 0.02
"""Where the true alpha is above this, the background is hidden or shaded, and it is measured there."""

EFFECTS = {
    "shadow": ShadowOptions(shadow=1.0),
    "reflection": ShadowOptions(shadow=0.0, contact=0.0, reflection=1.0),
}
"""What every object has, by the name on the command line."""

COLUMNS = {
    "recomposition": "recomposition dB",
    "background": "background dB",
    "biharmonic": "biharmonic dB",
    "biharmonic_mask": "biharmonic, mask only dB",
    "iou": "alpha soft IoU",
    "mask_iou": "soft IoU of the mask",
    "mae": "alpha MAE",
    "sad": "alpha SAD",
}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scene:
    """A composite whose layers are known.

    Attributes:
        image: (H, W, 3).
        mask: (H, W), 0 or 255: the object's own alpha above one half; shadow and reflection are not in it.
        background: (H, W, 3), the true one.
        alpha: (H, W) in [0, 1] of the object with its shadow and reflection.
    """

    image: Pixels
    mask: Pixels
    background: Pixels
    alpha: NDArray[np.float32]


def scenes(
    root: Path, count: int, side: int, seed: int, split: str = "reserved", effects: str = "shadow"
) -> Iterator[Scene]:
    """Composites with shadows of a corpus' reserved cut-outs over its reserved photographs, always the same.

    With ``effects="reflection"`` every object has a reflection instead.
    """
    options = composite_options(color=0.0, background_blur=0.0)
    compositor = Compositor.from_corpus(root, split, side, options, allow_reserved=True, cache_megabytes=400)
    shadows = EFFECTS[effects]
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        photo = compositor.photos[rng.integers(len(compositor.photos))]
        background = np.array(compositor.background(photo, rng))
        cutout = torch.from_numpy(compositor.layer(rng)[0]).permute(2, 0, 1).float() / 255
        foreground, _ = with_effects(cutout, rng, shadows)
        image = recompose(torch.from_numpy(background).permute(2, 0, 1).float() / 255, foreground)
        yield Scene(
            (image * 255).round().byte().permute(1, 2, 0).numpy(),
            ((cutout[3] > 0.5).byte() * 255).numpy(),
            background,
            foreground[3].numpy(),
        )


def biharmonic(image: Pixels, region: NDArray[np.bool_]) -> Pixels:
    """scikit-image's biharmonic inpainting of a region (H, W)."""
    from skimage.restoration import inpaint_biharmonic

    filled = inpaint_biharmonic(image.astype(np.float64) / 255, region, channel_axis=-1)
    return (filled * 255).round().clip(0, 255).astype(np.uint8)


def measure(scene: Scene, background: Pixels, foreground: Pixels, composite: Pixels) -> dict[str, float]:
    """Figures of one decomposition, and of the baselines for the same picture.

    ``biharmonic`` is told the whole true region, shadow and reflection included; ``biharmonic_mask`` what the
    network is told, the object's mask.
    """
    hidden = scene.alpha > HIDDEN
    alpha = foreground[..., 3].astype(np.float32) / 255
    everything = np.ones_like(hidden)
    return {
        "recomposition": min(region_psnr(composite, scene.image, everything), 99.0),
        "background": region_psnr(background, scene.background, hidden),
        "biharmonic": region_psnr(biharmonic(scene.image, hidden), scene.background, hidden),
        "biharmonic_mask": region_psnr(biharmonic(scene.image, scene.mask > 0), scene.background, hidden),
        "iou": soft_iou(alpha, scene.alpha),
        "mask_iou": soft_iou(scene.mask.astype(np.float32) / 255, scene.alpha),
        "mae": alpha_error(alpha, scene.alpha),
        "sad": alpha_sad(alpha, scene.alpha),
    }


def evaluate(
    pipe: LayerDecompositionPipeline,
    root: Path,
    count: int = 60,
    side: int = 128,
    seed: int = 0,
    steps: int = 1,
    split: str = "reserved",
    effects: str = "shadow",
    sheet: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, float]], list[list[Pixels]]]:
    """Decompose held-out composites.

    Args:
        pipe: the pipeline.
        root: a corpus.
        count: composites.
        side: of them, in pixels.
        seed: of composites and noise.
        steps: denoising steps.
        split: of the corpus.
        effects: what objects have, in :data:`EFFECTS`.
        sheet: show the first so many.
        progress: called with (done, all).

    Returns:
        The figures of each, and rows of pictures: composite, background, foreground, true background and biharmonic.
    """
    rows, shown = [], []
    for number, scene in enumerate(scenes(root, count, side, seed, split, effects)):
        begin = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        made = pipe(scene.image, scene.mask, num_inference_steps=steps, generator=generator)
        seconds = time.perf_counter() - begin
        figures = measure(scene, made.background, made.foreground, made.composite)
        rows.append({**figures, "seconds": seconds})
        if number < sheet:
            inpainted = biharmonic(scene.image, scene.alpha > HIDDEN)
            front = on_checkerboard(made.foreground)
            shown.append([scene.image, front, made.background, scene.background, inpainted])
        if progress is not None:
            progress(number + 1, count)
    return rows, shown


def run(options: Namespace) -> int:
    """Print the table of an evaluation, and write it where asked to.

    Raises:
        PolyditError: no corpus, no weights, an output that exists, or weights of another system.
    """
    if options.input is None:
        raise PolyditError("--input: required; give a corpus made by `polydit corpus build`")
    for name in ("output", "sheet"):
        path: Path | None = getattr(options, name)
        if path is not None and path.exists() and not options.overwrite:
            raise PolyditError(f"--{name} {path}: exists already; pass --overwrite or choose another name")
        if path is not None and path.is_dir():
            raise PolyditError(f"--{name} {path}: is a folder; give the name of a file")
    if options.truth is not None:
        for name in ("weights", "sheet"):
            if (given := getattr(options, name)) is not None:
                raise PolyditError(
                    f"--{name} {given}: no network is run with --truth, which compares folders; leave it out"
                )
        from .stack_evaluate import run as compare

        return compare(options)
    check_device_name(options.device)
    settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
    settings["weights"] = choose_weights(TASK, options.weights)
    options.cache = "none"
    pipe = open_pipeline(TASK, settings["weights"], options, settings, say)
    if type(pipe).__name__ == "IllustrationLayersPipeline":
        from .illustration_evaluate import report

        return report(pipe, options, settings)
    if type(pipe).__name__ == "PixelStackPipeline":
        from .pixel_stack_evaluate import report as report_stacks

        return report_stacks(pipe, options, settings)
    if not isinstance(pipe, LayerDecompositionPipeline):
        raise PolyditError(f"--weights: a {type(pipe).__name__} takes no mask; evaluate is for LayerDecomp's")
    rows, shown = evaluate(
        pipe,
        options.input,
        options.count,
        options.side,
        options.seed,
        options.steps,
        effects=options.effects,
        sheet=6 if options.sheet else 0,
    )
    means = {name: float(np.mean([row[name] for row in rows])) for name in [*COLUMNS, "seconds"]}
    table = ResultsTable(["", "mean", "median"], f"{len(rows)} composites of {options.side} pixels", 3)
    for name, title in COLUMNS.items():
        values = [row[name] for row in rows]
        table.add(title, float(np.mean(values)), float(np.median(values)))
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    print(f"background over biharmonic: {means['background'] - means['biharmonic']:+.2f} dB")  # noqa: T201
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        say(f"wrote {writer.json(options.output.name, {'settings': settings, 'mean': means, 'rows': rows})}")
    if options.sheet is not None:
        writer = OutputWriter(options.sheet.parent, overwrite=options.overwrite)
        titles = ["picture", "foreground", "background", "true background", "biharmonic"]
        cells = [(title, cell) for row in shown for title, cell in zip(titles, row, strict=True)]
        say(f"wrote {writer.image(options.sheet.name, contact_sheet(cells, len(titles), cell=options.side))}")
    return 0


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
