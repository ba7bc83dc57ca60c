"""The generative decoder of the compression task: what texture it brings back, and what it costs in PSNR.

    python tests/benchmarks/bench_enhancer.py [--input DIR] [--count 10] [--limit-side 512] [--weights DIR] [--quick]

Each picture is coded at each quality and decoded with ``--fidelity`` 1, 0.5 and 0. ``texture`` is the difference to
the picture in the local energy of four orientations at three scales (0 is none; the enhancer was trained on it, among
other things).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import polydit
from polydit.core.data.images import list_images
from polydit.core.data.samples import load_sample
from polydit.core.media.table import ResultsTable
from polydit.core.metrics.psnr import psnr
from polydit.tasks.compression.losses import texture_loss

ROOT = Path(__file__).resolve().parents[2]
FIDELITIES = (1.0, 0.5, 0.0)


def pictures(folder: Path, count: int, side: int) -> list[np.ndarray]:
    """Every n-th picture of a folder, reduced."""
    files = list_images(folder)
    found = []
    for file in files[:: max(1, len(files) // count)][:count]:
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        found.append(np.array(picture))
    return found


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, default=ROOT / "data/corpus/reserved/photos")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--limit-side", type=int, default=512)
    parser.add_argument("--weights", type=Path, default=ROOT / "demos/weights/compression")
    parser.add_argument("--quick", action="store_true", help="one sample of the package, one quality")
    options = parser.parse_args()
    given = (
        [load_sample("astronaut")[:192, :192]]
        if options.quick
        else pictures(options.input, options.count, options.limit_side)
    )
    pipe = polydit.load(options.weights)
    table = ResultsTable(
        ["quality", "bpp", *(f"{what}, fidelity {f:g}" for what in ("PSNR", "texture") for f in FIDELITIES)]
    )
    for quality in (2.0,) if options.quick else (1.0, 2.0, 3.0, 4.5):
        scores: dict[tuple[str, float], list[float]] = {}
        rates = []
        for picture in given:
            for fidelity in FIDELITIES:
                made = pipe(picture, quality=quality, fidelity=fidelity)
                decoded = np.ascontiguousarray(made.images[0])
                scores.setdefault(("PSNR", fidelity), []).append(float(psnr(decoded, picture)))
                texture = float(texture_loss(tensor(decoded), tensor(picture)))
                scores.setdefault(("texture", fidelity), []).append(texture)
            rates.append(made.bits_per_pixel[0])
        means = [np.mean(scores[what, f]) for what in ("PSNR", "texture") for f in FIDELITIES]
        table.add(f"{quality:g}", f"{np.mean(rates):.3f}", *(f"{mean:.3f}" for mean in means))
    print(f"{len(given)} pictures\n\n{table.markdown()}")


if __name__ == "__main__":
    main()
