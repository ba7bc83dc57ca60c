"""Super-resolution x4: seconds and peak memory against the input's size, x1 to x16 pixels, a process each.

    python tests/benchmarks/bench_super_resolution.py [--quick] [--weights FOLDER] [--base 128] [--tile 1024]

The picture leaves the pipeline in strips, as ``predict`` writes it: memory grows up to one row of tiles, then only with
the width, and the cost per pixel stays what it is. ``relative`` is that cost in processor seconds against
the first line. Without trained weights a random model of the same size is measured: the cost is the same.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GROWTH = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 4))


def pipeline(weights: Path):
    """The trained pipeline, or a random one as ``configs/super_resolution/small.yaml`` describes it."""
    if (weights / "model_index.json").is_file():
        import polydit

        return polydit.load(weights)
    from diffusers import FlowMatchEulerDiscreteScheduler

    from polydit.core.conditioning import StreamDiT
    from polydit.tasks.super_resolution.pipeline import SuperResolutionPipeline

    transformer = StreamDiT(
        input_size=96, patch_size=4, in_channels=3, condition_channels=6, hidden_size=64, depth=5, num_heads=2,
        mlp_ratio=2.0, num_classes=3, class_dropout_prob=0.0, norm="none", position="rope", qk_norm="rms",
        modulation="adaln_single", conv_kernel=3, window_size=8, gate_init=0.5, stream_init="identity",
    )  # fmt: skip
    formulation = {"residual_scale": 0.2, "scales": (2, 3, 4), "signal_gain": True}
    return SuperResolutionPipeline(
        transformer.eval(), FlowMatchEulerDiscreteScheduler(), formulation=formulation
    )


def peak_mib() -> float:
    """The largest memory that this process has held; macOS counts bytes, others KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(weights: Path, height: int, width: int, tile: int) -> dict[str, float]:
    """Enlarge one random picture by four and throw the rows away."""
    import torch

    pipe = pipeline(weights)
    small = torch.zeros(1, 3, 32, 32)
    list(pipe.strips(small))  # first call: allocations and kernels of the libraries
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, 3, height, width, generator=generator) * 2 - 1
    before, rows = peak_mib(), 0
    start, processor = time.perf_counter(), time.process_time()
    for strip in pipe.strips(low, generator=generator, tile=tile):
        rows += strip.shape[-2]
    spent = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    assert rows == 4 * height
    return {**spent, "peak": peak_mib(), "before": before}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a base of 48 pixels")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--base", type=int, default=None, help="side of the smallest input")
    parser.add_argument("--tile", type=int, default=None, help="side of a tile in output pixels")
    parser.add_argument("--one", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    from polydit.tasks.super_resolution import TASK

    weights = options.weights or ROOT / TASK.default_weights
    if options.one:
        print(json.dumps(measure(weights, *options.one, options.tile)))
        return

    from rich.console import Console
    from rich.table import Table

    if options.tile is None:
        from polydit.tasks.super_resolution.pipeline import SuperResolutionPipeline

        options.tile = inspect.signature(SuperResolutionPipeline.strips).parameters["tile"].default
    base = options.base or (48 if options.quick else 128)
    trained = (weights / "model_index.json").is_file()
    name = weights.name if trained else "random weights"
    table = Table(title=f"Super-resolution x4, one step, tiles of {options.tile} output pixels, {name}")
    columns = ("seconds", "processor s", "processor us / output pixel", "relative", "peak MiB", "before MiB")
    for column in ("input", "pixels", *columns):
        table.add_column(column, justify="right")
    first = None
    for down, across in GROWTH:
        height, width = down * base, across * base
        arguments = ["--weights", weights, "--tile", options.tile, "--one", height, width]
        done = subprocess.run(
            [sys.executable, __file__, *map(str, arguments)],
            env={"OMP_WAIT_POLICY": "passive", **os.environ},  # spinning threads would be counted as work
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"bench_super_resolution: {height}x{width} failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        cost = result["processor"] / (16 * height * width)
        first = first or cost
        table.add_row(
            f"{width}x{height}",
            f"x{down * across}",
            f"{result['seconds']:.2f}",
            f"{result['processor']:.2f}",
            f"{1e6 * cost:.2f}",
            f"{cost / first:.2f}",
            f"{result['peak']:.0f}",
            f"{result['before']:.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
