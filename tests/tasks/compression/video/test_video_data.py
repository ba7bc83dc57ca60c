import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.tasks.compression.video.bench import VideoPeer, bench_videos
from polydit.tasks.compression.video.raw_video import RawReader
from polydit.tasks.compression.video.real_clips import RealClips, clips_in
from polydit.tasks.compression.video.small_system import open_small

from .conftest import drift, write_clip


def test_vimeo_and_folders_are_found(tmp_path):
    root = tmp_path / "vimeo"
    for name in ("00001/0001", "00001/0002"):
        place = root / "sequences" / name
        place.mkdir(parents=True)
        for number, frame in enumerate(drift(7, 64, 80)):
            Image.fromarray(frame).save(place / f"im{number + 1}.png")
    (root / "sep_trainlist.txt").write_text("00001/0001\n")
    (root / "sep_testlist.txt").write_text("00001/0002\n")
    (train,), (held,) = (clips_in(root, part) for part in ("train", "val"))
    assert (len(train), train.path.name, held.path.name) == (7, "0001", "0002")
    sample = RealClips([train], 5, 64, 10, 0)[3]["frames"]
    assert sample.shape == (5, 3, 64, 64)
    assert np.array_equal(sample, RealClips([train], 5, 64, 10, 0)[3]["frames"])
    with pytest.raises(PolyditError, match="has 7 frames of 80x64; samples are 9 of 64"):
        RealClips([train], 9, 64, 10, 0)[0]
    (root / "sep_testlist.txt").unlink()
    with pytest.raises(PolyditError, match=r"Vimeo-90K without sep_testlist\.txt"):
        clips_in(root, "val")
    write_clip(tmp_path / "a.mp4", drift(3, 32, 32))
    assert [c.path.name for c in clips_in(tmp_path, "val")] == ["vimeo"]
    assert [c.path.name for c in clips_in(tmp_path, "train")] == ["a.mp4"]
    with pytest.raises(PolyditError, match="no such folder"):
        clips_in(tmp_path / "none", "train")


def test_raw_files_have_their_size_in_their_name(tmp_path):
    grey = np.full(16 * 8 * 3 // 2, 128, np.uint8)
    grey[: 16 * 8] = 235
    path = tmp_path / "Test_16x8_120fps_420_8bit_YUV.yuv"
    path.write_bytes(grey.tobytes() * 3)
    with RawReader(path) as reader:
        frames = list(reader)
        assert (reader.frames, reader.rate, reader.width, reader.height) == (3, 120, 16, 8)
    assert (frames[2].pixels == 255).all()
    assert float(frames[2].time) == 2 / 120
    path.write_bytes(grey.tobytes()[:-1])
    with pytest.raises(PolyditError, match="no whole number of 16x8 frames"):
        RawReader(path)
    with pytest.raises(PolyditError, match="needs its size in its name"):
        RawReader(tmp_path / "Test.yuv")


def test_bench_measures_whole_files(folder):
    clips = {"drift": drift(6, 64, 80)}
    intra = VideoPeer(
        "x264 ultrafast, all intra",
        ("-c:v", "libx264", "-preset", "ultrafast", "-g", "1"),
        ".264",
        (20, 30, 36, 42),
    )
    system = open_small(folder)
    result = bench_videos(clips, system, [2, 4, 6, 8], peers=(intra,))
    for codec in (intra.title, "PolyDiT"):
        points = result.means(codec)
        order = [point["bpp"] for point in points]
        assert order == sorted(order, reverse=codec != "PolyDiT")
        assert all(point["E_warp"] >= 0 and point["PSNR"] > 20 for point in points)
    data = len(system.encode(list(clips["drift"]), 90).data)
    assert (
        0 < result.means("PolyDiT")[1]["bpp"] * 6 * 64 * 80 / 8 - data < 48
    )  # the header and the index count


def test_a_peer_that_fails_is_named():
    broken = VideoPeer("nothing", ("-c:v", "no-such-codec"), ".264", (20,))
    with pytest.raises(PolyditError, match="nothing: ffmpeg failed"):
        broken(drift(2, 32, 32), 20)
