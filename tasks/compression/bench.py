"""``polydit compression bench``: rate and distortion on a folder, with real files, against the classics."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...core.data.video import is_video
from ...core.devices import check_device_name
from ...core.errors import PolyditError
from ...core.media.writer import OutputWriter
from ...core.metrics.psnr import psnr
from ...core.metrics.ssim import ms_ssim
from .codec import quality_index
from .container import read_container
from .data_sets import pictures_in
from .peers import PEERS, CodedPicture
from .picture_file import Still, decode_still, encode_still, read_still
from .picture_system import open_chosen
from .rate_distortion import RateDistortion, plot
from .weights import CodecWeights

__all__ = ["bench", "run"]

OURS = "PolyDiT"
SMALLEST_FOR_MS_SSIM = 161
Coder = Callable[[NDArray[np.uint8], float], CodedPicture]


def run(options: Namespace) -> int:
    """Print the table; write ``bench.json``, ``points.md`` and a plot for each metric where asked to.

    Raises:
        PolyditError: no pictures, no weights, an output that exists, or an option out of its range.
    """
    if options.input is None:
        raise PolyditError("--input: required; give a folder of pictures")
    check_device_name(options.device)
    if not 0 < options.low < options.high:
        raise PolyditError(
            f"--low {options.low:g}, --high {options.high:g}: give two rates, the lower one first"
        )
    if any(not 1 <= quality <= 9 for quality in options.qualities) or len(set(options.qualities)) < 4:
        raise PolyditError("--qualities: give at least four different ones from 1 to 9")
    if videos := _videos_in(Path(options.input)):
        from .video.bench import run_videos
        from .video.small_system import open_chosen as open_small

        return run_videos(videos, open_small(options), options)
    writer = None
    if options.output is not None:
        writer = OutputWriter(options.output, overwrite=options.overwrite)
        if writer.exists("bench.json"):
            raise PolyditError(f"{writer.path('bench.json')}: exists already; pass --overwrite")
    files = pictures_in(options.input, None)
    pictures = [_reduced(read_still(file).pixels, options.limit_side) for file in files]
    names = [f"{file.name} {one.shape[1]}x{one.shape[0]}" for file, one in zip(files, pictures, strict=True)]
    earlier = _earlier(options.reuse, names) if options.reuse is not None else {}
    coders: dict[str, tuple[Coder, Sequence[float]]] = {
        PEERS[name].title: (PEERS[name], PEERS[name].qualities)
        for name in dict.fromkeys(("JPEG", *options.peers))
    }
    coders = {name: coder for name, coder in coders.items() if name not in earlier}
    coders[OURS] = (Ours(open_chosen(options)), sorted(set(options.qualities)))
    perceptual = _lpips(options)
    result = bench(pictures, coders, PEERS["JPEG"].title, perceptual, _progress, earlier)
    table = result.table(options.low, options.high)
    print(f"{table.title}; {len(files)} pictures\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if writer is not None:
        settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
        record = {"settings": settings, "pictures": names, **result.record(options.low, options.high)}
        # what `export --figures` puts on a model's card
        record["mean"] = {
            f"BD-rate against JPEG by {metric}, {len(names)} pictures": value
            for metric, value in record["bd_rates"][OURS].items()
            if value is not None
        }
        writer.json("bench.json", record)
        writer.text("points.md", result.points_table().markdown())
        for metric in result.metrics():
            writer.text(f"{metric.lower().replace('-', '_')}.svg", plot(result, metric, 1.2 * options.high))
        sys.stderr.write(f"wrote {writer.output_dir}\n")
    return 0


def _videos_in(path: Path) -> list[Path]:
    """The videos of a folder, raw ones (UVG) among them, or the one that was given."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if (is_video(file) or file.suffix == ".yuv") and file.is_file()]


def bench(
    pictures: Sequence[NDArray[np.uint8]],
    coders: dict[str, tuple[Coder, Sequence[float]]],
    anchor: str,
    perceptual: Callable[[NDArray[np.uint8], NDArray[np.uint8]], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> RateDistortion:
    """Measure codecs on pictures.

    Args:
        pictures: (H, W, 3) uint8.
        coders: by name: codes and decodes a picture at a quality; and the qualities.
        anchor: name of the one that others are compared with.
        perceptual: LPIPS of two pictures, where there are weights.
        progress: is told (pictures done, in all).
        earlier: measurements of other codecs on the same pictures, as `RateDistortion.record` keeps them.
    """
    result = RateDistortion(anchor)
    for name, points in (earlier or {}).items():
        for quality, records in points.items():
            for record in records:
                result.add(name, float(quality), **record)
    for number, pixels in enumerate(pictures):
        area = pixels.shape[0] * pixels.shape[1]
        for name, (code, qualities) in coders.items():
            for quality in qualities:
                coded = code(pixels, quality)
                numbers = {
                    "bpp": 8 * coded.size / area,
                    "PSNR": float(psnr(coded.pixels, pixels)),
                    "encode_seconds": coded.encode_seconds,
                    "decode_seconds": coded.decode_seconds,
                }
                if min(pixels.shape[:2]) >= SMALLEST_FOR_MS_SSIM:
                    numbers["MS-SSIM"] = float(ms_ssim(coded.pixels, pixels))
                if perceptual is not None:
                    numbers["LPIPS"] = perceptual(coded.pixels, pixels)
                result.add(name, quality, **numbers)
        if progress is not None:
            progress(number + 1, len(pictures))
    return result


class Ours:
    """The latent codec as a coder of `bench`: whole files, as ``encode`` writes them."""

    def __init__(self, weights: CodecWeights) -> None:
        self.weights = weights

    def __call__(self, pixels: NDArray[np.uint8], quality: float) -> CodedPicture:
        begin = time.perf_counter()
        file = encode_still(self.weights, Still(pixels), quality_index(quality))
        middle = time.perf_counter()
        found = decode_still(self.weights, read_container(file, "file"), "file").pixels
        return CodedPicture(len(file), found, middle - begin, time.perf_counter() - middle, file)


def _earlier(file: Path, names: list[str]) -> dict[str, Any]:
    """The other codecs of an earlier ``bench.json``.

    Raises:
        PolyditError: it cannot be read, or is of other pictures.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pictures, values = content["pictures"], dict(content["values"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolyditError(f"--reuse {file}: is no bench.json of this command ({error})") from error
    if pictures != names:
        raise PolyditError(f"--reuse {file}: was measured on other pictures or sizes; leave it out")
    values.pop(OURS, None)
    return values


def _reduced(pixels: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """A picture whose longer side is at most `side`; reducing takes away traces of earlier compression."""
    height, width = pixels.shape[:2]
    if side is None or max(height, width) <= side:
        return np.ascontiguousarray(pixels)
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _lpips(options: Namespace) -> Callable[[NDArray[np.uint8], NDArray[np.uint8]], float] | None:
    if options.lpips_backbone is None and options.lpips_heads is None:
        return None
    from ...core.metrics import LPIPS

    network = LPIPS(options.lpips_backbone, options.lpips_heads)

    def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
        pair = [torch.from_numpy(one.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for one in (first, second)]
        with torch.no_grad():
            return float(network(*pair))

    return distance


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done}/{total} pictures{'' if done < total else chr(10)}")
        sys.stderr.flush()
