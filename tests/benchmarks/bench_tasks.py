"""Every task with the weights that come with it: seconds and peak memory at 256, 512 and 1024 pixels, a process each.

    python tests/benchmarks/bench_tasks.py [--quick] [--sizes 256 512 1024] [--only segmentation ...] [--output FILE]

One call of each pipeline as a user makes it, with the settings it has by default, on scikit-image's photograph of an
astronaut; ``seconds`` is the second call, after a small first one. ``peak`` is the most memory the process has held,
``loaded`` what it held before the call.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SIZES = (256, 512, 1024)
Scene = dict[str, Any]


def scene(side: int) -> Scene:
    """Picture, a mask in its middle, a depth and a second picture, all square; generators draw the same every time."""
    import torch
    from PIL import Image

    from polydit.core.data.samples import load_sample

    def square(name: str) -> np.ndarray:
        pixels = load_sample(name)
        least = min(pixels.shape[:2])
        picture = Image.fromarray(pixels[:least, :least]).resize((side, side), Image.Resampling.LANCZOS)
        return np.asarray(picture)

    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inside = (x / 0.5) ** 2 + (y / 0.7) ** 2 < 1
    return {
        "picture": square("astronaut"),
        "other": square("chelsea"),
        "mask": inside,
        "depth": (inside + 0.2 * y).astype(np.float32),
        "generator": torch.Generator().manual_seed(0),
        "side": side,
    }


def super_resolution(pipe: Any, given: Scene) -> Any:
    """x4, to the size that is named."""
    from PIL import Image

    small = Image.fromarray(given["picture"]).reduce(4)
    return pipe(small, generator=given["generator"])


def try_on(pipe: Any, given: Scene) -> Any:
    """Three quarters as wide as high."""
    width = given["side"] * 3 // 4
    person, garment, mask = (given[name][:, :width] for name in ("picture", "other", "mask"))
    return pipe(person, garment, mask, generator=given["generator"])


def inpaint(pipe: Any, given: Scene) -> Any:
    """Eight equal frames."""
    return pipe(np.stack([given["picture"]] * 8), np.stack([given["mask"]] * 8), generator=given["generator"])


def composite(pipe: Any, given: Scene) -> Any:
    """Eight equal frames, with the second picture in the mask."""
    layer = np.dstack([given["other"], given["mask"].astype(np.uint8) * 255])
    frames, layers = np.stack([given["picture"]] * 8), np.stack([layer] * 8)
    return pipe(frames, layers, list(layers), generator=given["generator"])


CALLS: dict[str, tuple[str, Callable[[Any, Scene], Any]]] = {
    "SuperResolutionPipeline": ("x4, to this size", super_resolution),
    "SegmentationPipeline": ("one mask", lambda pipe, s: pipe(s["picture"], generator=s["generator"])),
    "PDFNetPipeline": ("one mask, depth given", lambda pipe, s: pipe(s["picture"], s["depth"])),
    "FewShotPipeline": (
        "one mask, one support",
        lambda pipe, s: pipe(s["picture"], [s["other"]], [s["mask"]]),
    ),
    "VirtualTryOnPipeline": ("one garment, 3:4", try_on),
    "LayerDecompositionPipeline": (
        "background and foreground",
        lambda pipe, s: pipe(s["picture"], s["mask"].astype(np.uint8) * 255, generator=s["generator"]),
    ),
    "CompressionPipeline": ("coded and decoded, quality 5", lambda pipe, s: pipe(s["picture"])),
    "VideoCompressionPipeline": ("two frames", lambda pipe, s: pipe([s["picture"], s["picture"]])),
    "VideoInpaintingPipeline": ("eight frames", inpaint),
    "VideoCompositingPipeline": ("eight frames", composite),
    "TriplanePipeline": (
        "a chair, a cell for eight pixels",
        lambda pipe, s: pipe(category="chair", resolution=max(16, s["side"] // 8), generator=s["generator"]),
    ),
    "IllustrationLayersPipeline": (
        "four layers",
        lambda pipe, s: pipe(s["picture"], generator=s["generator"]),
    ),
}
"""Class of a pipeline -> what its call does here, and the call."""


def peak_mib() -> float:
    """The largest memory that this process has held; macOS counts bytes, others KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(folder: Path, side: int) -> dict[str, float]:
    """Load, call once small, call once in the size."""
    import polydit

    pipe = polydit.load(folder)
    pipe.set_progress_bar_config(disable=True)
    call = CALLS[type(pipe).__name__][1]
    call(pipe, scene(64))  # allocations and kernels of the libraries
    given, loaded = scene(side), peak_mib()
    start, processor = time.perf_counter(), time.process_time()
    call(pipe, given)
    spent = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    return {**spent, "peak": peak_mib(), "loaded": loaded}


def shipped() -> list[tuple[str, Path, str]]:
    """Task, folder and class of all weights in the package."""
    from polydit.core.load import read_index
    from polydit.core.task import find_tasks

    found = []
    for file in sorted((ROOT / "demos/weights").glob("*/model_index.json")):
        index = read_index(file.parent)
        found.append((index.task.name, file.parent, index.pipeline.rpartition(":")[2]))
    order = list(find_tasks()[0])
    return sorted(found, key=lambda row: order.index(row[0]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="128 pixels only")
    parser.add_argument("--sizes", type=int, nargs="+", help="sides in pixels; default 256 512 1024")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="these tasks only")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), int(options.one[1]))))
        return

    from rich.console import Console
    from rich.table import Table

    sizes = options.sizes or ([128] if options.quick else SIZES)
    table = Table(title=f"Tasks with their own weights, {len(os.sched_getaffinity(0))} cores"
                  if hasattr(os, "sched_getaffinity") else "Tasks with their own weights")  # fmt: skip
    for column in ("task", "weights", "what"):
        table.add_column(column)
    for column in ("pixels", "seconds", "processor s", "peak MiB", "loaded MiB"):
        table.add_column(column, justify="right")
    figures = []
    for task, folder, kind in shipped():
        if options.only and task not in options.only:
            continue
        if kind not in CALLS:
            sys.exit(f"bench_tasks: {folder.name} is a {kind}, which has no entry in CALLS; add one")
        for side in sizes:
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(folder), str(side)],
                env={"OMP_WAIT_POLICY": "passive", **os.environ},  # spinning threads would be counted as work
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"bench_tasks: {folder.name} at {side} failed:\n{done.stderr}")
            result = json.loads(done.stdout.splitlines()[-1])
            what = CALLS[kind][0]
            figures.append({"task": task, "weights": folder.name, "what": what, "side": side, **result})
            table.add_row(
                task,
                folder.name,
                what,
                f"{side}",
                f"{result['seconds']:.2f}",
                f"{result['processor']:.2f}",
                f"{result['peak']:.0f}",
                f"{result['loaded']:.0f}",
            )
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
