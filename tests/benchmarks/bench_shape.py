"""DiT-3D and Direct3D: seconds and memory of sampling, windows against global attention, a training step, metrics.

    python tests/benchmarks/bench_shape.py [--quick] [--threads 1]

Models are random: the cost is the same. Sampling is that of one cloud by DiT-3D S/4 in 50 steps, each line in a process
of its own. ``ratio`` is the time of the first line of its group over that of the line.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from polydit.core.autoencoders.triplane import TriplaneVAE
from polydit.core.backbones.dit_3d import DiT3D
from polydit.core.geometry.surfaces import grid_points
from polydit.core.metrics.point_sets import chamfer_distance, earth_mover_distance


def peak_mib() -> float:
    """The largest memory that this process has held; macOS counts bytes, others KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Least processor seconds of some calls, after one that warms up."""
    call()
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        call()
        best = min(best, time.process_time() - begin)
    return best


def network(voxels: int, patch: int, window: int | None, depth: int) -> DiT3D:
    """Width 192, every third block with windows if there are some."""
    return DiT3D(
        input_size=voxels, patch_size=patch, hidden_size=192, depth=depth, num_heads=3, window_size=window,
        window_blocks=None if window is None else list(range(depth)),
    ).eval()  # fmt: skip


def sample(voxels: int, points: int, steps: int, quick: bool) -> None:
    """One cloud by the pipeline; prints its seconds and the process's memory."""
    from polydit.core.diffusion import Objective, make_scheduler
    from polydit.tasks.shape_3d.cloud_pipeline import PointCloudPipeline

    width, depth = (96, 1) if quick else (384, 12)
    model = DiT3D(input_size=voxels, patch_size=4, hidden_size=width, depth=depth, num_heads=width // 64 or 1)
    objective = Objective()
    pipe = PointCloudPipeline(
        model.eval(),
        make_scheduler("euler", objective),
        formulation={"categories": ["chair"], "guidance_scale": 1.0},
        parameterization=objective.config(),
    )

    def run(steps: int) -> object:
        return pipe("chair", num_points=points, steps=steps, generator=torch.Generator().manual_seed(0))

    run(1)
    begin = time.process_time()
    run(steps)
    print(json.dumps([time.process_time() - begin, peak_mib()]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sample", type=int, nargs=2, metavar=("VOXELS", "POINTS"), help="this line only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.sample:
        sample(*options.sample, 2 if options.quick else 50, options.quick)
        return
    rounds, depth = (1, 1) if options.quick else (3, 3)
    table = Table("what", "CPU s", "ratio", "peak MiB")

    def group(rows: list[tuple[str, Callable[[], object]]]) -> None:
        first = None
        for name, call in rows:
            spent = seconds(call, rounds)
            first = spent if first is None else first
            table.add_row(name, f"{spent:.4f}", f"{first / spent:.2f}", f"{peak_mib():.0f}")

    def sampling(rows: list[tuple[int, int]]) -> None:
        first = None
        for voxels, points in rows:
            words = [
                sys.executable,
                __file__,
                "--threads",
                str(options.threads),
                *["--quick"] * options.quick,
            ]
            words += ["--sample", str(voxels), str(points)]
            spent, memory = json.loads(
                subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            first = spent if first is None else first
            name = f"DiT-3D S/4 sampling, {voxels}^3 voxels, {points} points"
            table.add_row(name, f"{spent:.2f}", f"{first / spent:.2f}", f"{memory:.0f}")

    sampling([(v, 2048) for v in ((16, 32) if options.quick else (16, 24, 32))])
    sampling([(32, n) for n in ((512, 2048) if options.quick else (512, 2048, 8192))])
    t, label = torch.tensor([5.0]), torch.tensor([0])

    def forward(model: DiT3D, points: int) -> Callable[[], object]:
        cloud = torch.randn(1, 3, points)

        def call() -> object:
            with torch.no_grad():
                return model(cloud, t, label).sample

        return call

    fine, patch = (16, 2) if options.quick else (32, 2)
    group(
        [
            (
                f"all blocks global, {(fine // patch) ** 3} tokens",
                forward(network(fine, patch, None, depth), 2048),
            ),
            (
                f"all blocks in windows of 4^3, {(fine // patch) ** 3} tokens",
                forward(network(fine, patch, 4, depth), 2048),
            ),
        ]
    )

    trained = network(16 if options.quick else 24, 4, None, depth).train()
    cloud = torch.randn(4, 3, 1024)

    def step() -> None:
        trained.zero_grad()
        trained(cloud, t.repeat(4), label.repeat(4)).sample.square().mean().backward()

    group([("DiT-3D training step, 4 clouds of 1024 points", step)])

    codec = TriplaneVAE(
        resolution=8, latent_channels=8, plane_channels=16, frequencies=6, num_heads=2, head_dim=48, num_layers=3,
        block_out_channels=[32, 48, 64], decoder_layers=1, norm_groups=8, head_layers=4,
    ).eval()  # fmt: skip
    corners = torch.from_numpy(grid_points(24 if options.quick else 64)).float()[None]

    def decode() -> object:
        with torch.no_grad():
            return codec.query(codec.decode(torch.zeros(1, *codec.latent_shape)), corners)

    group([(f"triplane to {corners.shape[1]:,} logits", decode)])

    generator = np.random.default_rng(0)
    for points in (256, 512) if options.quick else (512, 1024, 2048):
        a, b = generator.normal(size=(2, points, 3))
        group(
            [
                (
                    f"exact earth mover's distance, {points} points",
                    lambda a=a, b=b: earth_mover_distance(a, b),
                ),
                (f"Chamfer distance, {points} points", lambda a=a, b=b: chamfer_distance(a, b)),
            ]
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
