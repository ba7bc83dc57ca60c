"""`predict` on pictures and videos: what is written, what is kept, what the record says."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.data.video import VideoReader
from polydit.core.media.video import VideoWriter
from polydit.tasks.super_resolution import pipeline

av = pytest.importorskip("av")


@pytest.fixture
def weights(tiny, tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def predict(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``predict(input, ..., "--scale", 2)`` gives the exit code, standard error, and the records by file name."""

    def run(*words: object) -> tuple[int, str, dict[str, dict[str, Any]]]:
        fixed = ["--output", tmp_path / "out", "--weights", weights, "--device", "cpu"]
        code = main(["super-resolution", "predict", "--input", *map(str, [*words, *fixed])])
        file = tmp_path / "out/results.json"
        inputs = json.loads(file.read_text(encoding="utf-8"))["inputs"] if file.is_file() else []
        return code, capsys.readouterr().err, {Path(record["input"]).name: record for record in inputs}

    return run


def write_video(
    path: Path,
    frames: list[np.ndarray],
    *,
    rate: int = 10,
    times: list[int] | None = None,
    sound: bool = False,
) -> Path:
    """A lossless video; ``times`` are the frames' places in tenths of a second."""
    codec, pixel_format = ("ffv1", "bgr0") if path.suffix == ".mkv" else ("libx264rgb", "rgb24")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "0"} if codec == "libx264rgb" else {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, rate)
        tone = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times or range(len(frames)))[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone is not None:
            seconds = len(frames) / rate
            wave = (np.sin(np.arange(int(16000 * seconds)) / 8) * 8000).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            samples.rate, samples.pts = 16000, 0
            container.mux(tone.encode(samples))
            container.mux(tone.encode())
    return path


def read(path: Path) -> tuple[list[np.ndarray], list[Fraction], bool]:
    with VideoReader(path) as reader:
        frames = list(reader)
        return [frame.pixels for frame in frames], [frame.time for frame in frames], reader.has_audio


def drift(count: int, width: int = 24, height: int = 16) -> list[np.ndarray]:
    """A soft pattern that moves by one column per frame."""
    rows, columns = np.indices((height, width + count))
    waves = [np.sin(columns / 3 + rows / (4 + i)) for i in range(3)]
    wide = ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, i : i + width]) for i in range(count)]


def restored(weights: Path, pixels: np.ndarray, scale: int, seed: int) -> np.ndarray:
    pipe = pipeline.SuperResolutionPipeline.from_pretrained(weights, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(pixels, scale=scale, generator=generator).images[0])


def test_a_picture_is_what_the_pipeline_gives_and_the_record_says_its_sizes(
    predict, weights, tmp_path, recwarn
):
    pixels = drift(1, 11, 7)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code, said, records = predict(tmp_path / "a.png", "--scale", 3, "--seed", 5)
    assert code == 0
    assert said.splitlines() == [f"polydit: 1 done, in {tmp_path / 'out'}"]
    assert not [str(w.message) for w in recwarn if "writable" in str(w.message)]
    result = np.asarray(Image.open(tmp_path / "out/a.png"))
    assert np.array_equal(result, restored(weights, pixels, 3, 5))
    record = records["a.png"]
    assert record["files"] == ["a.png"]
    assert (record["input_size"], record["output_size"], record["scale"]) == ([11, 7], [33, 21], 3)


def test_a_video_keeps_its_frames_times_and_sound(predict, weights, tmp_path):
    frames = drift(5)
    clip = write_video(tmp_path / "clip.mp4", frames, times=[0, 1, 2, 6, 7], sound=True)
    assert all(np.array_equal(*pair) for pair in zip(read(clip)[0], frames, strict=True))
    code, said, records = predict(clip, "--scale", 2)
    assert code == 0, said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip.mp4", "results.json"]
    large, times, sound = read(tmp_path / "out/clip.mp4")
    assert [frame.shape for frame in large] == [(32, 48, 3)] * 5
    assert [round(float(time), 3) for time in times] == [0, 0.1, 0.2, 0.6, 0.7]
    assert sound
    record = records["clip.mp4"]
    assert record["files"] == ["clip.mp4"]
    assert (record["input_size"], record["output_size"], record["frames"]) == ([24, 16], [48, 32], 5)
    assert record["sound"] == "copied"


def test_what_stands_still_does_not_flicker(predict, tmp_path, monkeypatch):
    shown = []
    write = VideoWriter.write
    monkeypatch.setattr(
        VideoWriter, "write", lambda self, pixels, time: (shown.append(pixels), write(self, pixels, time))
    )
    clip = write_video(tmp_path / "still.mkv", [drift(1)[0]] * 3)
    code, said, _ = predict(clip, "--scale", 2, "--steps", 2)
    assert code == 0, said
    assert len(shown) == 3
    assert all(np.array_equal(frame, shown[0]) for frame in shown)  # also their noise is the same
    decoded = read(tmp_path / "out/still.mp4")[0]
    # What the file lost is a codec's loss (colour at half resolution), not a shift or another colour space.
    assert abs(decoded[1].astype(float) - shown[0]).mean() < 12
    assert abs(decoded[1].astype(float).mean((0, 1)) - shown[0].mean((0, 1))).max() < 4


def test_odd_sides_are_continued_and_the_record_says_so(predict, tmp_path):
    clip = write_video(tmp_path / "odd.mkv", drift(2, 15, 9))
    code, said, records = predict(clip, "--scale", 3)
    assert code == 0, said
    assert read(tmp_path / "out/odd.mp4")[0][0].shape == (28, 46, 3)
    assert records["odd.mkv"]["output_size"] == [46, 28]


def test_a_picture_and_a_video_of_one_stem_stand_side_by_side(predict, tmp_path):
    """As phones save them. Results of one kind do not pass for those of the other."""
    both = tmp_path / "phone"
    both.mkdir()
    Image.fromarray(drift(1)[0]).save(both / "moment.jpg")
    code, said, _ = predict(both / "moment.jpg", "--scale", 2)
    assert code == 0, said
    write_video(both / "moment.mp4", drift(2))
    code, said, records = predict(both, "--scale", 2)
    assert code == 0, said
    assert {name: record["status"] for name, record in records.items()} == {
        "moment.jpg": "kept",
        "moment.mp4": "done",
    }
    written = (tmp_path / "out/moment.mp4").stat().st_mtime_ns
    code, said, records = predict(both, "--scale", 2)
    assert code == 0
    assert "2 kept as they were" in said
    assert (tmp_path / "out/moment.mp4").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"", "is empty (0 bytes)"),
        (lambda data: b"no video" * 40, "not a video that can be read, or cut short"),
        (lambda data: data[: len(data) // 3], "not a video that can be read, or cut short"),
    ],
)
def test_a_damaged_video_is_named_and_leaves_nothing(predict, tmp_path, spoil, message):
    noise = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), np.uint8)
    clip = write_video(tmp_path / "clip.mp4", list(noise))
    clip.write_bytes(spoil(clip.read_bytes()))
    code, said, _ = predict(clip, "--scale", 2)
    assert code == 2
    assert said.startswith(f"polydit: error: {clip}: {message}")
    assert said.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_that_breaks_off_while_it_runs_leaves_nothing(predict, tmp_path, monkeypatch):
    clip = write_video(tmp_path / "clip.mp4", drift(4))
    calls = []

    def rows(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            assert [p.suffix for p in (tmp_path / "out").iterdir()] == [".partial"]
            raise KeyboardInterrupt
        return iter([np.zeros((32, 48, 3), np.uint8)])

    monkeypatch.setattr("polydit.tasks.super_resolution.predict.enlarged_rows", rows)
    code, said, _ = predict(clip, "--scale", 2)
    assert code == 130
    assert said == "polydit: interrupted\n"
    assert [p.name for p in (tmp_path / "out").iterdir()] == []
