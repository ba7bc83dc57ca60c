"""``polydit video-inpainting evaluate``: held-out synthetic clips, or a data set by ProPainter's protocol."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.data.clips import Clip
from ...core.data.composites import Compositor
from ...core.data.masks import dilate
from ...core.data.synthetic_clips import ClipOptions, SyntheticClips
from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media import OutputWriter, ResultsTable, contact_sheet
from ...core.metrics.video import frame_psnr, frame_ssim, optical_flow, warping_error
from ...core.open_pipeline import choose_weights, open_pipeline
from ...core.task import resolve
from . import TASK
from .baselines import BASELINES
from .layouts import find_clips, protocol_masks
from .moving_masks import moving_masks
from .pipeline import VideoInpaintingPipeline
from .predict import COMPOSITOR
from .propagation import propagate

__all__ = ["Case", "evaluate", "hole_psnr", "run", "synthetic_cases"]

Frames = NDArray[np.uint8]
Masks = NDArray[np.bool_]
Method = Callable[[Frames, Masks], Frames]


@dataclass(frozen=True, eq=False)
class Case:
    """A clip whose truth is known.

    Attributes:
        name: for tables.
        frames: (T, H, W, 3), given.
        masks: (T, H, W).
        truth: (T, H, W, 3).
    """

    name: str
    frames: Frames
    masks: Masks
    truth: Frames


@dataclass
class Scores:
    """Figures of one method by clip, and seconds per frame."""

    rows: list[dict[str, float]] = field(default_factory=list)
    clips: list[Frames] = field(default_factory=list)

    def mean(self) -> dict[str, float]:
        """Means over clips."""
        return {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}


def synthetic_cases(
    root: Path, count: int, frames: int, size: int, split: str, seed: int, kind: str = "both"
) -> Iterator[Case]:
    """Synthetic clips that training never drew, always the same: objects to be removed and wandering shapes.

    Args:
        root: a corpus.
        count: clips.
        frames: of each.
        size: side in pixels.
        split: of the corpus, ``val`` or ``reserved``.
        seed: of all draws.
        kind: of the masks: ``objects``, ``shapes`` or ``both`` in turn.
    """
    pictures = Compositor.from_corpus(root, split, size, allow_reserved=True)
    options = ClipOptions(frames=frames, objects=(1, 2))
    clips = SyntheticClips(pictures.photos, pictures.cutouts, size, options)
    number = -1
    made = 0
    while made < count:
        number += 1
        rng = np.random.default_rng((seed, number))
        clip = clips(rng)
        objects = kind == "objects" or (kind == "both" and made % 2 == 0)
        if objects:
            masks, truth = dilate(clip.masks, 1, "square"), clip.background
            if not 0.005 < masks.mean() < 0.35:
                continue
        else:
            masks, truth = moving_masks(frames, (size, size), rng), clip.frames
        yield Case(f"{'object' if objects else 'shape'} {number}", clip.frames, masks, truth)
        made += 1


def dataset_cases(root: Path, layout: str, split: str, count: int | None, seed: int) -> Iterator[Case]:
    """Clips of a data set with its test masks, dilated as the protocol has it, or wandering shapes without any."""
    for number, clip in enumerate(find_clips(root, layout, split)[:count]):
        reader = Clip(clip.frames)
        frames = reader.get(list(range(len(reader))))
        rng = np.random.default_rng((seed, number))
        masks = (
            moving_masks(len(frames), frames.shape[1:3], rng)
            if clip.masks is None
            else protocol_masks(clip.masks)
        )
        if masks.shape != frames.shape[:3]:
            raise PolyditError(
                f"{clip.masks}: masks {masks.shape} and frames {frames.shape[:3]}; there is one for each, of its size"
            )
        yield Case(clip.name, frames, masks, frames)
        reader.close()


def hole_psnr(made: Frames, truth: Frames, masks: Masks) -> float:
    """PSNR of all masked pixels of a clip together, in dB, at most 100."""
    error = np.square(made[masks].astype(np.float64) - truth[masks]).mean()
    return float(min(100.0, 10 * np.log10(255**2 / max(error, 1e-9))))


class FlowOnce:
    """scikit-image's flow, kept: every method's figures ask for that of the same true frames."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], NDArray[np.float32]] = {}

    def __call__(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        """Where each pixel of a frame goes in the next one."""
        key = (hash(first.tobytes()), hash(second.tobytes()))
        if key not in self.known:
            self.known[key] = optical_flow(first, second)
        return self.known[key]


def measure(case: Case, made: Frames, flow: FlowOnce | None = None) -> dict[str, float]:
    """Figures of one clip; outside of the masks the given frames are put back first, as the protocol does."""
    made = np.where(case.masks[..., None], made, case.frames)
    truth = np.where(case.masks[..., None], case.truth, case.frames)
    side = min(truth.shape[1:3])
    return {
        "hole_psnr": hole_psnr(made, truth, case.masks),
        "psnr": float(frame_psnr(made, truth).mean()),
        "ssim65": float(frame_ssim(made, truth, "uniform65").mean()) if side >= 65 else float("nan"),
        "ewarp": 1000 * warping_error(made, truth, flow or FlowOnce()),
    }


def evaluate(
    methods: dict[str, Method],
    cases: Iterator[Case],
    progress: Callable[[int], None] | None = None,
    keep: bool = False,
    sheet: int = 0,
) -> tuple[dict[str, Scores], list[Frames], list[list[Frames]]]:
    """Run every method on every clip.

    Args:
        methods: by name.
        cases: the clips.
        progress: called with the number of clips done.
        keep: keep what was made, for distances between sets.
        sheet: show the middle frame of the first so many clips.

    Returns:
        Scores by method, the true clips if they are kept, and rows of pictures: given, each method, true.
    """
    found = {name: Scores() for name in methods}
    truths: list[Frames] = []
    shown: list[list[Frames]] = []
    for number, case in enumerate(cases):
        middle = len(case.frames) // 2
        veiled = np.where(case.masks[middle][..., None], 255 - case.frames[middle] // 3, case.frames[middle])
        row, flow = [veiled.astype(np.uint8)], FlowOnce()
        for name, method in methods.items():
            begin = time.process_time()
            made = method(case.frames, case.masks)
            seconds = (time.process_time() - begin) / len(case.frames)
            found[name].rows.append({**measure(case, made, flow), "seconds": seconds})
            if keep:
                found[name].clips.append(np.where(case.masks[..., None], made, case.frames))
            row.append(made[middle])
        if keep:
            truths.append(np.where(case.masks[..., None], case.truth, case.frames))
        if number < sheet:
            shown.append([*row, case.truth[middle]])
        if progress is not None:
            progress(number + 1)
    if not found or not next(iter(found.values())).rows:
        raise PolyditError("--input: no clip was found to measure")
    return found, truths, shown


def fill_only(frames: Frames, masks: Masks) -> Frames:
    """What the small model starts from, without the network."""
    video = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
    filled = propagate(video, torch.from_numpy(masks.copy())[:, None]).frames
    made: Frames = (filled * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return made


def run(options: Namespace) -> int:
    """Print the table of an evaluation, and write it where asked to.

    Raises:
        PolyditError: no data, no weights, an output that exists, or weights of another system.
    """
    for name in ("output", "sheet"):
        path: Path | None = getattr(options, name)
        if path is not None and path.exists() and not options.overwrite:
            raise PolyditError(f"--{name} {path}: exists already; pass --overwrite or choose another name")
    check_device_name(options.device)
    settings: dict[str, Any] = {k: v for k, v in vars(options).items() if k not in ("debug", "overwrite")}
    methods: dict[str, Method] = {}
    if not options.baselines_only:
        settings["weights"] = choose_weights(TASK, options.weights)
        options.cache = "none"
        pipe = open_pipeline(TASK, settings["weights"], options, settings, say)
        if type(pipe).__name__ == COMPOSITOR:
            return _run_compositing(pipe, options, settings)
        if not isinstance(pipe, VideoInpaintingPipeline):
            raise PolyditError(f"--weights: a {type(pipe).__name__} does not inpaint; give other weights")
        methods["ours"] = lambda frames, masks: pipe(
            frames,
            masks,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(options.seed),
            windows=options.windows,
        )
    if options.peers:
        methods |= {"fill without the network": fill_only, **BASELINES}
    if not methods:
        raise PolyditError("--baselines-only: without --peers there is nothing to measure")
    if options.input is not None:
        cases, about = (
            dataset_cases(options.input, options.layout, options.split, options.clips, options.seed),
            (f"{options.input}, masks of the data set grown by 4 as in ProPainter's protocol"),
        )
    else:
        split = _corpus_split(options)
        cases = synthetic_cases(
            options.corpus,
            options.clips or 24,
            options.frames,
            options.size,
            split,
            options.seed,
            options.masks,
        )
        sizes = f"{options.frames} frames, {options.size} pixels, seed {options.seed}"
        about = f"{options.clips or 24} {split} clips of {sizes}"
    found, truths, shown = evaluate(
        methods,
        cases,
        lambda done: say(f"{done} clips"),
        options.vfid_weights is not None,
        6 if options.sheet else 0,
    )
    columns = {
        "hole_psnr": "PSNR in the mask",
        "psnr": "PSNR",
        "ssim65": "SSIM (65)",
        "ewarp": "E_warp x 1000",
    }
    titles = ["", *columns.values(), "s / frame"]
    means = {name: scores.mean() for name, scores in found.items()}
    if options.vfid_weights is not None:
        from ...core.metrics.i3d import I3DFeatures, vfid

        network = I3DFeatures(options.vfid_weights)
        titles.append("VFID")
        for name, scores in found.items():
            means[name]["vfid"] = vfid(network, scores.clips, truths)
    table = ResultsTable(titles, about, 3)
    for name, mean in means.items():
        table.add(name, *(mean[key] for key in (*columns, "seconds", *(("vfid",) if "vfid" in mean else ()))))
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        rows = {name: scores.rows for name, scores in found.items()}
        content = {"settings": settings, "about": about, "mean": means, "rows": rows}
        say(f"wrote {writer.json(options.output.name, content)}")
    if options.sheet is not None:
        writer = OutputWriter(options.sheet.parent, overwrite=options.overwrite)
        names = ["given", *methods, "true"]
        cells = [(title, cell) for row in shown for title, cell in zip(names, row, strict=True)]
        say(f"wrote {writer.image(options.sheet.name, contact_sheet(cells, len(names), cell=options.size))}")
    return 0


def _run_compositing(pipe: Any, options: Namespace, settings: dict[str, Any]) -> int:
    """Weights that put one video into another are measured against the video as it was pasted."""
    for name in ("input", "vfid_weights", "sheet"):
        if getattr(options, name) is not None:
            raise PolyditError(f"--{name.replace('_', '-')}: is for weights that inpaint; leave it out")
    split = _corpus_split(options)
    count = options.clips or 24
    rows = resolve(f"{__name__.rpartition('.')[0]}.compositing_evaluate:compositing_scores")(
        pipe, options.corpus, count, options.size, split, options.seed, lambda done: say(f"{done} clips")
    )
    frames = pipe.formulation.frames
    about = f"{count} {split} clips of {frames} frames, {options.size} pixels, seed {options.seed}"
    table = ResultsTable(["", "PSNR in the mask", "brightness off by"], about, 3)
    means = {
        name: {key: float(np.mean([row[key] for row in of])) for key in of[0]} for name, of in rows.items()
    }
    for name, mean in means.items():
        table.add(name, mean["hole_psnr"], mean["brightness"])
    print(f"{table.title}\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if options.output is not None:
        writer = OutputWriter(options.output.parent, overwrite=options.overwrite)
        content = {"settings": settings, "about": about, "mean": means, "rows": rows}
        say(f"wrote {writer.json(options.output.name, content)}")
    return 0


def _corpus_split(options: Namespace) -> str:
    """The split that is measured on.

    Raises:
        PolyditError: there is no corpus.
    """
    if not (options.corpus / "manifest.jsonl").is_file():
        raise PolyditError(
            f"--corpus {options.corpus}: no corpus is here; make one with `polydit corpus build`, or give --input"
        )
    return "reserved" if options.split == "val" and not options.validation else "val"


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
