"""PDFNet with and without its depth, on held-out scenes where only the depth tells which thing is the object.

    python tests/benchmarks/bench_depth.py --weights runs/segmentation/NAME/pipeline [--scenes 200] [--quick]

Held-out cut-outs over held-out photographs; other cut-outs lie flat in the background, as if painted on. The made depth
is blurred, bent and uneven, as an estimate is. Beside it the task's own weights, which see no depth, and classical
methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import polydit
from polydit.core.data.composites import CompositeOptions, Compositor
from polydit.tasks.segmentation.depth_scenes import draw_scene
from polydit.tasks.segmentation.metrics import Example, Segmenter, evaluate
from polydit.tasks.segmentation.peers import PEERS

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="folder of a saved PDFNet pipeline")
    parser.add_argument("--own", type=Path, default=ROOT / "demos/weights/segmentation")
    parser.add_argument("--corpus", type=Path, default=ROOT / "data/corpus")
    parser.add_argument("--split", choices=("val", "reserved"), default="val")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--others", type=int, nargs=2, default=(0, 2), help="flat things in a background")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="eight scenes")
    options = parser.parse_args()
    if options.weights is None or not (options.corpus / "manifest.jsonl").is_file():
        print(
            "skipped: needs --weights of `polydit segmentation fit --config pdfnet_small.yaml`, and a corpus "
            f"in {options.corpus}"
        )
        return
    compositor = Compositor.from_corpus(
        options.corpus,
        options.split,
        options.size,
        CompositeOptions.plain(),
        allow_reserved=options.split == "reserved",
    )
    count = 8 if options.quick else options.scenes
    depth: dict[Path, NDArray[np.float32]] = {}

    def scenes() -> Iterator[Example]:
        for number in range(count):
            scene = draw_scene(
                compositor, np.random.default_rng((options.seed, number)), tuple(options.others)
            )
            source = Path(f"scene-{number}")
            depth[source] = scene.depth
            yield Example(scene.image, np.rint(scene.mask * 255).astype(np.uint8), source)

    pdfnet, own = polydit.load(options.weights), polydit.load(options.own)
    segmenters: dict[str, Segmenter] = {
        "PDFNet": lambda picture, source: pdfnet(picture, depth[source]).masks[0],
        "PDFNet, depth of nothing": lambda picture, source: pdfnet(picture).masks[0],
        "the task's own weights, no depth": lambda picture, source: own(picture, output_type="np").masks[0],
        "nearer than the median": lambda picture, source: nearer(depth[source]),
        **{name: lambda picture, source, peer=peer: peer(picture) for name, peer in PEERS.items()},
    }
    about = f"{options.split} scenes of {options.size} pixels, {options.others} flat things in the background"
    table = evaluate(segmenters, scenes(), about).table()
    print(f"{table.title}\n\n{table.markdown()}")


def nearer(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """The depth itself as a mask: 0 at its median, 1 where it is nearest."""
    middle, nearest = np.median(depth), depth.max()
    return ((depth - middle) / max(float(nearest - middle), 1e-6)).clip(0, 1).astype(np.float32)


if __name__ == "__main__":
    main()
