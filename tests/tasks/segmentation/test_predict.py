"""The commands: files that are written, videos, and one line for what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from discs import disc
from PIL import Image

from polydit.core.cli import main
from polydit.core.data.composites import Compositor
from polydit.core.data.video import VideoReader
from polydit.core.media import OutputWriter
from polydit.tasks.segmentation import TASK
from polydit.tasks.segmentation.cutout import cut_out, on_background, overlay, piece_at
from polydit.tasks.segmentation.metrics import Example, evaluate
from polydit.tasks.segmentation.peers import colour_models, otsu
from polydit.tasks.segmentation.predict import SEGMENTERS


@pytest.fixture
def predict(weights, tmp_path):
    def run(source, *words):
        command = [
            "segmentation",
            "predict",
            "--input",
            source,
            "--output",
            tmp_path / "out",
            "--weights",
            weights,
        ]
        return main(list(map(str, [*command, *words]))), tmp_path / "out"

    return run


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.fromarray(disc(60, 80)[0]).save(path)
    return path


def test_alpha_mask_and_cutout_are_written(predict, picture):
    code, out = predict(picture)
    assert code == 0
    assert {p.name for p in out.iterdir()} == {
        "red_alpha.png",
        "red_mask.png",
        "red_cutout.png",
        "results.json",
    }
    alpha, mask, cutout = (Image.open(out / f"red_{name}.png") for name in ("alpha", "mask", "cutout"))
    assert (alpha.mode, mask.mode, cutout.mode) == ("L", "L", "RGBA")
    assert alpha.size == mask.size == cutout.size == (80, 60)
    assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert np.array_equal(np.asarray(mask) > 0, np.asarray(alpha) > 127)
    assert np.array_equal(np.asarray(cutout)[..., 3], np.asarray(alpha))
    report = json.loads((out / "results.json").read_text())
    (record,) = report["inputs"]
    assert record["size"] == [80, 60]
    assert record["foreground"] == pytest.approx((np.asarray(mask) > 0).mean(), abs=1e-3)


def test_edges_and_overlay_on_request(predict, picture):
    code, out = predict(picture, "--edges", "--overlay")
    assert code == 0
    assert Image.open(out / "red_edges.png").mode == "L"
    assert Image.open(out / "red_overlay.png").mode == "RGB"


def test_a_folder_and_nothing_twice(predict, folders, capsys):
    code, out = predict(folders[0])
    assert code == 0
    assert len(list(out.glob("*_alpha.png"))) == 6
    stamp = {p: p.stat().st_mtime_ns for p in out.glob("*.png")}
    assert predict(folders[0])[0] == 0
    assert "6 kept" in capsys.readouterr().err
    assert stamp == {p: p.stat().st_mtime_ns for p in out.glob("*.png")}


def test_same_seed_same_bytes(predict, picture):
    _, out = predict(picture, "--seed", 3)
    first = (out / "red_alpha.png").read_bytes()
    predict(picture, "--seed", 3, "--overwrite")
    assert (out / "red_alpha.png").read_bytes() == first


@pytest.mark.parametrize("kind", ["alpha", "mask"])
def test_a_video_becomes_a_grey_one(predict, tmp_path, kind):
    pytest.importorskip("av")
    from fractions import Fraction

    from polydit.core.media.video import VideoWriter

    clip = tmp_path / "clip.mp4"
    with clip.open("wb") as file, VideoWriter(file, 48, 40, Fraction(5)) as video:
        for number in range(3):
            video.write(disc(40, 48, number)[0], Fraction(number, 5))
    code, out = predict(clip, "--video", kind)
    assert code == 0
    with VideoReader(out / f"clip_{kind}.mp4") as reader:
        frames = [frame.pixels for frame in reader]
    assert len(frames) == 3
    assert frames[0].shape == (40, 48, 3)
    truth = disc(40, 48, 0)[1] > 127
    assert ((frames[0][..., 0] > 127) == truth).mean() > 0.9
    assert frames[0][..., 0].std() > 20
    assert np.ptp(frames[0].astype(int), axis=-1).max() < 12, "grey"


@pytest.mark.parametrize(
    ("words", "flag"),
    [(["--point", "foo"], "--point"), (["--edges"], "--edges"), (["--overlay"], "--overlay")],
)
def test_what_a_video_cannot_have_is_refused(predict, tmp_path, capsys, words, flag):
    pytest.importorskip("av")
    from fractions import Fraction

    from polydit.core.media.video import VideoWriter

    clip = tmp_path / "clip.mp4"
    with clip.open("wb") as file, VideoWriter(file, 48, 40, Fraction(5)) as video:
        video.write(disc(40, 48)[0], Fraction(0))
    assert predict(clip, *words)[0] == 2
    assert f"clip.mp4: of a video only masks are written, without {flag}" in capsys.readouterr().err


def test_the_soft_mask_is_written_last_and_named_first(predict, picture, monkeypatch):
    written, image = [], OutputWriter.image

    def note(self, name, *args, **options):
        written.append(name)
        return image(self, name, *args, **options)

    monkeypatch.setattr(OutputWriter, "image", note)
    _, out = predict(picture, "--edges", "--overlay")
    names = [f"red_{name}.png" for name in ("alpha", "mask", "cutout", "edges", "overlay")]
    assert written == [*names[1:], names[0]]
    assert json.loads((out / "results.json").read_text())["inputs"][0]["files"] == names


def test_a_box_outside_of_one_picture_leaves_the_others_alone(predict, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, side in (("a", 20), ("b", 60)):
        Image.fromarray(disc(side, side)[0]).save(tmp_path / "in" / f"{name}.png")
    code, out = predict(tmp_path / "in", "--box", "30,30,50,50")
    assert code == 2
    assert "a.png: --box 30,30,50,50: nothing of it lies in the picture (20x20)" in capsys.readouterr().err
    assert (out / "b_alpha.png").exists()


def test_a_point_keeps_the_edges_of_its_piece_only(predict, tmp_path):
    left = disc(60, 60, 1)[0]
    Image.fromarray(np.concatenate([left, left], axis=1)).save(tmp_path / "two.png")
    whole = np.asarray(Image.open(predict(tmp_path / "two.png", "--edges")[1] / "two_edges.png"))
    _, out = predict(tmp_path / "two.png", "--edges", "--point", "30,30", "--overwrite")
    edges, alpha = (np.asarray(Image.open(out / f"two_{name}.png")) for name in ("edges", "alpha"))
    assert not alpha[:, 70:].any()
    assert not edges[:, 70:].any()
    assert whole[:, 70:].any()
    assert np.array_equal(edges[:, :50], whole[:, :50])


def test_a_threshold_that_is_given_wins(predict, picture):
    alpha = np.asarray(Image.open(predict(picture, "--threshold", 0.9)[1] / "red_alpha.png"))
    mask = np.asarray(Image.open(predict(picture, "--threshold", 0.9)[1] / "red_mask.png")) > 0
    assert np.array_equal(mask, alpha > 229)


def test_larger_tiles_see_more_of_a_large_picture(predict, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(disc(300, 400)[0]).save(path)
    found = []
    for side in (64, 320):
        code, out = predict(path, "--detail-side", side, "--overwrite")
        assert code == 0
        found.append(np.asarray(Image.open(out / "large_alpha.png")))
    assert not np.array_equal(*found)


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--threshold", "1.5"], "--threshold 1.5: must lie between 0 and 1"),
        (["--box", "1,2,3"], "--box 1,2,3: give 4 whole numbers, such as 10,20,30,40"),
        (["--box", "500,500,600,600"], "nothing of it lies in the picture (80x60)"),
        (["--point", "left"], "--point left: give 2 whole numbers"),
        (
            ["--detail", "guided", "--detail-side", "512"],
            "--detail-side 512: is of tiles, and --detail guided",
        ),
        (["--steps", "4"], "--steps 4: masks are predicted in one step"),
        (
            ["--support", "a.png", "--support-mask", "b.png"],
            "--support: SegmentationPipeline does not use it, it is for few-shot weights",
        ),
        (["--support-mask", "b.png"], "--support-mask: SegmentationPipeline does not use it"),
        (["--depth", "/nonexistent"], "--depth: SegmentationPipeline does not use it, it is for PDFNet"),
    ],
)
def test_wrong_options_end_in_one_line(predict, picture, capsys, words, line):
    code, _ = predict(picture, *words)
    error = capsys.readouterr().err
    assert code == 2
    assert line in error
    assert "Traceback" not in error


def test_weights_of_another_task_are_refused(picture, tmp_path, capsys):
    other = TASK.root() / "demos/weights/super_resolution"
    words = ["segmentation", "predict", "--input", picture, "--output", tmp_path / "o", "--weights", other]
    assert main(list(map(str, words))) == 2
    assert "super-resolution" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "CMYK"])
def test_pictures_of_every_mode(predict, tmp_path, mode):
    path = tmp_path / ("odd.tif" if mode == "CMYK" else "odd.png")
    Image.fromarray(disc(40, 40)[0]).convert(mode).save(path)
    code, out = predict(path)
    assert code == 0
    assert Image.open(out / "odd_cutout.png").mode == "RGBA"


def test_an_object_of_one_pixel_and_an_empty_picture(predict, tmp_path):
    dot = np.zeros((48, 48, 3), np.uint8)
    dot[20, 20] = (255, 30, 30)
    for name, pixels in (("dot", dot), ("empty", 0 * dot)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        code, out = predict(tmp_path / f"{name}.png")
        assert code == 0
        assert Image.open(out / f"{name}_cutout.png").size == (48, 48)


# -- pictures of the result --------------------------------------------------------------------------------


def test_the_rim_of_a_cutout_takes_nothing_of_the_old_background():
    """A soft red disc on green: over blue the naive cut-out has green in its rim, this one has not."""
    y, x = np.mgrid[:64, :64]
    alpha = np.clip((20 - np.hypot(x - 32, y - 32)) / 6 + 0.5, 0, 1).astype(np.float32)
    red, green, blue = np.eye(3) * 255
    picture = np.rint(alpha[..., None] * red + (1 - alpha[..., None]) * green).astype(np.uint8)
    ours = on_background(cut_out(picture, alpha), blue)
    naive = on_background(np.dstack([picture, np.rint(alpha * 255)]).astype(np.uint8), blue)
    truth = alpha[..., None] * red + (1 - alpha[..., None]) * blue
    assert np.abs(ours - truth).max() < 8
    assert np.abs(naive - truth).max() > 50


def test_masks_that_are_empty_or_all_give_sensible_cutouts():
    picture = disc(20, 20)[0]
    assert not cut_out(picture, np.zeros((20, 20), np.float32))[..., 3].any()
    assert np.array_equal(cut_out(picture, np.ones((20, 20), np.float32))[..., :3], picture)
    assert overlay(picture, np.ones((20, 20), np.float32)).shape == picture.shape


def test_a_point_keeps_one_piece():
    alpha = np.zeros((20, 30), np.float32)
    alpha[4:8, 4:8] = 0.9
    alpha[10:18, 20:28] = 1
    for point, expected in (((5, 5), 16), ((25, 15), 64), ((0, 0), 16)):
        piece, around = piece_at(alpha, *point)
        assert (alpha[piece] > 0).sum() == piece.sum() == expected
        assert (alpha[around] > 0).sum() == expected < around.sum()
    assert all(where.all() for where in piece_at(0 * alpha, 3, 3)), "nothing is left out of nothing"


def test_every_system_has_a_way_to_segment():
    assert {path.rpartition(":")[2] for path in TASK.pipelines().values()} <= set(SEGMENTERS)


# -- evaluation --------------------------------------------------------------------------------------------


def test_measures_of_the_mask_itself_are_perfect_and_peers_are_between():
    examples = [Example(*disc(48, 64, seed), None) for seed in range(3)]
    truth = {id(e.picture): e.mask for e in examples}
    result = evaluate(
        {
            "truth": lambda picture, _: truth[id(picture)].astype(np.float32) / 255,
            "otsu": lambda picture, _: otsu(picture),
            "colours": lambda picture, _: colour_models(picture),
            "nothing": lambda picture, _: np.zeros(picture.shape[:2], np.float32),
        },
        examples,
        "discs",
    )
    assert result.scores["truth"]["max_f"] == pytest.approx(1)
    assert result.scores["truth"]["mae"] == 0
    for peer in ("otsu", "colours"):
        assert result.scores[peer]["max_f"] > result.scores["nothing"]["max_f"] + 0.3
    assert "max F" in result.table().markdown()


def test_the_command_writes_its_figures(weights, folders, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    words = ["segmentation", "evaluate", "--input", folders[0], "--masks", folders[1], "--weights", weights]
    assert main(list(map(str, [*words, "--output", figures, "--peers"]))) == 0
    scores = json.loads(figures.read_text())["scores"]
    assert len(scores) == 3
    assert scores[weights.name]["max_f"] > 0.8
    assert "6 pictures" in capsys.readouterr().out
    assert main(list(map(str, [*words, "--output", figures]))) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give a folder of pictures and --masks"),
        (["--composites", "3", "--input", "x"], "leave --input and --masks out"),
        (["--composites", "3", "--corpus", "nowhere"], "nowhere: no corpus is here"),
        (["--composites", "3", "--binarize", "5"], "--binarize 5: must lie between 0 and 1"),
        (["--composites", "3", "--output", "."], "--output .: is a folder; give the name of a JSON file"),
        (["--input", "x", "--masks", "y", "--size", "64"], "--size: is for --composites"),
        (["--input", "x", "--masks", "y", "--small"], "--small: is for --composites"),
        (["--input", "x", "--masks", "y", "--split", "val"], "--split: is for --composites"),
    ],
)
def test_evaluate_says_what_it_misses(weights, capsys, words, line):
    assert main(["segmentation", "evaluate", "--weights", str(weights), *words]) == 2
    assert line in capsys.readouterr().err


def test_evaluate_leaves_out_what_cannot_be_read(weights, folders, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    files = sorted(folders[0].iterdir())
    files[1].write_bytes(b"nonsense")
    words = ["segmentation", "evaluate", "--input", folders[0], "--masks", folders[1], "--weights", weights]
    assert main(list(map(str, [*words, "--output", figures]))) == 2
    said = capsys.readouterr()
    assert f"{files[1]}: not a picture that can be read" in said.err
    assert "1 of 6 pictures are not in the table" in said.err
    assert "5 pictures" in said.out
    assert json.loads(figures.read_text())["count"] == 5
    for file in files:
        file.write_bytes(b"nonsense")
    assert main(list(map(str, words))) == 2
    assert "none of 6 pictures could be evaluated" in capsys.readouterr().err


def test_evaluate_refuses_what_the_weights_do_not_use(weights, folders, capsys):
    words = ["--input", folders[0], "--masks", folders[1], "--weights", weights, "--depth", "nowhere"]
    assert main(["segmentation", "evaluate", *map(str, words)]) == 2
    assert "--depth: SegmentationPipeline does not use it" in capsys.readouterr().err


def test_reserved_composites_are_seeded(tmp_path, monkeypatch):
    from polydit.tasks.segmentation import metrics

    photo, cutout = tmp_path / "p.png", tmp_path / "c.png"
    picture, mask = disc(64, 64)
    Image.fromarray(picture[..., ::-1].copy()).save(photo)
    Image.fromarray(np.dstack([picture, mask])).save(cutout)
    monkeypatch.setattr(
        metrics.Compositor,
        "from_corpus",
        classmethod(lambda cls, *a, **k: Compositor([photo], [cutout], 64, a[3])),
    )
    one, two = (list(metrics.composites("corpus", 3, 64, seed=1)) for _ in range(2))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0].picture, one[1].picture)
