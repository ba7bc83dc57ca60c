"""The command on good and on bad files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from clips_of_tests import scene, write_video
from PIL import Image

from polydit.core.cli import main
from polydit.core.data.masks import dilate
from polydit.core.data.video import VideoReader
from polydit.tasks.video_inpainting.pipeline import VideoInpaintingPipeline


def frames_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


def test_a_video_comes_back_with_the_holes_filled(run, files: Path, moving, tmp_path: Path):
    code, record, _ = run("--input", files / "clip.mp4", "--mask", files / "mask.mp4", "--format", "frames")
    assert code == 0
    assert record["frames"] == 12
    assert record["covered"] == pytest.approx(moving[1].mean(), rel=0.1)
    made = frames_of(tmp_path / "out/clip_inpainted")
    given = np.stack([frame.pixels for frame in VideoReader(files / "clip.mp4")])
    far = ~dilate(moving[1], 6)
    assert (made[far] == given[far]).all()
    assert np.abs(made[moving[1]].astype(int) - moving[2][moving[1]]).mean() < 40, "the red square is gone"


def test_a_seed_means_the_same_and_mp4_keeps_rate_and_size(run, files: Path, tmp_path: Path):
    words = ("--input", files / "clip.mp4", "--track", "8,12,10,12@0", "--seed", "4")
    assert run(*words)[0] == 0
    first = (tmp_path / "out/clip_inpainted.mp4").read_bytes()
    assert run(*words, "--overwrite")[0] == 0
    assert (tmp_path / "out/clip_inpainted.mp4").read_bytes() == first
    with VideoReader(tmp_path / "out/clip_inpainted.mp4") as reader:
        assert (reader.width, reader.height, reader.rate) == (56, 40, 10)
        assert len(list(reader)) == 12


def test_folders_of_frames_go_in_and_out(run, moving, tmp_path: Path):
    for name, stack in (("shot", moving[0]), ("masks", moving[1].astype(np.uint8) * 255)):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(stack):
            Image.fromarray(picture).save(tmp_path / name / f"{number:03d}.png")
    code, record, _ = run("--input", tmp_path / "shot", "--mask", tmp_path / "masks", "--format", "frames")
    assert code == 0
    assert record["frames"] == 12
    assert frames_of(tmp_path / "out/shot_inpainted").shape == moving[0].shape


def test_an_empty_mask_copies_and_says_so(run, files: Path, tmp_path: Path):
    Image.new("L", (56, 40)).save(tmp_path / "none.png")
    code, record, said = run(
        "--input", files / "clip.mp4", "--mask", tmp_path / "none.png", "--format", "frames"
    )
    assert code == 0
    assert "no mask covers anything: the frames were copied" in said
    given = np.stack([frame.pixels for frame in VideoReader(files / "clip.mp4")])
    assert (frames_of(tmp_path / "out/clip_inpainted") == given).all()
    assert record["covered"] == 0


def test_the_other_polarity_is_asked_about(run, files: Path, moving, tmp_path: Path):
    Image.fromarray((~moving[1][0]).astype(np.uint8) * 255).save(tmp_path / "keep.png")
    words = ("--input", files / "clip.mp4", "--mask", tmp_path / "keep.png")
    assert "pass --invert" in run(*words)[2]
    assert "pass --invert" not in run(*words, "--invert", "--overwrite")[2]


@pytest.mark.parametrize("size", [(33, 47), (17, 16)])
def test_odd_sizes_and_one_frame(run, tmp_path: Path, size: tuple[int, int]):
    given, masks, _ = scene(1, *size)
    masks[0, 4:9, 4:9] = True
    clip = write_video(tmp_path, "one.webm", given)
    Image.fromarray(masks[0].astype(np.uint8) * 255).save(tmp_path / "m.png")
    with VideoReader(clip) as reader:  # formats without odd sizes continue them by one
        shape = (reader.height, reader.width)
    Image.fromarray(
        np.pad(masks[0], ((0, shape[0] - size[0]), (0, shape[1] - size[1]))).astype(np.uint8) * 255
    ).save(tmp_path / "m.png")
    code, record, _ = run("--input", clip, "--mask", tmp_path / "m.png")
    assert code == 0
    assert record["frames"] == 1


def test_uneven_times_are_kept(run, moving, tmp_path: Path):
    times = [Fraction(n * n + 3 * n, 100) for n in range(12)]
    clip = write_video(tmp_path, "uneven.mp4", moving[0], times=times)
    write_video(tmp_path, "mask.mp4", moving[1], times=times)
    code, _, said = run("--input", clip, "--mask", tmp_path / "mask.mp4")
    assert code == 0
    assert "its frame rate varies" in said
    with VideoReader(tmp_path / "out/uneven_inpainted.mp4") as reader:
        found = [float(frame.time) for frame in reader]
    assert found == pytest.approx([float(time) for time in times], abs=1e-3)


def test_a_file_that_is_cut_short_leaves_no_half_result(run, files: Path, tmp_path: Path):
    whole = (files / "clip.mp4").read_bytes()
    for name, content in (("empty.mp4", b""), ("text.mp4", b"hello")):
        (tmp_path / name).write_bytes(content)
        code, _, said = run("--input", tmp_path / name, "--mask", files / "mask.mp4", "--overwrite")
        assert code == 2
        assert said.startswith(f"polydit: error: {tmp_path / name}: ")
        assert not list((tmp_path / "out").glob("*inpainted*"))
    # An index in front, so that it opens; the pictures end early, which is said.
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    code, record, said = run("--input", tmp_path / "cut.mp4", "--mask", files / "mask.mp4", "--overwrite")
    assert "announces 12 frames and ends after" in said or (code == 2 and "cut short" in said)
    assert code == 2 or record["frames"] < 12


def test_numbers_of_masks_are_compared(run, files: Path, moving, tmp_path: Path):
    for count, line in (
        (11, "holds 11 masks, and clip.mp4 has more frames"),
        (13, "holds more masks than clip.mp4"),
    ):
        folder = tmp_path / f"m{count}"
        folder.mkdir()
        for number in range(count):
            mask = moving[1][min(number, 11)]
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number:03d}.png")
        code, _, said = run("--input", files / "clip.mp4", "--mask", folder)
        assert code == 2
        assert line in said
        assert not list((tmp_path / "out").glob("*.mp4"))


def test_ctrl_c_leaves_no_half_file(run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoInpaintingPipeline, "window", interrupted)
    try:
        code = run("--input", files / "clip.mp4", "--mask", files / "mask.mp4")[0]
    except KeyboardInterrupt:
        code = 130
    assert code != 0
    assert not [file for file in (tmp_path / "out").iterdir() if file.name != "results.json"]


def test_a_stream_of_any_length_holds_a_window(pipe: VideoInpaintingPipeline):
    """Frames are taken as they are needed, a window at a time, and given back."""
    given, masks, _ = scene(4, 16, 16)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield given[taken % 4], np.zeros((16, 16), bool)

    made = pipe.stream(endless(), generator=torch.Generator().manual_seed(0))
    for count in range(1, 40):
        next(made)
        assert taken - count <= pipe.formulation.frames
    made.close()
    assert masks is not None


@pytest.mark.slow
def test_training_then_predict(tmp_path: Path, files: Path, moving, capsys):
    """A few steps on a folder of clips, by the command; what it writes runs."""
    import yaml

    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        write_video(tmp_path / "clips", f"{name}.mp4", moving[0])
    shipped = Path(__file__).parents[3] / "configs/video_inpainting/small.yaml"
    config = yaml.safe_load(shipped.read_text())
    config["model"]["init_args"]["backbone"]["init_args"] |= {"hidden_size": 32, "depth": 1, "num_heads": 1}
    config["data"]["init_args"] |= {
        "path": str(tmp_path / "clips"), "frames": 4, "size": 32, "batch_size": 2, "num_workers": 0, "held_out": 2,
    }  # fmt: skip
    config["trainer"] = {"max_steps": 2, "limit_val_batches": 1}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    words = [
        "video-inpainting",
        "fit",
        "--config",
        tmp_path / "c.yaml",
        "--output",
        tmp_path / "runs",
        "--name",
        "x",
    ]
    main(list(map(str, words)))
    folder = tmp_path / "runs/video_inpainting/x/pipeline"
    words = [
        "video-inpainting", "predict", "--weights", folder, "--input", files / "clip.mp4", "--mask", files / "mask.mp4",
        "--output", tmp_path / "out",
    ]  # fmt: skip
    assert main(list(map(str, words))) == 0
    assert (tmp_path / "out/clip_inpainted.mp4").is_file()
