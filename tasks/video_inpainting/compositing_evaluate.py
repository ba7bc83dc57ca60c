"""What ``polydit video-inpainting evaluate`` measures of weights that put one video into another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core.data.composites import Compositor
from ...core.data.synthetic_clips import ClipOptions, SyntheticClips
from .compositing import Scene
from .compositing_data import CompositingSamples
from .compositing_pipeline import VideoCompositingPipeline

__all__ = ["compositing_scores"]


def compositing_scores(
    pipe: VideoCompositingPipeline,
    root: Path,
    count: int,
    size: int,
    split: str,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[dict[str, float]]]:
    """Put cut-outs of another brightness back into the clips that they are from, and compare with those.

    Args:
        pipe: weights that composite, in pixel space.
        root: a corpus.
        count: clips, each one window of the network long.
        size: side in pixels.
        split: of the corpus, ``val`` or ``reserved``.
        seed: of all draws and the noise.
        progress: called with the number of clips done.

    Returns:
        Rows by method, ``pasted`` (what the network starts from) and ``ours``: PSNR in dB inside of the inflated mask,
        and what the mean brightness there is off by, in levels.
    """
    form = pipe.formulation
    pictures = Compositor.from_corpus(root, split, size, allow_reserved=True)
    options = ClipOptions(frames=form.frames, objects=(1, 1))
    samples = CompositingSamples(
        SyntheticClips(pictures.photos, pictures.cutouts, size, options), count, seed, inflate=form.inflate
    )
    rows: dict[str, list[dict[str, float]]] = {"pasted": [], "ours": []}
    for number in range(count):
        batch = {name: value[None] for name, value in samples[number].items()}
        clean = (batch["clean"] + 1) / 2
        scene = Scene(
            clean * (1 - batch["mask"]), batch["mask"], (batch["foreground"] + 1) / 2, batch["guess"]
        )
        made = pipe.make(scene, generator=torch.Generator().manual_seed(seed))
        for name, clip in (("pasted", batch["guess"]), ("ours", made)):
            rows[name].append(_figures(clip, clean, batch["mask"]))
        progress(number + 1)
    return rows


def _figures(made: Tensor, clean: Tensor, mask: Tensor) -> dict[str, float]:
    area = (mask > 0).expand_as(clean)
    error = (made - clean)[area].double()
    return {
        "hole_psnr": float(min(100.0, -10 * np.log10(max(float((error**2).mean()), 1e-10)))),
        "brightness": float(error.mean().abs() * 255),
    }
