"""The command on what cameras, phones and editors make: deep pictures, turned ones, sound, odd sides, cuts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from clips_of_tests import scene
from PIL import Image

from polydit.core.data.video import VideoReader


def ffmpeg(*words: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-threads", "1"]
    subprocess.run([*command, *map(str, words)], check=True)


def boxes(folder: Path, left: int = 8, top: int = 12) -> Path:
    file = folder / "boxes.csv"
    file.write_text(f"frame,x,y,w,h\n0,{left},{top},10,12\n")
    return file


def sound_of(file: Path) -> list[bytes]:
    with av.open(str(file)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize(
    ("transfer", "line"),
    [("smpte2084", "high dynamic range (PQ) was mapped"), ("bt709", "10-bit levels were rounded to 8 bits")],
)
def test_deep_pictures_are_converted_and_told(run, files: Path, tmp_path: Path, transfer: str, line: str):
    deep = tmp_path / "deep.mkv"
    depth = ("-vf", f"setparams=color_trc={transfer}", "-c:v", "ffv1", "-pix_fmt", "gbrp10le")
    ffmpeg("-i", files / "clip.mp4", *depth, deep)
    code, record, said = run("--input", deep, "--mask", boxes(tmp_path))
    assert code == 0
    assert f"deep.mkv: {line}" in said
    assert line in record["notes"][0]
    with VideoReader(tmp_path / "out/deep_inpainted.mp4") as reader:
        assert len(list(reader)) == 12
        assert reader.notes() == []


def test_a_turned_phone_video_with_sound_stays_upright_and_sounds_the_same(run, files: Path, tmp_path: Path):
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    ffmpeg(
        "-i",
        files / "clip.mp4",
        "-f",
        "lavfi",
        "-i",
        "sine=duration=1.2",
        "-c:v",
        "copy",
        "-c:a",
        "aac",
        plain,
    )
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    code, record, _ = run("--input", turned, "--mask", boxes(tmp_path, 20, 10), "--dilate", "0")
    assert code == 0
    assert record["size"] == [40, 56]
    assert record["sound"] == "copied"
    made = tmp_path / "out/turned_inpainted.mp4"
    assert sound_of(made) == sound_of(turned)
    with VideoReader(made) as reader, VideoReader(files / "clip.mp4") as given:
        first, upright = next(iter(reader)).pixels, np.rot90(next(iter(given)).pixels)
    assert np.abs(first[:8].astype(int) - upright[:8]).mean() < 6


def test_odd_sides_are_kept_in_frames_and_told_in_mp4(run, tmp_path: Path):
    given, _, _ = scene(6, 41, 57)
    (tmp_path / "odd").mkdir()
    for number, picture in enumerate(given):
        Image.fromarray(picture).save(tmp_path / "odd" / f"{number:02d}.png")
    code, _, said = run("--input", tmp_path / "odd", "--mask", boxes(tmp_path), "--format", "frames")
    assert code == 0
    assert said.count("even sides") == 0
    assert Image.open(tmp_path / "out/odd_inpainted/00003.png").size == (57, 41)
    code, _, said = run("--input", tmp_path / "odd", "--mask", boxes(tmp_path), "--overwrite")
    assert code == 0
    assert "mp4 has even sides only: it is 58x42, with the last row and column repeated" in said
    with VideoReader(tmp_path / "out/odd_inpainted.mp4") as reader:
        assert (reader.width, reader.height) == (58, 42)
