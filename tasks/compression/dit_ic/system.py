"""DiT-IC on the command line; see `systems`."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from ....core.devices import choose_device
from ....core.errors import PolyditError
from ....core.load import load
from ....core.media.writer import OutputWriter
from ..coding import Stream
from ..container import CODECS, Container
from ..picture_file import Still, pack, read_still, to_tensor, unpack
from ..picture_system import write_still
from .pipeline import DiTICPipeline

__all__ = ["decode_file", "decode_still", "encode_file", "encode_still"]

NUMBER = next(number for number, codec in CODECS.items() if codec.system == "DiT-IC")
GENERATIVE = 0.0


def encode_still(pipe: DiTICPipeline, still: Still) -> bytes:
    """The bytes of a ``.pdc`` file; the rate is that of the weights."""
    return pack(still, pipe.encode(to_tensor(still)), NUMBER, 0, pipe.identity)


def decode_still(
    pipe: DiTICPipeline, content: Container, name: str | Path, fidelity: float | None = None
) -> Still:
    """The picture of a file.

    Args:
        pipe: with the weights that coded it.
        content: of the file.
        name: of the file, for complaints.
        fidelity: 0 or None is the generative decoder, 1 the plain one.

    Raises:
        PolyditError: it was coded with other weights, or is damaged.
    """
    if content.weights != pipe.identity:
        raise PolyditError(
            f"{name}: was coded with the weights {content.weights.hex()}, and these are {pipe.identity.hex()}; "
            "give the folder of the right ones with --weights"
        )
    stream, size = Stream(content.data, content.symbols), (content.height, content.width)
    strength = GENERATIVE if fidelity is None else fidelity
    return unpack(content, lambda: pipe.decode(stream, size, strength, name).float(), name)


def encode_file(source: Path, output: OutputWriter, name: str, options: Namespace) -> dict[str, Any]:
    """Code a picture; see `systems`.

    Raises:
        PolyditError: a rate was asked for that these weights do not have, or there are none.
    """
    if options.target_bpp is not None or options.target_size is not None:
        raise PolyditError(
            "--target-bpp, --target-size: DiT-IC's weights have one rate each; choose weights, or leave them out"
        )
    still = read_still(source, options.metadata)
    pipe = _open(options)
    begin = time.perf_counter()
    file = encode_still(pipe, still)
    seconds = time.perf_counter() - begin
    with output.open(name) as target:
        target.write(file)
    height, width = still.pixels.shape[:2]
    rate = 8 * len(file) / (height * width)
    notes = f" ({'; '.join(still.notes)})" if still.notes else ""
    return {
        "bytes": len(file),
        "bits_per_pixel": rate,
        "width": width,
        "height": height,
        "seconds": seconds,
        "line": f"{output.path(name)}: {len(file):,} bytes, {rate:.4f} bpp, {width}x{height}{notes}",
    }


def decode_file(
    source: Path, content: Container, output: OutputWriter, name: str, options: Namespace
) -> dict[str, Any]:
    """Decode a picture; see `systems`."""
    pipe = _open(options)
    begin = time.perf_counter()
    still = decode_still(pipe, content, source, options.fidelity)
    seconds = time.perf_counter() - begin
    write_still(still, output, name)
    line = f"{output.path(name)}: {content.width}x{content.height}"
    return {"width": content.width, "height": content.height, "seconds": seconds, "line": line}


def _open(options: Namespace) -> DiTICPipeline:
    if options.weights is None:
        raise PolyditError(
            "--weights: DiT-IC has no weights of its own here; give a folder that `fit` or `export` wrote"
        )
    pipe = load(options.weights, task="compression", dtype=getattr(torch, options.dtype))
    if not isinstance(pipe, DiTICPipeline):
        raise PolyditError(
            f"{options.weights}: holds no DiT-IC but a {type(pipe).__name__}; give another folder"
        )
    return pipe.to(choose_device(options.device))
