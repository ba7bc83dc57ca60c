"""The small system for pictures, on the command line."""

from __future__ import annotations

import io
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...core.devices import choose_device
from ...core.media.writer import OutputWriter
from ...core.open_pipeline import choose_weights
from . import TASK
from .codec import LAST_QUALITY, quality_index, quality_of
from .container import Container
from .picture_file import Still, decode_still, encode_still, read_still, to_pillow
from .rate import best_within, parse_size
from .weights import CodecWeights, open_weights

__all__ = ["decode_file", "encode_file", "encode_for", "write_still"]

PROFILE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def open_chosen(options: Namespace) -> CodecWeights:
    """The weights that the options name, on their device."""
    device = choose_device(options.device)
    if device.type == "mps":  # has no double precision, which exact sums need there
        device = torch.device("cpu")
    weights = open_weights(choose_weights(TASK, options.weights), device)
    weights.codec.compute_dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    return weights


def encode_for(weights: CodecWeights, still: Still, options: Namespace) -> tuple[int, bytes]:
    """Quality index and file, by ``quality``, ``target_bpp`` or ``target_size`` of the options."""
    if options.target_bpp is None and options.target_size is None:
        index = quality_index(options.quality)
        return index, encode_still(weights, still, index)
    if options.target_size is not None:
        limit, what = float(parse_size(options.target_size)), f"--target-size {options.target_size}"
    else:
        limit = options.target_bpp * still.pixels[..., 0].size / 8
        what = f"--target-bpp {options.target_bpp:g}"
    return best_within(lambda index: encode_still(weights, still, index), limit, LAST_QUALITY, what)


def encode_file(source: Path, output: OutputWriter, name: str, options: Namespace) -> dict[str, Any]:
    """Code a picture; see `systems`."""
    still = read_still(source, options.metadata)
    weights = open_chosen(options)
    begin = time.perf_counter()
    index, file = encode_for(weights, still, options)
    seconds = time.perf_counter() - begin
    with output.open(name) as target:
        target.write(file)
    height, width = still.pixels.shape[:2]
    rate = 8 * len(file) / (height * width)
    line = f"{output.path(name)}: {len(file):,} bytes, {rate:.3f} bpp, {width}x{height}, "
    line += f"quality {quality_of(index):.2f}"
    if still.notes:
        line += f" ({'; '.join(still.notes)})"
    return {
        "bytes": len(file),
        "bits_per_pixel": rate,
        "quality": quality_of(index),
        "width": width,
        "height": height,
        "seconds": seconds,
        "line": line,
    }


def decode_file(
    source: Path, content: Container, output: OutputWriter, name: str, options: Namespace
) -> dict[str, Any]:
    """Decode a picture; see `systems`."""
    weights = open_chosen(options)
    enhancer = None
    if options.fidelity is not None and options.fidelity != 1:
        from .enhance import open_enhancer  # not needed otherwise, and neither are the libraries it stands on

        enhancer = open_enhancer(
            choose_weights(TASK, options.weights),
            options.fidelity,
            weights.codec.colour.device,
            weights.codec.compute_dtype,
        )
    begin = time.perf_counter()
    still = decode_still(weights, content, source, enhancer)
    seconds = time.perf_counter() - begin
    write_still(still, output, name)
    line = f"{output.path(name)}: {content.width}x{content.height}, quality {quality_of(content.quality):.2f}"
    return {"width": content.width, "height": content.height, "seconds": seconds, "line": line}


def write_still(still: Still, output: OutputWriter, name: str) -> None:
    """Write a decoded picture in the format of its name, with profile and EXIF where the format has them."""
    image = to_pillow(still)
    suffix = Path(name).suffix.lower()
    if image.info and suffix in PROFILE_FORMATS:
        kept: dict[str, Any] = {key: image.info[key] for key in ("icc_profile", "exif") if key in image.info}
        encoded = io.BytesIO()
        if suffix in (".jpg", ".jpeg"):
            image = image.convert("L" if still.grey else "RGB")
            kept |= {"quality": 95, "subsampling": 0}
        elif suffix == ".webp":
            kept["lossless"] = True
        image.save(encoded, PROFILE_FORMATS[suffix], **kept)
        with output.open(name) as target:
            target.write(encoded.getbuffer())
    elif still.alpha is not None and suffix in (".jpg", ".jpeg"):
        output.image(name, _over_white(image))
    else:
        output.image(name, image)


def _over_white(image: Image.Image) -> Image.Image:
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32)
    share = rgba[..., 3:] / 255
    return Image.fromarray((rgba[..., :3] * share + 255 * (1 - share)).round().astype(np.uint8))
