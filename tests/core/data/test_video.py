import pickle
import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.data.clips import Clip, open_clip
from polydit.core.data.high_dynamic_range import to_standard
from polydit.core.data.video import FolderReader, VideoReader, open_frames
from polydit.core.errors import PolyditError
from polydit.core.media.video import VideoWriter


def drift(count, width=48, height=32):
    """Soft waves that move by two columns a frame."""
    rows, columns = np.indices((height, width + 2 * count))
    wide = np.stack([np.sin(columns / 7 + rows / (6 + i)) for i in range(3)], -1)
    wide = ((wide + 1) * 110 + 15).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + width]) for i in range(count)]


def write(path, frames, times=None, rate=10, codec="ffv1", pixel_format="bgr0", **colour):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = Fraction(1, rate)
        for name, value in colour.items():
            setattr(stream.codec_context, name, value)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(
                pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le"
            )
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip with few key frames and B-frames, whose packets are stored out of order."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with path.open("wb") as file, VideoWriter(file, 64, 32, Fraction(10), quality=8) as video:
        for number, pixels in enumerate(drift(70, 64)):
            video.write(pixels, Fraction(number, 10))
    return path


def test_uneven_times_are_kept_and_told(tmp_path):
    times = [0, 1, 2, 6, 7]
    with VideoReader(write(tmp_path / "a.mkv", drift(5), times)) as reader:
        assert [frame.time for frame in reader] == [Fraction(t, 10) for t in times]
        assert reader.variable_rate
        assert reader.notes() == ["its frame rate varies"]
    with VideoReader(write(tmp_path / "b.mkv", drift(5))) as reader:
        list(reader)
        assert reader.notes() == []


def test_ten_bits_are_rounded_and_told(tmp_path):
    deep = [frame.astype(np.uint16) * 257 for frame in drift(2)]
    path = write(tmp_path / "deep.mkv", deep, pixel_format="gbrp10le")
    with VideoReader(path) as reader:
        frames = list(reader)
        assert reader.notes() == ["10-bit levels were rounded to 8 bits"]
    assert np.abs(frames[1].pixels.astype(int) - drift(2)[1]).max() <= 1


def test_high_dynamic_range_is_mapped_and_told(tmp_path):
    grey = np.full((16, 16, 3), round(0.5806889 * 65535), np.uint16)  # PQ of 203 cd/m2
    path = write(tmp_path / "hdr.mkv", [grey], pixel_format="gbrp10le", color_trc=16, color_primaries=9)
    with VideoReader(path) as reader:
        pixels = next(iter(reader)).pixels
        assert reader.notes() == ["high dynamic range (PQ) was mapped to a common screen's"]
    assert np.abs(pixels.astype(int) - 194).max() <= 2


def test_tone_mapping_rises_and_ends_at_white():
    ramp = np.repeat(np.arange(0, 65536, 64, dtype=np.uint16)[None, :, None], 3, 2)
    for transfer in ("PQ", "HLG"):
        mapped = to_standard(ramp, transfer)[0, :, 0].astype(int)
        assert mapped[0] == 0
        assert (np.diff(mapped) >= 0).all()
        assert mapped[-1] == 255


def test_a_turned_phone_video_is_upright(tmp_path, clip):
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90"]
    subprocess.run([*command, "-i", str(clip), "-c", "copy", str(turned)], check=True)
    with VideoReader(clip) as plain, VideoReader(turned) as reader:
        assert (reader.width, reader.height) == (32, 64)
        assert np.array_equal(next(iter(reader)).pixels, np.rot90(next(iter(plain)).pixels))
    assert open_clip(turned, "pyav").size == (64, 32)


def test_a_file_that_breaks_off_says_how_far_it_got(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    path = write(tmp_path / "noise.mkv", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with VideoReader(path) as reader:
        read = len(list(reader))
        assert 5 < read < 20
        assert reader.notes() == [f"it announces 20 frames and ends after {read}"]


def test_damage_in_the_middle_says_how_far_it_got(clip, monkeypatch):
    with VideoReader(clip) as reader:

        def decode(self, stream):
            yield from list(original(stream))[1:5]
            raise av.error.InvalidDataError(1094995529, "Invalid data found")

        original = reader.container.decode
        reader.container = type("Broken", (), {"decode": decode, "close": lambda self: None})()
        reader._frames = reader._decode()
        with pytest.raises(PolyditError, match="cut short after 5 frames of 70 "):
            list(reader)


@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_any_frames_in_any_order(clip, reader):
    if reader == "decord":
        pytest.importorskip("decord")
    with VideoReader(clip) as source:
        whole = np.stack([frame.pixels for frame in source])
    numbers = [5, 69, 5, 0, 31, 32, 68]
    opened = open_clip(clip, reader)
    assert (len(opened), opened.rate, opened.size) == (70, 10, (32, 64))
    got = opened.get(numbers)
    assert np.abs(got.astype(int) - whole[numbers]).max() <= (3 if reader == "decord" else 0)
    # The neighbours differ by more than the readers do, so a frame off by one would show.
    assert np.abs(whole[31].astype(int) - whole[32]).max() > 10
    with pytest.raises(IndexError, match="has frames 0 to 69, not 70"):
        opened.get([70])


def test_a_pickled_clip_opens_its_own_file(clip):
    opened = open_clip(clip, "pyav")
    copied = pickle.loads(pickle.dumps(opened))
    assert copied._opened is None
    assert np.array_equal(copied.get([3]), opened.get([3]))


class Frames(torch.utils.data.Dataset):
    def __init__(self, clip):
        self.clip = clip

    def __len__(self):
        return len(self.clip)

    def __getitem__(self, index):
        return self.clip.get([index])[0]


def test_workers_read_a_clip_that_the_parent_has_open(clip):
    opened = Clip(clip)
    whole = opened.get(range(70))  # the parent's decoder has run
    loader = torch.utils.data.DataLoader(
        Frames(opened), batch_size=35, num_workers=2, multiprocessing_context="fork"
    )
    assert np.array_equal(torch.cat(list(loader)).numpy(), whole)


def test_a_folder_of_frames_is_a_video_too(tmp_path):
    frames = drift(11)
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / f"f{number}.png")  # f10 after f9
    with open_frames(tmp_path, rate=5) as reader:
        assert isinstance(reader, FolderReader)
        read = list(reader)
    assert [f.time for f in read] == [Fraction(n, 5) for n in range(11)]
    assert all(np.array_equal(f.pixels, g) for f, g in zip(read, frames, strict=True))
    assert np.array_equal(Clip(tmp_path).get([10, 2]), np.stack([frames[10], frames[2]]))
    Image.fromarray(frames[0][:8]).save(tmp_path / "f11.png")
    with pytest.raises(PolyditError, match=r"f11.png: is 48x8 and the first frame of its folder 48x32"):
        list(open_frames(tmp_path))


def test_what_decord_cannot_read_is_read_by_pyav(tmp_path):
    pytest.importorskip("decord")
    path = write(tmp_path / "narrow.mkv", drift(3, 48))
    with pytest.raises(PolyditError, match="no frame that decord can read; use the reader 'pyav'"):
        open_clip(path, "decord")
    assert np.array_equal(open_clip(path).get([1])[0], drift(3, 48)[1])


def test_what_is_no_clip_is_said(tmp_path, clip):
    with pytest.raises(PolyditError, match="no such file"):
        open_clip(tmp_path / "none.mp4")
    with pytest.raises(PolyditError, match="choose auto, decord or pyav"):
        Clip(clip, "opencv")
