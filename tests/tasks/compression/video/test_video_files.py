import contextlib
import io
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from polydit.core.cli import main
from polydit.core.data.video import VideoReader
from polydit.core.errors import PolyditError
from polydit.core.media import OutputWriter
from polydit.tasks.compression.container import (
    AUDIO,
    PRIVATE,
    Container,
    Timing,
    read_container,
    write_stream,
)
from polydit.tasks.compression.video.small_system import open_small
from polydit.tasks.compression.video.video_file import Groups, GroupSpool, pack_times, times_of, unpack_times
from polydit.tasks.compression.video.video_io import encode_video

from .conftest import drift, write_clip


def run(*words):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(["compression", *map(str, words)])
    return code, said.getvalue()


def frames_of(path):
    with VideoReader(path) as reader:
        found = list(reader)
    return np.stack([f.pixels for f in found]), [f.time for f in found]


@pytest.fixture(scope="module")
def coded(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("coded")
    clip = write_clip(place / "clip.mp4", drift(28, 48, 64))
    code, said = run("encode", clip, place / "clip.pdc", "--weights", folder, "--quality", 5)
    assert code == 0, said
    return place


def test_a_clip_is_coded_and_decoded(coded, folder):
    code, said = run("decode", coded / "clip.pdc", coded / "out.mp4", "--weights", folder)
    assert code == 0
    assert "28 frames of 64x48" in said
    frames, times = frames_of(coded / "out.mp4")
    assert times == [Fraction(n, 10) for n in range(28)]
    error = (frames.astype(float) - drift(28, 48, 64)) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 27
    assert (coded / "clip.pdc").stat().st_size < 0.1 * frames.nbytes


def test_any_group_is_found_without_the_others(coded, folder):
    data = (coded / "clip.pdc").read_bytes()
    content = read_container(data, "clip.pdc")
    groups = Groups(content, "clip.pdc")
    assert [groups.frames_of(n) for n in range(len(groups))] == [25, 3]
    system = open_small(folder)
    last = list(system.decode(groups[1], 1, 3, (48, 64), content.quality))
    assert np.abs(last[0].astype(int) - drift(28, 48, 64)[25]).mean() < 12
    size = (48, 64)
    whole = [
        frame
        for number, group in enumerate(groups)
        for frame in system.decode(group, number, groups.frames_of(number), size, content.quality)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(whole[25:], last, strict=True))


def test_changing_a_frame_changes_no_earlier_group(folder):
    clips = [drift(27, 32, 32), drift(27, 32, 32)]
    clips[1][26, 8:20] ^= 31
    groups = []
    for frames in clips:
        system = open_small(folder)
        groups.append([system.encode(list(frames[:25]), 100), system.encode(list(frames[25:]), 100)])
    assert groups[0][0].data == groups[1][0].data
    assert groups[0][1].data != groups[1][1].data


def test_uneven_times_come_back(folder, tmp_path):
    times = [0, 0.1, 0.2, 0.7, 0.8]
    clip = write_clip(tmp_path / "a.mp4", drift(5, 32, 48), times)
    code, said = run("encode", clip, tmp_path / "a.pdc", "--weights", folder)
    assert (code, "its frame rate varies" in said) == (0, True)
    assert run("decode", tmp_path / "a.pdc", tmp_path / "b.mp4", "--weights", folder)[0] == 0
    assert [round(float(t), 3) for t in frames_of(tmp_path / "b.mp4")[1]] == times


def test_sound_is_copied(folder, tmp_path):
    silent = write_clip(tmp_path / "a.mp4", drift(6, 32, 48))
    loud = tmp_path / "loud.mp4"
    with av.open(str(silent)) as source, av.open(str(loud), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        tone = out.add_stream("aac", rate=16000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
        wave = (np.sin(np.arange(9600) / 6) * 8000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.rate, frame.pts = 16000, 0
        out.mux(tone.encode(frame))
        out.mux(tone.encode())
    code, said = run("encode", loud, tmp_path / "a.pdc", "--weights", folder)
    assert (code, "sound copied (aac)" in said) == (0, True)
    code, said = run("decode", tmp_path / "a.pdc", tmp_path / "b.mp4", "--weights", folder)
    assert "(sound copied)" in said

    def packets(path):
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    assert packets(tmp_path / "b.mp4") == packets(loud)
    code, said = run("decode", tmp_path / "a.pdc", tmp_path / "b.gif", "--weights", folder)
    assert "holds no sound" in said


def test_a_wanted_size_is_kept(folder, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", drift(6, 64, 64))
    sizes = {}
    for wanted in (1200, 4000):
        target = tmp_path / f"{wanted}.pdc"
        assert run("encode", clip, target, "--weights", folder, "--target-size", wanted)[0] == 0
        sizes[wanted] = target.stat().st_size
        assert 0.5 * wanted < sizes[wanted] <= wanted
    code, said = run("encode", clip, tmp_path / "c.pdc", "--weights", folder, "--target-size", 60)
    assert (code, "allow more" in said) == (2, True)


def test_other_weights_and_damage_are_refused(coded, folder, codec, tmp_path):
    from polydit.tasks.compression.video.pipeline import VideoCompressionPipeline

    other = codec.frozen_copy()
    other.inter.tables.counts[5, 3] += 1
    VideoCompressionPipeline(other).save_pretrained(tmp_path / "other")
    code, said = run("decode", coded / "clip.pdc", tmp_path / "x.mp4", "--weights", tmp_path / "other")
    assert code == 2
    assert "was coded with the weights" in said
    data = (coded / "clip.pdc").read_bytes()
    (tmp_path / "cut.pdc").write_bytes(data[: len(data) // 2])
    code, said = run("decode", tmp_path / "cut.pdc", tmp_path / "x.mp4", "--weights", folder)
    assert (code, said.count("\n")) == (2, 1)
    assert not (tmp_path / "x.mp4").exists()


def content_of(frames, group, data=b""):
    timing = Timing(frames, (25, 1), group)
    return Container(1, 100, b"abcd", 64, 48, data, timing=timing)


def test_a_stream_of_parts_is_the_file_of_their_sum():
    content = content_of(10, 5)
    file = io.BytesIO()
    size = write_stream(file, content, {AUDIO: io.BytesIO(b"sound")}, io.BytesIO(b"coded data"))
    assert size == len(file.getvalue())
    read = read_container(file.getvalue(), "x")
    assert (read.data, read.sections, read.timing) == (b"coded data", {AUDIO: b"sound"}, content.timing)
    view = read_container(memoryview(file.getvalue()), "x")
    assert bytes(view.data) == read.data


def test_an_index_that_does_not_fit_is_refused():
    from polydit.tasks.compression.video.groups import Group

    def file_of(*groups, frames=10):
        with GroupSpool() as spool:
            for data in groups:
                spool.add(Group(data, 7))
            target = io.BytesIO()
            assert spool.size({}) >= spool.finish(target, content_of(frames, 5), {})
        return read_container(target.getvalue(), "x.pdc")

    found = Groups(file_of(b"first", b"next"), "x.pdc")
    assert [g.data for g in found] == [b"first", b"next"]
    assert found[1].symbols == 7
    rng = np.random.default_rng(0)
    good = bytes(found.data)
    with pytest.raises(PolyditError, match=r"x\.pdc: the index of its groups makes no sense"):
        Groups(file_of(b"only one"), "x.pdc")
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(len(bad) - 10, len(bad))] ^= 1 << rng.integers(8)
        with contextlib.suppress(PolyditError):
            for group in Groups(content_of(10, 5, bytes(bad)), "x.pdc"):
                assert len(group.data) <= len(good)


def test_times_are_packed_and_checked():
    times = [0, 3000, 6003, 90000]
    assert unpack_times(pack_times(times), 4, "x") == times
    for wrong in (pack_times(times)[:-1], pack_times(times) + b"\x80"):
        with pytest.raises(PolyditError, match="the times of its frames are damaged"):
            unpack_times(wrong, 4, "x")
    content = content_of(4, 4)
    content.sections[PRIVATE] = pack_times(times)
    assert list(times_of(content, "x"))[3] == 1


def test_memory_does_not_grow_with_the_length(folder, tmp_path):
    """One group at a time is asked of the reader and given to the coder."""
    clip = write_clip(tmp_path / "long.mp4", drift(60, 32, 32))
    system = open_small(folder)
    held, encode = [], system.encode

    def counted(frames, index):
        held.append(len(frames))
        return encode(frames[:2], index)

    system.encode = counted
    options = Namespace(target_bpp=None, target_size=None)
    encode_video(system, clip, OutputWriter(tmp_path), "long.pdc", 60, options)
    assert held == [25, 25, 10]
    assert Path(tmp_path / "long.pdc").is_file()
