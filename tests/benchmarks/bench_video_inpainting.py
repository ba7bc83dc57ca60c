"""Inpainting of a clip: CPU seconds per frame against resolution, length and steps, with and without a feature cache.

    python tests/benchmarks/bench_video_inpainting.py [--weights FOLDER] [--quick] [--output FILE]

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


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
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
