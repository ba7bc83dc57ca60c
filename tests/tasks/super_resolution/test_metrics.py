"""The test protocol against its parts, and the command that runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.data.degradation import PRESETS
from polydit.core.data.pairs import match
from polydit.core.errors import PolyditError
from polydit.core.metrics import psnr, ssim
from polydit.tasks.super_resolution import DEGRADATIONS
from polydit.tasks.super_resolution.metrics import evaluate


def test_the_static_list_of_degradations_is_true():
    assert set(DEGRADATIONS) == set(PRESETS)


def test_figures_are_those_of_the_metrics_on_the_cut_picture(tiny, pictures):
    pipe, path = tiny(), pictures / "picture_0.png"
    high = np.asarray(Image.open(path))[:54, :63]  # a multiple of 3
    low = Image.fromarray(high).resize((21, 18), Image.Resampling.BICUBIC)
    expected = np.asarray(pipe(low, scale=3, generator=torch.Generator().manual_seed(0)).images[0])
    score = evaluate(pipe, [path], scale=3).scores[0]
    assert (score.picture, score.width, score.height) == ("picture_0", 63, 54)
    for name, channels in (("", "rgb"), ("_y", "y")):
        assert getattr(score, f"psnr{name}") == pytest.approx(
            float(psnr(expected, high, channels=channels, crop=3)), abs=0.02
        )
        assert getattr(score, f"ssim{name}") == pytest.approx(
            float(ssim(expected, high, channels=channels, crop=3)), abs=1e-3
        )
    bicubic = np.asarray(low.resize((63, 54), Image.Resampling.BICUBIC))
    assert score.psnr_bicubic == pytest.approx(float(psnr(bicubic, high, crop=3)), abs=0.05)
    assert score.gain == score.psnr - score.psnr_bicubic


def test_larger_pictures_are_cut_to_their_middle(tiny, pictures):
    whole = evaluate(tiny(), [pictures / "picture_0.png"], scale=4)
    cut = evaluate(tiny(), [pictures / "picture_0.png"], scale=4, limit_side=42)
    assert (whole.scores[0].width, whole.scores[0].height) == (64, 56)
    assert (cut.scores[0].width, cut.scores[0].height) == (40, 40)
    again = evaluate(tiny(), [pictures / "picture_0.png"], scale=4, limit_side=42)
    assert again.scores == cut.scores


def test_a_degradation_depends_on_seed_and_number(tiny, pictures):
    files = [pictures / f"picture_{i}.png" for i in (0, 0, 1)]
    run = evaluate(tiny(), files, degradation="mild", scale=2, seed=3)
    assert run.scores[0].psnr_bicubic != run.scores[1].psnr_bicubic  # the same picture, other draws
    assert evaluate(tiny(), files, degradation="mild", scale=2, seed=3).scores == run.scores
    assert evaluate(tiny(), files, degradation="mild", scale=2, seed=4).scores != run.scores


def test_pairs_are_compared_as_they_are(tiny, pictures, tmp_path):
    (tmp_path / "low").mkdir()
    for path in pictures.iterdir():
        picture = Image.open(path)
        picture.resize((16, 14), Image.Resampling.BICUBIC).save(tmp_path / "low" / f"{path.stem}x4.png")
    files = sorted(pictures.iterdir())
    pairs = match(files, sorted((tmp_path / "low").iterdir()))
    for limit in (None, 40):
        of_pairs = evaluate(tiny(), pairs, scale=4, limit_side=limit)
        own = evaluate(tiny(), files, scale=4, limit_side=None)
        assert of_pairs.degradation == "pairs"
        if limit is None:
            assert [s.psnr for s in of_pairs.scores] == pytest.approx([s.psnr for s in own.scores], abs=0.02)
        else:
            assert of_pairs.scores[0].width == of_pairs.scores[0].height == 40
            # Cut alike: the bicubic figure is that of the same scene, not of a shifted one.
            assert of_pairs.mean("psnr_bicubic") == pytest.approx(own.mean("psnr_bicubic"), abs=2)
    with pytest.raises(PolyditError, match=r"16x14 is not picture_0.png \(64x56\) divided by 2"):
        evaluate(tiny(), pairs, scale=2)


def test_small_pictures_have_no_ssim_and_tiny_ones_are_refused(tiny, tmp_path):
    Image.new("RGB", (18, 18), (9, 200, 30)).save(tmp_path / "small.png")
    score = evaluate(tiny(), [tmp_path / "small.png"], scale=4).scores[0]
    assert score.ssim is None
    assert score.psnr > 0
    Image.new("RGB", (8, 30)).save(tmp_path / "tiny.png")
    with pytest.raises(PolyditError, match=r"tiny.png: 8x30 leaves nothing inside a border of 4"):
        evaluate(tiny(), [tmp_path / "tiny.png"], scale=4)


def test_the_table_has_a_row_per_picture_and_their_mean(tiny, pictures):
    run = evaluate(tiny(), sorted(pictures.iterdir()), scale=4)
    lines = run.table().markdown().splitlines()
    assert len(lines) == 2 + 3 + 1
    assert lines[2].startswith("| picture_0 | 64x56 |")
    assert f"{np.mean([s.gain for s in run.scores]):.3f}" in lines[-1]
    record = run.record()
    assert record["mean"]["gain"] == pytest.approx(record["mean"]["psnr"] - record["mean"]["psnr_bicubic"])
    assert [p["picture"] for p in record["pictures"]] == ["picture_0", "picture_1", "picture_2"]


def test_the_command_prints_a_table_and_writes_json(tiny, pictures, tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "weights")
    words = [
        "super-resolution",
        "evaluate",
        "--input",
        pictures,
        "--weights",
        tmp_path / "weights",
        "--scale",
        "2",
    ]
    words = [*map(str, [*words, "--output", tmp_path / "figures.json"])]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "x2, bicubic" in shown.out
    assert "| picture_2 |" in shown.out
    gain = json.loads((tmp_path / "figures.json").read_text())["mean"]["gain"]
    assert f"mean gain over bicubic: {gain:+.2f} dB" in shown.out
    assert main(words) == 2
    assert "figures.json: exists already; pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--degradation", "mild", "--limit-side", "40"]) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["degradation"] == "mild"
    assert written["pictures"][0]["width"] == 40
    assert main(["super-resolution", "evaluate"]) == 2
    assert "--input: required" in capsys.readouterr().err
