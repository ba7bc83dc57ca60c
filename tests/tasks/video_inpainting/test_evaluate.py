"""Figures of closed form, and the command on a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.metrics.i3d import I3DFeatures, vfid
from polydit.tasks.video_inpainting.baselines import temporal_median
from polydit.tasks.video_inpainting.evaluate import Case, hole_psnr, measure


def test_psnr_in_the_hole_and_what_is_put_back():
    truth = np.full((3, 70, 70, 3), 100, np.uint8)
    masks = np.zeros((3, 70, 70), bool)
    masks[:, 10:20, 10:20] = True
    made = np.full_like(truth, 110)
    assert hole_psnr(made, truth, masks) == pytest.approx(20 * np.log10(255 / 10))
    case = Case("x", truth.copy(), masks, truth)
    figures = measure(case, made)
    assert figures["psnr"] == pytest.approx(20 * np.log10(255 / 10) + 10 * np.log10(49), abs=0.01)
    assert figures["ewarp"] == pytest.approx(0, abs=1e-6)
    assert figures["ssim65"] < 1
    assert measure(case, truth)["hole_psnr"] == 100


def test_the_median_is_exact_for_a_camera_that_stands_still():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 255, (1, 20, 20, 3), dtype=np.uint8), 5, 0)
    masks = np.zeros((5, 20, 20), bool)
    for number in range(5):
        masks[number, 5:9, 3 * number : 3 * number + 4] = True
    given = np.where(masks[..., None], np.uint8(0), truth)
    assert (temporal_median(given, masks) == truth).all()


def test_vfid_of_a_set_with_itself_is_zero_and_of_another_is_not():
    class Means(torch.nn.Module):
        def forward(self, video):
            return video.mean((2, 3, 4))

    rng = np.random.default_rng(0)
    one = [rng.integers(0, 200, (4, 8, 8, 3), dtype=np.uint8) for _ in range(5)]
    assert vfid(Means(), one, one) == pytest.approx(0, abs=1e-9)
    brighter = [video + np.uint8(51) for video in one]
    assert vfid(Means(), brighter, one) == pytest.approx(3 * 0.2**2, rel=1e-3)


def test_i3d_has_the_published_shape():
    with torch.device("meta"):
        network = I3DFeatures()
    # 12,697,264 with the classifier of 400 (1024 * 400 + 400).
    assert sum(p.numel() for p in network.parameters()) == 12_697_264 - 410_000
    assert network.Mixed_5c.b3b.conv3d.weight.shape == (128, 832, 1, 1, 1)
    with torch.device("meta"):
        assert network(torch.zeros(1, 3, 10, 64, 64)).shape == (1, 1024)


def test_the_command_on_a_data_set(weights: Path, moving, tmp_path: Path, capsys):
    for name in ("JPEGImages/480p", "Annotations/480p"):
        (tmp_path / "davis" / name / "pan").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(moving[2][number]).save(tmp_path / f"davis/JPEGImages/480p/pan/{number:05d}.png")
        mask = Image.fromarray(moving[1][number].astype(np.uint8))
        mask.save(tmp_path / f"davis/Annotations/480p/pan/{number:05d}.png")
    (tmp_path / "davis/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "davis/ImageSets/2017/val.txt").write_text("pan\n")
    words = [
        "video-inpainting", "evaluate", "--input", tmp_path / "davis", "--weights", weights, "--peers", "--output",
        tmp_path / "e.json", "--sheet", tmp_path / "s.png",
    ]  # fmt: skip
    assert main(list(map(str, words))) == 0
    table = capsys.readouterr().out
    assert "E_warp x 1000" in table
    found = json.loads((tmp_path / "e.json").read_text())
    assert set(found["mean"]) == {"ours", "fill without the network", "biharmonic", "temporal median", "flow"}
    fill, plain = (found["mean"][name]["hole_psnr"] for name in ("fill without the network", "biharmonic"))
    assert fill > plain + 2
    assert (tmp_path / "s.png").is_file()
    assert main(list(map(str, words))) == 2
    assert "exists already" in capsys.readouterr().err
