from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polydit.core.cli import main
from polydit.core.errors import PolyditError
from polydit.core.media import LayerStack, OutputWriter, PictureLayer, write_layers
from polydit.tasks.layer_decomposition.evaluate import biharmonic, evaluate, measure, scenes
from polydit.tasks.layer_decomposition.metrics import alpha_error, alpha_sad, region_psnr, soft_iou
from polydit.tasks.layer_decomposition.stack_evaluate import compare_stacks


def test_figures_in_closed_form():
    truth, half = np.zeros((10, 20), np.float32), np.zeros((10, 20), np.float32)
    truth[:, :10], half[:, :10] = 1.0, 0.5
    assert soft_iou(truth, truth) == 1
    assert soft_iou(half, truth) == pytest.approx(0.5)
    assert soft_iou(truth * 0, truth * 0) == 0
    assert alpha_error(half, truth) == pytest.approx(0.25)
    assert alpha_sad(half, truth) == pytest.approx(0.05)
    picture, other = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    other[:2] = 51
    region = np.zeros((4, 4), bool)
    assert region_psnr(picture, other, ~region) == pytest.approx(10 * np.log10(255**2 / (51**2 / 2)))
    region[2:] = True
    assert region_psnr(picture, other, region) == np.inf
    with pytest.raises(ValueError, match="empty"):
        region_psnr(picture, other, region & False)


def test_scenes_are_of_the_reserved_split_and_repeat(corpus: Path):
    first, again = (list(scenes(corpus, 3, 64, 5)) for _ in range(2))
    other = next(scenes(corpus, 1, 64, 6))
    for a, b in zip(first, again, strict=True):
        assert (a.image == b.image).all()
        shaded = (a.alpha > 0.02) & (a.mask == 0)
        assert shaded.any()
        assert (a.image[a.alpha == 0] == a.background[a.alpha == 0]).all()
        shown, hidden = a.image[shaded].astype(int), a.background[shaded].astype(int)
        assert np.abs(shown - hidden).sum() > 0
    assert (first[0].image != other.image).any()


def test_the_truth_gets_full_marks(corpus: Path):
    scene = next(scenes(corpus, 1, 64, 0))
    front = np.dstack([scene.image, np.rint(scene.alpha * 255).astype(np.uint8)])
    figures = measure(scene, scene.background, front, scene.image)
    assert figures["recomposition"] == 99
    assert figures["background"] == np.inf
    assert figures["iou"] > 0.99
    assert figures["mae"] < 2e-3
    assert figures["mask_iou"] < 0.98  # the shadow is not in the mask
    assert figures["biharmonic"] < 60


def test_biharmonic_continues_a_ramp():
    ramp = np.tile(np.linspace(20, 220, 32)[None, :, None], (24, 1, 3)).astype(np.uint8)
    broken, region = ramp.copy(), np.zeros((24, 32), bool)
    region[8:16, 10:20] = True
    broken[region] = 0
    assert np.abs(biharmonic(broken, region).astype(int) - ramp).max() <= 3
    assert (biharmonic(broken, region)[~region] == ramp[~region]).all()


def test_evaluation_with_a_network_that_says_nothing(tiny, corpus: Path):
    rows, shown = evaluate(tiny(awake=False), corpus, 3, 64, sheet=2)
    assert len(rows) == 3
    assert len(shown) == 2
    assert all(row["recomposition"] > 45 for row in rows)
    assert np.mean([row["iou"] - row["mask_iou"] for row in rows]) == pytest.approx(0, abs=0.05)


def test_the_command(tiny, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny(awake=False).save_pretrained(tmp_path / "w")
    words = ["--input", corpus, "--weights", tmp_path / "w", "--count", 2, "--side", 64, "--device", "cpu"]
    files = ["--output", tmp_path / "f.json", "--sheet", tmp_path / "s.png"]
    assert main(["layer-decomposition", "evaluate", *map(str, [*words, *files])]) == 0
    printed = capsys.readouterr().out
    assert "| alpha soft IoU" in printed
    assert "background over biharmonic:" in printed
    record = json.loads((tmp_path / "f.json").read_text())
    assert len(record["rows"]) == 2
    assert set(record["mean"]) >= {"background", "biharmonic", "iou", "sad"}
    assert (tmp_path / "s.png").stat().st_size > 1000
    assert main(["layer-decomposition", "evaluate", *map(str, [*words, *files])]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["layer-decomposition", "evaluate"]) == 2
    assert "--input: required" in capsys.readouterr().err


def test_a_scene_needs_a_corpus(tmp_path: Path):
    with pytest.raises(PolyditError, match="no corpus is here"):
        next(scenes(tmp_path, 1, 64, 0))


def test_scenes_with_reflections_have_no_shadow(corpus: Path):
    for scene in scenes(corpus, 4, 64, 1, effects="reflection"):
        rows = np.flatnonzero((scene.mask > 0).any(1))
        beside = (scene.mask == 0) & (scene.alpha > 0.1) & (np.arange(64) < rows[-1] - 2)[:, None]
        assert beside.mean() < 0.01  # the rim of the object only
    shaded = next(scenes(corpus, 1, 64, 1))
    assert (shaded.alpha != next(scenes(corpus, 1, 64, 1, effects="reflection")).alpha).any()


# -- stacks on disk ------------------------------------------------------------------------------------------------


def some_stack(shades, opacity=1.0) -> LayerStack:
    """Squares of growing side, each over the last, on a canvas of 16 x 16."""
    layers = []
    for index, shade in enumerate(shades):
        side = 16 - 4 * index
        pixels = np.full((side, side, 4), 255, np.uint8)
        pixels[..., :3] = shade
        layers.append(PictureLayer(f"layer {index}", pixels, opacity=opacity if index else 1.0))
    return LayerStack(16, 16, tuple(layers))


def test_stacks_are_scored_by_a_command(tmp_path: Path, capsys):
    true, made = OutputWriter(tmp_path / "true"), OutputWriter(tmp_path / "made")
    write_layers(true, "cat", some_stack((10, 200, 90)))
    write_layers(made, "cat", some_stack((10, 200, 90)))
    write_layers(true, "dog", some_stack((10, 200, 90)))
    two = some_stack((10, 200))
    top = np.full((12, 12, 4), (200, 200, 200, 255), np.uint8)
    top[:8, :8, :3] = 90  # the upper two as one
    write_layers(made, "dog", LayerStack(16, 16, (two.layers[0], PictureLayer("both", top))))
    words = ["layer-decomposition", "evaluate", "--input", str(tmp_path / "made"), "--merges", "2"]
    report = tmp_path / "report.json"
    assert main([*words, "--truth", str(tmp_path / "true"), "--output", str(report)]) == 0
    said = capsys.readouterr().out
    assert "2 stacks of layers" in said
    content = json.loads(report.read_text())
    cat, dog = content["rows"]
    assert [cat["name"], dog["name"]] == ["cat", "dog"]
    assert cat["scores"][0] == {"rgb_l1": 0, "alpha_iou": 1, "cost": 0, "path": [[0, 0], [1, 1], [2, 2]]}
    assert len(content["mean"]) == len(dog["scores"]) == 3
    assert dog["scores"][0]["cost"] > 0.05
    assert dog["scores"][1]["cost"] == pytest.approx(0, abs=1e-6)  # one edit repairs it
    assert main([*words, "--truth", str(tmp_path / "true"), "--output", str(report)]) == 2
    for option in ("--sheet", "--weights"):
        assert main([*words, "--truth", str(tmp_path / "true"), option, str(tmp_path / "s.png")]) == 2
        assert f"{option} {tmp_path / 's.png'}: no network is run with --truth" in capsys.readouterr().err
    assert main([*words, "--truth", str(tmp_path / "true"), "--output", str(tmp_path), "--overwrite"]) == 2
    assert "is a folder; give the name of a file" in capsys.readouterr().err

    write_layers(true, "owl", some_stack((1,)))
    assert main([*words, "--truth", str(tmp_path / "true")]) == 2
    assert "1 of 3 true stacks have no prediction, such as 'owl'" in capsys.readouterr().err
    assert main([*words, "--truth", str(tmp_path / "nothing")]) == 2
    assert "nothing: no layers there; give a folder" in capsys.readouterr().err


def test_the_name_of_a_stack_and_what_is_seen_of_it(tmp_path: Path):
    for name in ("one", "two"):
        writer = OutputWriter(tmp_path / "made" / name)
        write_layers(writer, "x", some_stack((10, 200)))
        (tmp_path / "made" / name / "x_layers.json").rename(tmp_path / "made" / name / "layers.json")
    write_layers(OutputWriter(tmp_path / "true"), "one", some_stack((10, 200), opacity=0.5))
    (row,) = compare_stacks(tmp_path / "made", tmp_path / "true", 0)
    assert row["scores"][0]["alpha_iou"] == pytest.approx(0.75, abs=1e-3)
    write_layers(OutputWriter(tmp_path / "made" / "again"), "one", some_stack((1,)))
    with pytest.raises(PolyditError, match="are both 'one'; rename one"):
        compare_stacks(tmp_path / "made", tmp_path / "true")
