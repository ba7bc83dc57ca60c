"""The figures: closed forms, baselines that can be checked by eye, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.cli import main
from polydit.core.metrics import frechet_distance, psnr
from polydit.tasks.virtual_try_on import CATEGORIES, LABELS
from polydit.tasks.virtual_try_on import masks as masks_module
from polydit.tasks.virtual_try_on.metrics import distribution_distances, evaluate, masked_psnr, pasted


def batch(count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    person = torch.rand(count, 3, 24, 16, generator=generator) * 2 - 1
    garment = torch.ones(count, 3, 24, 16)
    garment[:, :, 6:18, 4:12] = torch.tensor([0.5, -0.5, 0.0])[None, :, None, None]
    shape = (garment[:, :1] < 1).float()
    mask = torch.zeros(count, 1, 24, 16)
    mask[:, :, 8:20, 2:14] = 1
    worn = torch.zeros_like(mask)
    worn[:, :, 10:18, 4:12] = 1
    return {
        "person": person,
        "garment": garment,
        "mask": mask,
        "garment_mask": shape,
        "worn_mask": worn,
        "masked_person": person * (1 - mask),
    }


def test_masked_psnr_sees_the_mask_only():
    sample = batch()
    wrong = sample["person"] + 2 / 255 * sample["mask"]
    np.testing.assert_allclose(
        masked_psnr(wrong, sample["person"], sample["mask"]), 20 * np.log10(255), rtol=2e-3
    )
    elsewhere = torch.where(sample["mask"] > 0, wrong, torch.zeros(()))
    np.testing.assert_allclose(
        masked_psnr(elsewhere, sample["person"], sample["mask"]),
        masked_psnr(wrong, sample["person"], sample["mask"]),
    )
    everywhere = torch.ones_like(sample["mask"])
    np.testing.assert_allclose(
        masked_psnr(elsewhere, sample["person"], everywhere), psnr(elsewhere, sample["person"])
    )
    with pytest.raises(ValueError, match="a mask is empty"):
        masked_psnr(wrong, sample["person"], torch.zeros_like(sample["mask"]))


def test_pasting_fills_the_box_with_the_garment():
    sample = batch()
    by_mask, by_worn = pasted(sample), pasted(sample, "worn_mask")
    colour = torch.tensor([0.5, -0.5, 0.0])[None, :, None, None]
    assert (by_mask[:, :, 8:20, 2:14] - colour).abs().max() < 1e-5
    assert (by_worn[:, :, 10:18, 4:12] - colour).abs().max() < 1e-5
    outside = sample["mask"].expand(-1, 3, -1, -1) == 0
    assert (by_mask[outside] == sample["person"][outside]).all()
    assert (by_worn[outside] == sample["person"][outside]).all()
    # Without a mask of the garment, what is not white is the garment.
    unknown = {name: value for name, value in sample.items() if name != "garment_mask"}
    assert (pasted(unknown) - by_mask).abs().max() < 1e-5


def test_figures_of_known_pictures():
    samples = [batch(2, 1), batch(1, 2)]
    seen = []
    result = evaluate(
        {
            "perfect": lambda sample, _: sample["person"],
            "noisy": lambda sample, generator: (
                torch.rand(sample["person"].shape, generator=generator) * 2 - 1
            ),
        },
        samples,
        lpips=lambda a, b: (a - b).abs().mean((1, 2, 3)),
        look=lambda number, sample, made: seen.append((number, sorted(made))),
    )
    assert result.count == 3
    assert result.mean("perfect", "psnr_mask") == float("inf")
    assert result.mean("perfect", "ssim") == pytest.approx(1)
    assert result.mean("perfect", "lpips") == 0
    # Two independent uniform pictures: mean squared error 2 * 127.5^2 / 3.
    assert result.mean("noisy", "psnr_mask") == pytest.approx(
        10 * np.log10(255**2 / (2 * 127.5**2 / 3)), abs=0.4
    )
    # Outside of the mask the person's own pixels count.
    inside = samples[0]["mask"].mean().item()
    assert result.mean("noisy", "psnr") == pytest.approx(
        result.mean("noisy", "psnr_mask") - 10 * np.log10(inside), abs=0.3
    )
    assert seen == [(0, ["noisy", "perfect"]), (1, ["noisy", "perfect"])]
    assert [row[0] for row in result.table().rows] == ["perfect", "noisy"]
    json.dumps(result.record())


def test_every_method_gets_the_same_noise():
    drawn = []

    def dress(sample: Any, generator: torch.Generator) -> torch.Tensor:
        drawn.append(torch.rand(4, generator=generator))
        return sample["person"]

    evaluate({"a": dress, "b": dress}, [batch(), batch()])
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[2] == drawn[3]).all()
    assert (drawn[0] != drawn[2]).any()


def test_distances_use_the_features_that_are_given():
    samples = [batch(4, seed) for seed in range(3)]

    def features(pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean((2, 3))

    found = distribution_distances(
        {"same": lambda sample, _: sample["person"], "grey": lambda sample, _: sample["person"] * 0},
        samples,
        features,
        3,
        subsets=5,
        count=12,
    )
    assert found["same"]["fid"] == pytest.approx(0, abs=1e-9)
    assert found["same"]["kid"] == pytest.approx(0, abs=1e-2)
    real = torch.cat([features(sample["person"]) for sample in samples]).double()
    fake = torch.cat([features(s["person"] * (1 - s["mask"])) for s in samples]).double()
    expected = frechet_distance(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    assert found["grey"]["fid"] == pytest.approx(float(expected), rel=1e-4)


def test_the_words_of_the_command_are_those_of_the_modules():
    assert masks_module.CATEGORIES == CATEGORIES
    assert tuple(masks_module.SCHEMES) == LABELS


def run(*words: object) -> int:
    return main(list(map(str, ["virtual-try-on", "evaluate", *words])))


def test_evaluate_on_drawn_pairs(tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--corpus", "none", "--count", 3, "--weights", tiny_weights, "--output", tmp_path / "e.json"]
    words += ["--sheet", tmp_path / "e.png", "--examples", 2, "--against-steps", 1]
    assert run(*words) == 0
    text = capsys.readouterr().out
    assert "3 drawn pairs, split test, 16x24 pixels, 2 steps" in text
    methods = [
        "model",
        "model, 1 steps",
        "without garment",
        "pasted by the mask's box",
        "pasted by the worn box",
    ]
    record = json.loads((tmp_path / "e.json").read_text())
    assert list(record["mean"]) == methods
    assert all(len(own["psnr_mask"]) == 3 for own in record["values"].values())
    assert "model over without garment, PSNR in mask:" in text
    assert Image.open(tmp_path / "e.png").width > 8 * 2 * 16
    assert run(*words) == 2
    assert "exists already" in capsys.readouterr().err


def test_evaluate_on_data_sets(
    tiny_weights: Path, viton: Path, dress_code: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("--data", "viton-hd", "--path", viton, "--weights", tiny_weights) == 0
    assert "3 viton-hd, 16x24 pixels" in capsys.readouterr().out
    (dress_code / "dresses").symlink_to(dress_code / "upper_body")
    assert run("--data", "dresscode", "--path", dress_code, "--weights", tiny_weights, "--count", 4) == 0
    assert "4 dresscode" in capsys.readouterr().out


def test_evaluate_complains_before_it_computes(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for words, line in (
        (["--data", "viton-hd"], "--path: required; give the folder of viton-hd"),
        (["--corpus", tmp_path], "no corpus there"),
        (["--lpips-heads", tmp_path / "none.pth"], "LPIPS (alex) needs"),
        (["--inception", tmp_path / "none.pth"], "no such file"),
        (["--data", "dresscode", "--path", tmp_path / "x"], "no such folder; give the one of DressCode"),
        (["--path", tmp_path], "drawn pairs have no folder; say --data viton-hd"),
        (["--data", "viton-hd", "--path", tmp_path, "--split", "val"], "--split val: is of drawn pairs"),
        (["--data", "viton-hd", "--path", tmp_path, "--corpus", "none"], "--corpus none: is of drawn pairs"),
    ):
        assert run(*words, "--weights", tiny_weights) == 2
        error = capsys.readouterr().err.strip()
        assert line in error
        assert len(error.splitlines()) == 1
