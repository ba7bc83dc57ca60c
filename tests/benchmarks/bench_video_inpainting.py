"""Inpainting of a clip: CPU seconds per frame against resolution, length and steps, with and without a feature cache.

    python tests/benchmarks/bench_video_inpainting.py [--weights FOLDER] [--quick] [--output FILE]
    python tests/benchmarks/bench_video_inpainting.py --length 2000      # memory of `predict` over a long file

A square wanders over a panning texture and covers about a twentieth of each frame; ``peak`` is the most memory that the
process has held so far. Without weights an untrained network of the shipped configuration runs, which is as quick.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]


def clip(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames and masks."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 9, 16), np.float32))
    scene = torch.nn.functional.interpolate(coarse, (height + 64, width + 160), mode="bicubic")[0].clamp(0, 1)
    pixels = (scene.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    pixels = (pixels // 2 + rng.integers(0, 40, (*pixels.shape[:2], 1), dtype=np.uint8)).astype(np.uint8)
    given, masks = [], []
    for number in range(frames):
        left = number % 150
        frame = pixels[32 : 32 + height, left : left + width].copy()
        mask = np.zeros((height, width), bool)
        side = int((0.05 * height * width) ** 0.5)
        at = (3 * number) % (width - side)
        mask[height // 3 : height // 3 + side, at : at + side] = True
        frame[mask] = 255
        given.append(frame)
        masks.append(mask)
    return np.stack(given), np.stack(masks)


def pipeline(weights: Path | None):
    """The weights, or an untrained network of the shipped configuration."""
    if weights is not None:
        import polydit

        return polydit.load(weights)
    import yaml

    from polydit.core.backbones import DiT
    from polydit.core.diffusion import Objective
    from polydit.tasks.video_inpainting.pipeline import VideoInpaintingPipeline

    config = yaml.safe_load((ROOT / "configs/video_inpainting/small.yaml").read_text())["model"]["init_args"]
    return VideoInpaintingPipeline(
        DiT(**config["backbone"]["init_args"]).eval(),
        formulation=config["formulation"],
        parameterization=Objective(prediction="x0").config(),
    )


def resident() -> float:
    """Megabytes that the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def memory_over(length: int, weights: Path | None, every: int = 250) -> list[tuple[int, float]]:
    """What ``predict`` holds while it goes through a file of so many frames of 96 x 64: (frames done, MB)."""
    import tempfile
    from fractions import Fraction

    from polydit.core.media import OutputWriter
    from polydit.core.media.video import video_output
    from polydit.core.predict import predict_parser, run_one
    from polydit.tasks.video_inpainting import TASK

    found: list[tuple[int, float]] = []

    def show(done: int, total: int) -> None:
        if done % every == 0:
            found.append((done, resident()))
            print(f"| {done} | {found[-1][1]:.0f} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        writer = OutputWriter(Path(folder), overwrite=True)
        frames, _ = clip(150, 64, 96)
        with video_output(writer, "long.mp4", 96, 64, Fraction(25)) as video:
            for number in range(length):
                video.write(frames[number % 150], Fraction(number, 25))
        (Path(folder) / "box.csv").write_text("frame,x,y,w,h\n0,10,20,16,16\n")
        words = f"--input {folder}/long.mp4 --mask {folder}/box.csv --output {folder}/out --overwrite"
        options = predict_parser(TASK).parse_args(words.split())
        options.progress = show
        print("| frames done | MB |")
        print("| --- | --- |")
        run_one(
            TASK, pipeline(weights), Path(folder) / "long.mp4", OutputWriter(Path(folder) / "out"), options
        )
    return found


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--length", type=int)
    options = parser.parse_args()
    if options.length is not None:
        found = memory_over(options.length, options.weights)
        if options.output is not None:
            options.output.write_text(json.dumps(found, indent=1))
        return
    from polydit.core.acceleration import FORA, accelerate

    cases = [(16, 128, 128, 1, ""), (16, 128, 128, 4, ""), (16, 128, 128, 4, "fora")]
    if not options.quick:
        cases += [
            (32, 288, 512, 1, ""),
            (120, 288, 512, 1, ""),
            (240, 288, 512, 1, ""),
            (32, 480, 854, 1, ""),
        ]
    rows = []
    print("| frames | size | steps | cache | CPU s / frame | s / frame | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for frames, height, width, steps, cache in cases:
        pipe = pipeline(options.weights)
        if cache:
            accelerate(pipe, FORA(interval=2), strict=True)
        given, masks = clip(frames, height, width)
        begin, wall = time.process_time(), time.perf_counter()
        pipe(given, masks, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
        cpu, wall = time.process_time() - begin, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append([frames, f"{width}x{height}", steps, cache or "none", cpu / frames, wall / frames, peak])
        print(
            "| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in rows[-1]) + " |",
            flush=True,
        )
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
