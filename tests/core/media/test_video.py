import os
import resource
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from polydit.core.data.video import VideoReader, open_frames
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.core.media.video import VideoWriter, video_output


def drift(count, width=48, height=32):
    rows, columns = np.indices((height, width + 2 * count))
    wide = np.stack([np.sin(columns / 9 + rows / (6 + i)) for i in range(3)], -1)
    wide = ((wide + 1) * 110 + 15).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + width]) for i in range(count)]


def write(folder, name, frames, **options):
    writer = OutputWriter(folder)
    height, width = frames[0].shape[:2]
    with video_output(writer, name, width, height, Fraction(10), **options) as video:
        for number, pixels in enumerate(frames):
            video.write(pixels, Fraction(number, 10))
    return folder / name, video.sound


def read(path):
    with open_frames(path) as reader:
        return np.stack([frame.pixels for frame in reader])


def tone(path, codec, seconds=2, rate=16000):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        samples = (np.sin(np.arange(rate * seconds) * 440 * 2 * np.pi / rate) * 8000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate, frame.pts = rate, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.size]


def psnr(a, b):
    return 10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean())


@pytest.mark.parametrize(("name", "least"), [("a.mp4", 36), ("a.webm", 33), ("a.gif", 25), ("frames", 99)])
def test_what_is_written_is_read_again(tmp_path, name, least):
    frames = drift(6)
    path, _ = write(tmp_path, name, frames)
    got = read(path)
    assert got.shape == (6, 32, 48, 3)
    with np.errstate(divide="ignore"):
        assert psnr(got, np.stack(frames)) > least
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no partial file


def test_an_mp4_begins_with_its_index_and_is_what_browsers_play(tmp_path):
    path, _ = write(tmp_path, "a.mp4", drift(30))
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    assert len(read(path)) == 30


@pytest.mark.parametrize("full", [False, True])
def test_the_range_of_levels_is_kept(tmp_path, full):
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    path, _ = write(tmp_path, "a.mp4", [ramp] * 3, full_range=full, quality=4)
    with VideoReader(path) as reader:
        assert reader.full_range is full
        got = next(iter(reader)).pixels
    assert np.abs(got.astype(int) - ramp).max() <= 4


def test_sound_is_copied_where_the_format_holds_it(tmp_path):
    source = tone(tmp_path / "tone.m4a", "aac")
    path, said = write(tmp_path / "out", "a.mp4", drift(20), sound_of=source)
    assert said == "copied"
    assert packets(path) == packets(source)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.webm", "opus")])
def test_other_sound_is_coded_anew(tmp_path, name, codec):
    source = tone(tmp_path / "tone.wav", "pcm_s16le")
    path, said = write(tmp_path / "out", name, drift(20), sound_of=source)
    assert said.startswith(f"coded anew as {codec}: ")
    with av.open(str(path)) as container:
        heard = np.concatenate([f.to_ndarray().mean(0) for f in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    assert abs(len(heard) / rate - 2) < 0.2
    spectrum = np.abs(np.fft.rfft(heard[: rate // 2 * 2]))
    assert abs(spectrum.argmax() * rate / (rate // 2 * 2) - 440) < 3


def test_gif_keeps_its_times(tmp_path):
    path, _ = write(tmp_path, "a.gif", drift(5))
    with Image.open(path) as image:
        assert image.n_frames == 5
        assert image.info["duration"] == 100


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted():
        with video_output(OutputWriter(tmp_path), "a.mp4", 48, 32, Fraction(10)) as video:
            video.write(drift(1)[0], Fraction(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(PolyditError, match=r"a.mov: video is not written under this ending; use .mp4"):
        write(tmp_path, "a.mov", drift(1))


def test_a_full_disk_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # Python ignores the signal, writes fail
    try:
        noise = [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(20)]
        with pytest.raises(PolyditError, match=r"a.mp4: "):
            write(tmp_path, "a.mp4", noise, quality=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


STREAM = """
import resource, sys
from fractions import Fraction
import numpy as np
from polydit.core.data.video import VideoReader
from polydit.core.media.video import VideoWriter
source, target, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows, columns = np.indices((144, 176))
with open(source, "wb") as file, VideoWriter(file, 176, 144, Fraction(25)) as video:
    for number in range(count):
        pixels = ((np.sin((columns + 2 * number) / 9 + rows / 7)[..., None] + 1) * 120).astype(np.uint8)
        video.write(pixels.repeat(3, 2), Fraction(number, 25))
with VideoReader(source) as reader, open(target, "wb") as file, VideoWriter(file, 176, 144, reader.rate) as video:
    for frame in reader:
        video.write(frame.pixels, frame.time)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length(tmp_path):
    def peak(count):
        command = [sys.executable, "-c", STREAM, tmp_path / "a.mp4", tmp_path / "b.mp4", count]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(list(map(str, command)), capture_output=True, check=True, env=environment)
        return int(done.stdout)

    assert peak(300) < peak(100) + 6_000  # kilobytes; 200 frames are 15,000


SAME = """
import hashlib, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from polydit.core.media.video import VideoWriter
rows, columns = np.indices((240, 320))
for width, height in ((56, 40), (96, 64), (320, 240)):
    with open(sys.argv[1], "wb") as file, VideoWriter(file, width, height, Fraction(10)) as video:
        for number in range(12):
            pixels = ((np.sin((columns + 2 * number) / 9 + rows / 7)[..., None] + 1) * 120).astype(np.uint8)
            pixels = pixels.repeat(3, 2)[:height, :width]
            pixels[12:24, 8 + 2 * number : 18 + 2 * number] = (250, 20, 20)
            video.write(pixels, Fraction(number, 10))
    print(hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest())
"""


def test_the_same_frames_are_the_same_bytes_whatever_lies_in_memory(tmp_path):
    def files(filling):  # the C library fills the memory that it gives with the complement of this byte
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": str(filling)}
        command = [sys.executable, "-c", SAME, str(tmp_path / "a.mp4")]
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout

    assert files(0) == files(85) == files(200)


def test_odd_sides_are_continued(tmp_path):
    frames = drift(2, 47, 31)
    with (tmp_path / "a.mp4").open("wb") as file, VideoWriter(file, 47, 31, Fraction(10)) as video:
        for number, pixels in enumerate(frames):
            video.write(pixels, Fraction(number, 10))
    assert read(tmp_path / "a.mp4").shape == (2, 32, 48, 3)
