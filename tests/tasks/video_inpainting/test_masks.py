"""Masks from what users have, and boxes that are followed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from clips_of_tests import write_video
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.tasks.video_inpainting.layouts import find_clips, protocol_masks
from polydit.tasks.video_inpainting.masks import MaskReport, open_masks, read_mask, united, watched
from polydit.tasks.video_inpainting.moving_masks import moving_masks, shifted
from polydit.tasks.video_inpainting.tracking import follow, track

SIZE = (40, 56)


def masks_of(mask, files: Path, frames: int = 12, follow: str | None = None) -> list[np.ndarray]:
    return list(islice(open_masks(mask, follow, files / "clip.mp4", SIZE, frames, MaskReport()), frames))


def test_a_picture_is_for_all_frames(files: Path, moving, tmp_path: Path):
    mask = moving[1][3]
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "grey.png")
    rgba = np.dstack([np.full((*SIZE, 3), 9, np.uint8), mask.astype(np.uint8) * 255])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    palette = Image.fromarray(mask.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0])  # dark red: bright enough for nobody
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "alpha", "palette"):
        found = masks_of(tmp_path / f"{name}.png", files)
        assert len(found) == 12
        assert (found[0] == mask).all(), name
        assert found[11] is found[0]


def test_folders_and_videos_are_frame_by_frame(files: Path, moving, tmp_path: Path):
    for number, mask in enumerate(moving[1]):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{number}.png")  # 10 comes after 9
    assert (np.stack(masks_of(tmp_path, files)) == moving[1]).all()
    found = np.stack(masks_of(files / "mask.mp4", files))
    assert (found != moving[1]).mean() < 0.01, "grey rings of the codec are cut at one half"


def test_boxes_go_in_straight_lines(files: Path, tmp_path: Path):
    table = tmp_path / "boxes.csv"
    table.write_text("frame,x,y,w,h\n2,10,10,4,4\n6,18,14,8,4\n")
    found = masks_of(table, files)
    assert not found[1].any()
    assert not found[7].any()
    assert found[4][12:16, 14:20].all()
    assert found[4].sum() == 24
    table.write_text("frame,x\n1,2\n")
    with pytest.raises(PolyditError, match="its first line is frame,x,y,w,h"):
        masks_of(table, files)


def test_a_box_is_followed_both_ways(files: Path, moving):
    truth = moving[1]
    boxes, lost = track(files / "clip.mp4", (20, 12, 10, 12), 6)
    assert len(boxes) == 12
    assert lost == 0
    for mask, (x, y, w, h) in zip(truth, boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert abs(x - columns.min()) < 2
        assert abs(y - rows.min()) < 2
        assert abs(w - 10) < 3
        assert abs(h - 12) < 3
    found = masks_of(None, files, follow="20,12,10,12@6")
    assert np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(found, truth, strict=True)]) > 0.6
    for words, line in (
        ("5,5", "give x,y,w,h@frame"),
        ("1,1,4,4@99", "frames 0 to 11"),
        ("90,1,4,4", "outside"),
    ):
        with pytest.raises(PolyditError, match=line):
            masks_of(None, files, follow=words)


def test_what_is_lost_is_counted():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (40, 40, 3), dtype=np.uint8) for _ in range(5)]
    boxes, lost = follow(iter(frames), (10, 10, 12, 12))
    assert len(boxes) == 5
    assert lost == 4


@pytest.mark.parametrize("radius", [0, 1, 3, 20])
def test_union_over_time(moving, radius: int):
    masks = moving[1]
    found = list(united(enumerate(masks), radius))
    assert [number for number, _ in found] == list(range(12))
    for number, mask in found:
        assert (mask == masks[max(0, number - radius) : number + radius + 1].any(0)).all()


def test_the_polarity_is_checked(moving):
    report = MaskReport()
    assert (next(iter(watched([moving[1][0]], report, True))) == ~moving[1][0]).all()
    assert "white is what is removed" in report.notes[0]
    assert "pass --invert" in report.notes[0]
    report = MaskReport()
    list(watched(moving[1], report, False))
    assert report.notes == []
    assert report.covered == pytest.approx(moving[1].mean())


def test_numbers_and_sizes_that_differ_are_told(files: Path, moving, tmp_path: Path):
    for number in range(3):
        Image.fromarray(moving[1][0]).save(tmp_path / f"{number}.png")
    with pytest.raises(
        PolyditError, match=r"holds 3 masks, and clip\.mp4 has 12 frames; give one mask for each"
    ):
        masks_of(tmp_path, files)
    small = write_video(tmp_path / "small", "m.mp4", moving[1][:, :20, :20])
    with pytest.raises(PolyditError, match=r"is 20x20 and clip.mp4 56x40"):
        masks_of(small, files)
    Image.new("L", (9, 9)).save(tmp_path / "nine.png")
    with pytest.raises(PolyditError, match=r"is 9x9 and clip\.mp4 56x40"):
        masks_of(tmp_path / "nine.png", files)
    with pytest.raises(PolyditError, match="no such file"):
        masks_of(tmp_path / "none.png", files)
    with pytest.raises(PolyditError, match="one of the two"):
        masks_of(None, files)


def test_random_masks_stay_partly_inside():
    for seed in range(12):
        masks = moving_masks(10, (48, 64), np.random.default_rng(seed), still=0.3)
        assert masks.shape == (10, 48, 64)
        assert masks[0].any()
        assert 0 < masks.mean() < 0.5
    moved = shifted(np.eye(4, dtype=bool), 1, 2)
    assert moved.sum() == 2
    assert moved[1, 2]
    assert moved[2, 3]
    assert not shifted(np.eye(4, dtype=bool), 9, -9).any()


# -- data sets ------------------------------------------------------------------------------------------------


def picture(file: Path, value: int = 100) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if file.suffix == ".jpg" else "L", (16, 12), value).save(file)


def test_davis(tmp_path: Path):
    for name in ("bear", "camel"):
        for n in range(2):
            picture(tmp_path / f"JPEGImages/480p/{name}/{n:05d}.jpg")
            picture(tmp_path / f"Annotations/480p/{name}/{n:05d}.png", 1)
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("camel\n")
    [clip] = find_clips(tmp_path, "auto", "val")
    assert clip.name == "camel"
    assert clip.masks is not None
    assert read_mask(clip.masks / "00000.png").sum() == 0, "1 of 255 is no white"
    assert protocol_masks(clip.masks).all(), "and an object of a data set"
    with pytest.raises(PolyditError, match=r"train\.txt: no such file"):
        find_clips(tmp_path, "davis", "train")


def test_youtube_vos_and_propainter(tmp_path: Path):
    picture(tmp_path / "y/train_all_frames/JPEGImages/a1/00000.jpg")
    picture(tmp_path / "y/train/Annotations/a1/00000.png")
    [clip] = find_clips(tmp_path / "y")
    assert clip.masks == tmp_path / "y/train/Annotations/a1"
    picture(tmp_path / "p/JPEGImages_432_240/b2/00000.jpg")
    picture(tmp_path / "p/test_masks/b2/00000.png")
    (tmp_path / "p/test.json").write_text('{"b2": 1, "c3": 4}')
    [clip] = find_clips(tmp_path / "p", "auto", "test")
    assert (clip.name, clip.masks) == ("b2", tmp_path / "p/test_masks/b2")


def test_the_protocol_grows_masks_four_times_by_a_cross(tmp_path: Path):
    mask = np.zeros((21, 21), np.uint8)
    mask[10, 10] = 1
    Image.fromarray(mask).save(tmp_path / "00000.png")
    grown = protocol_masks(tmp_path)[0]
    rows, columns = np.indices((21, 21)) - 10
    assert (grown == (np.abs(rows) + np.abs(columns) <= 4)).all()


def test_folders_of_clips_and_what_is_missing(tmp_path: Path, moving):
    picture(tmp_path / "one/0.png")
    write_video(tmp_path, "two.mp4", moving[0][:2])
    assert [clip.name for clip in find_clips(tmp_path)] == ["one", "two"]
    (tmp_path / "empty/train/JPEGImages").mkdir(parents=True)
    with pytest.raises(PolyditError, match="no clip in the layout youtube-vos"):
        find_clips(tmp_path / "empty")
    with pytest.raises(PolyditError, match="no such folder"):
        find_clips(tmp_path / "none")
