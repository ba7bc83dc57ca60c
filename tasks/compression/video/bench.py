"""``polydit compression bench`` on a folder of videos: real files of ours against x264, x265 and SVT-AV1."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....core.data.video import FrameSource, VideoReader
from ....core.errors import PolyditError
from ....core.media.writer import OutputWriter
from ....core.metrics.ssim import ms_ssim
from ....core.metrics.video import frame_psnr, optical_flow, warping_error
from ..codec import quality_index
from ..container import Container, Timing
from ..rate_distortion import RateDistortion, plot
from .raw_video import RawReader
from .video_file import GroupSpool
from .video_io import GROUP, VideoSystem

__all__ = ["PEERS", "CodedVideo", "VideoPeer", "bench_videos", "code", "run_videos"]

Frames = NDArray[np.uint8]
OURS = "PolyDiT"
FLICKER_FRAMES = 6


@dataclass
class CodedVideo:
    """What a codec made of a clip.

    Attributes:
        size: bytes of the file.
        frames: decoded, (T, H, W, 3) uint8.
        encode_seconds: of wall clock.
        decode_seconds: of wall clock.
    """

    size: int
    frames: Frames
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class VideoPeer:
    """An encoder of ffmpeg, run as a process of its own.

    Attributes:
        title: with its settings, for tables.
        arguments: of ffmpeg.
        suffix: of the bitstream.
        qualities: constant rate factors where its curve is measured.
    """

    title: str
    arguments: tuple[str, ...]
    suffix: str
    qualities: tuple[int, ...]

    def __call__(self, frames: Frames, quality: int) -> CodedVideo:
        """Code and decode (T, H, W, 3) uint8 with even sides: 4:2:0 at 8 bits, BT.709.

        Raises:
            PolyditError: there is no ffmpeg, or it cannot.
        """
        count, height, width = frames.shape[:3]
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
        to_yuv = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
        to_rgb = "scale=in_color_matrix=bt709:in_range=tv:flags=accurate_rnd+full_chroma_int"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"coded{self.suffix}"
            begin = time.perf_counter()
            source = [*raw, "-s", f"{width}x{height}", "-r", "25", "-i", "-"]
            settings = ["-pix_fmt", "yuv420p", *self.arguments, "-crf", str(quality), "-y", str(file)]
            _ffmpeg([*source, "-vf", to_yuv, *settings], self.title, frames.tobytes())
            middle = time.perf_counter()
            found = _ffmpeg(["-i", str(file), "-vf", to_rgb, *raw, "-"], self.title)
            end = time.perf_counter()
            decoded = np.frombuffer(found, np.uint8).reshape(count, height, width, 3)
            return CodedVideo(file.stat().st_size, decoded, middle - begin, end - middle)


PEERS = (
    VideoPeer(
        "x264 medium, all intra",
        ("-c:v", "libx264", "-preset", "medium", "-g", "1"),
        ".264",
        (18, 22, 26, 30, 34, 38, 43),
    ),
    VideoPeer("x264 medium", ("-c:v", "libx264", "-preset", "medium"), ".264", (18, 22, 26, 30, 34, 38)),
    VideoPeer(
        "x265 medium",
        ("-c:v", "libx265", "-preset", "medium", "-x265-params", "log-level=none"),
        ".265",
        (18, 22, 26, 30, 34, 38),
    ),
    VideoPeer("SVT-AV1 preset 8", ("-c:v", "libsvtav1", "-preset", "8"), ".ivf", (25, 32, 40, 47, 54, 60)),
)
"""The first is what the others are compared with."""


def code(system: VideoSystem, frames: Frames, quality: float) -> CodedVideo:
    """Code and decode with ours; the size is that of the whole file."""
    height, width = frames.shape[1:3]
    index = quality_index(quality)
    begin = time.perf_counter()
    with GroupSpool() as spool:
        groups = []
        for first in range(0, len(frames), GROUP):
            groups.append(system.encode(list(frames[first : first + GROUP]), index))
            spool.add(groups[-1])
        timing = Timing(len(frames), (25, 1), GROUP)
        content = Container(system.number, index, system.identity[:4], width, height, b"", timing=timing)
        size = spool.finish(io.BytesIO(), content, {})
    middle = time.perf_counter()
    found: list[Frames] = []
    for number, group in enumerate(groups):
        count = min(GROUP, len(frames) - number * GROUP)
        found += list(system.decode(group, number, count, (height, width), index))
    return CodedVideo(size, np.stack(found), middle - begin, time.perf_counter() - middle)


def run_videos(files: Sequence[Path], system: VideoSystem, options: Namespace) -> int:
    """Print the table of a folder of videos; write the same files as for pictures."""
    writer = None if options.output is None else OutputWriter(options.output, overwrite=options.overwrite)
    if writer is not None and writer.exists("bench.json"):
        raise PolyditError(f"{writer.path('bench.json')}: exists already; pass --overwrite")
    clips = {file.name: _read(file, options.frames, options.limit_side) for file in files}

    def progress(done: int, total: int) -> None:
        sys.stderr.write(f"{done} of {total} videos\n")

    result = bench_videos(clips, system, sorted(set(options.qualities)), progress)
    table = result.table(options.low, options.high)
    print(f"{table.title}; {len(files)} videos\n\n{table.markdown()}")  # noqa: T201 - what was asked for
    if writer is not None:
        settings = {key: value for key, value in vars(options).items() if key not in ("debug", "overwrite")}
        record: dict[str, Any] = {
            "settings": settings,
            "videos": [
                f"{name} {clip.shape[2]}x{clip.shape[1]}, {len(clip)} frames" for name, clip in clips.items()
            ],
            **result.record(options.low, options.high),
        }
        record["mean"] = {
            f"BD-rate against {result.anchor} by {metric}, {len(clips)} videos": value
            for metric, value in record["bd_rates"][OURS].items()
            if value is not None
        }
        writer.json("bench.json", record)
        writer.text("points.md", result.points_table().markdown())
        for metric in result.metrics():
            writer.text(f"{metric.lower().replace('-', '_')}.svg", plot(result, metric, 1.2 * options.high))
        sys.stderr.write(f"wrote {writer.output_dir}\n")
    return 0


def bench_videos(
    clips: dict[str, Frames],
    system: VideoSystem,
    qualities: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
    peers: Sequence[VideoPeer] = PEERS,
) -> RateDistortion:
    """Measure ours and the classics on clips (T, H, W, 3) uint8 with even sides.

    PSNR is over RGB, the mean of the frames'; flicker is E_warp times 1000 of the first frames, with the flow of the
    clip itself by scikit-image's iterative Lucas-Kanade.
    """
    result = RateDistortion(peers[0].title)
    for number, frames in enumerate(clips.values()):
        flow = _Remembered(frames[:FLICKER_FRAMES])
        coders: list[tuple[str, float, Callable[[], CodedVideo]]] = [
            (peer.title, quality, partial(peer, frames, quality))
            for peer in peers
            for quality in peer.qualities
        ]
        coders += [(OURS, quality, partial(code, system, frames, quality)) for quality in qualities]
        for name, quality, run in coders:
            coded = run()
            numbers = {
                "bpp": 8 * coded.size / frames[..., 0].size,
                "PSNR": float(frame_psnr(coded.frames, frames).mean()),
                "E_warp": 1000 * warping_error(coded.frames[:FLICKER_FRAMES], frames[:FLICKER_FRAMES], flow),
                "encode_seconds": coded.encode_seconds / len(frames),
                "decode_seconds": coded.decode_seconds / len(frames),
            }
            if min(frames.shape[1:3]) > 160:
                numbers["MS-SSIM"] = float(ms_ssim(coded.frames[::5], frames[::5]).mean())
            result.add(name, quality, **numbers)
        if progress is not None:
            progress(number + 1, len(clips))
    return result


class _Remembered:
    """The flow of one clip: all codecs are judged by the same, and it is slow."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.found: dict[tuple[int, int], NDArray[np.float32]] = {}

    def __call__(self, first: Frames, second: Frames) -> NDArray[np.float32]:
        key = (first.ctypes.data, second.ctypes.data)
        if key not in self.found:
            self.found[key] = optical_flow(first, second, "ilk")
        return self.found[key]


def _read(file: Path, count: int, side: int | None) -> Frames:
    """The first frames of a video, with even sides."""
    found = []
    source: FrameSource = RawReader(file) if file.suffix == ".yuv" else VideoReader(file)
    with source as reader:
        for frame in reader:
            found.append(frame.pixels)
            if len(found) == count:
                break
    clip = np.stack(found)
    if side is not None and max(clip.shape[1:3]) > side:
        ratio = side / max(clip.shape[1:3])
        size = (round(clip.shape[2] * ratio), round(clip.shape[1] * ratio))
        clip = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in clip])
    return np.ascontiguousarray(clip[:, : clip.shape[1] // 2 * 2, : clip.shape[2] // 2 * 2])


def _ffmpeg(arguments: list[str], title: str, given: bytes | None = None) -> bytes:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise PolyditError(
            "bench of videos needs ffmpeg for what it compares with; pip install 'polydit[video]'"
        ) from error
    command = [get_ffmpeg_exe(), "-loglevel", "error", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        line = done.stderr.decode(errors="replace").strip().splitlines()
        raise PolyditError(f"{title}: ffmpeg failed ({line[-1] if line else done.returncode})")
    return done.stdout
