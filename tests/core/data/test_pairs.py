"""Paired data sets in their own layouts, latents, and the built-in samples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core import data as package
from polydit.core.data.latents import LatentPairs
from polydit.core.data.pairs import LAYOUTS, PairedPictures, find_pairs
from polydit.core.data.samples import PHOTOGRAPHS, load_sample, sample_names, sample_path
from polydit.core.errors import PolyditError


def put(path: Path, width: int = 32, height: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:height, 0:width]
    Image.fromarray(np.dstack([x * 255 // width, y * 255 // height, np.zeros_like(x)]).astype(np.uint8)).save(
        path
    )


def found(root: Path, **options) -> list[tuple[str, str, str]]:
    return [
        (p.stem, str(p.hr.relative_to(root)), str(p.lr.relative_to(root)))
        for p in find_pairs(root, **options)
    ]


def test_div2k(tmp_path):
    for split in ("train", "valid"):
        for number in ("0001", "0002", "0010"):
            put(tmp_path / f"DIV2K_{split}_HR/{number}.png")
            put(tmp_path / f"DIV2K_{split}_LR_bicubic/X4/{number}x4.png", 8, 6)
            put(tmp_path / f"DIV2K_{split}_LR_bicubic/X2/{number}x2.png", 16, 12)
    assert found(tmp_path)[0] == ("0001x4", "DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X4/0001x4.png")
    rows = found(tmp_path, split="val", scale=2)
    assert [Path(row[2]).name for row in rows] == ["0001x2.png", "0002x2.png", "0010x2.png"]
    with pytest.raises(
        PolyditError, match=r"no pairs for split 'train' and scale 3 .*; it has DIV2K_train_HR, DIV2K"
    ):
        found(tmp_path, layout="realsr", scale=3)


def test_div2k_wild_has_several_for_one(tmp_path):
    put(tmp_path / "DIV2K_train_HR/0001.png")
    for number in (1, 2, 3, 4):
        put(tmp_path / f"DIV2K_train_LR_wild/0001x4w{number}.png", 8, 6)
    assert [row[0] for row in found(tmp_path)] == ["0001x4w1", "0001x4w2", "0001x4w3", "0001x4w4"]
    assert {row[1] for row in found(tmp_path)} == {"DIV2K_train_HR/0001.png"}


def test_realsr(tmp_path):
    for camera in ("Canon", "Nikon"):
        for part in ("Train", "Test"):
            for number in ("001", "002"):
                put(tmp_path / camera / part / "4" / f"{camera}_{number}_HR.png")
                put(tmp_path / camera / part / "4" / f"{camera}_{number}_LR4.png", 8, 6)
    pairs = found(tmp_path, layout="auto")
    assert len(pairs) == 4
    assert pairs[0][1:] == ("Canon/Train/4/Canon_001_HR.png", "Canon/Train/4/Canon_001_LR4.png")
    assert len(found(tmp_path, split="val")) == 4


def test_drealsr_and_the_centre_crops(tmp_path):
    for name in ("DSC_1286", "panasonic_12"):
        put(tmp_path / "d/Train_x4/train_HR" / f"{name}_x1.png")
        put(tmp_path / "d/Train_x4/train_LR" / f"{name}_x4.png", 8, 6)
        put(tmp_path / "d/Test_x4/test_HR" / f"{name}_x1.png")
        put(tmp_path / "d/Test_x4/test_LR" / f"{name}_x4.png", 8, 6)
        put(tmp_path / "c/test_HR" / f"{name}_HR.png")
        put(tmp_path / "c/test_LR" / f"{name}_LR4.png", 8, 6)
    assert [row[1] for row in found(tmp_path / "d")] == [
        "Train_x4/train_HR/DSC_1286_x1.png", "Train_x4/train_HR/panasonic_12_x1.png",
    ]  # fmt: skip
    assert len(found(tmp_path / "d", split="val")) == 2
    assert len(found(tmp_path / "c", split="val", layout="crops")) == 2


def test_dit4sr_and_plain_folders(tmp_path):
    for number in ("0000001", "0000002"):
        put(tmp_path / "a/gt" / f"{number}.png")
        put(tmp_path / "a/sr_bicubic" / f"{number}.png")
        put(tmp_path / "b/HR" / f"{number}.png")
        put(tmp_path / "b/LR_bicubic/X4" / f"{number}x4.png", 8, 6)
        put(tmp_path / "c/val/hr" / f"{number}.png")
        put(tmp_path / "c/val/lr" / f"{number}.png", 8, 6)
    assert len(found(tmp_path / "a", layout="dit4sr")) == 2
    assert len(found(tmp_path / "b")) == 2
    assert len(found(tmp_path / "c", split="val")) == 2
    assert set(LAYOUTS) == {"div2k", "realsr", "drealsr", "crops", "dit4sr", "folders"}


def test_pairs_go_by_stem_not_by_order(tmp_path):
    for number in ("9", "10", "100"):
        put(tmp_path / "HR" / f"{number}.png")
        put(tmp_path / "LR" / f"{number}x4.png", 8, 6)
    assert all(hr.split("/")[1][:-4] == lr.split("/")[1][:-6] for _, hr, lr in found(tmp_path))


def test_endings_are_taken_off_only_where_they_are_endings(tmp_path):
    for stem in ("USSR", "fox2run", "a_b"):
        put(tmp_path / "HR" / f"{stem}_HR.png")
        put(tmp_path / "LR" / f"{stem}_LR4x4m.png", 8, 6)
    assert [row[1] for row in found(tmp_path)] == ["HR/USSR_HR.png", "HR/a_b_HR.png", "HR/fox2run_HR.png"]
    put(tmp_path / "HR" / "US_HR.png")  # not the same as USSR
    with pytest.raises(PolyditError, match=r"US_HR\.png: has no low-quality partner with the stem 'US'"):
        find_pairs(tmp_path)


def test_the_first_file_without_partner_is_named(tmp_path):
    for number in ("1", "2", "3"):
        put(tmp_path / "HR" / f"{number}.png")
    put(tmp_path / "LR" / "1x4.png", 8, 6)
    with pytest.raises(
        PolyditError, match=r"HR/2\.png: has no low-quality partner with the stem '2' \(2 of 3 are unm"
    ):
        find_pairs(tmp_path)
    for number in ("2", "3", "7"):
        put(tmp_path / "LR" / f"{number}x4.png", 8, 6)
    with pytest.raises(
        PolyditError, match=r"LR/7x4\.png: has no high-quality partner with the stem '7' \(1 of 4"
    ):
        find_pairs(tmp_path)
    put(tmp_path / "HR" / "1_HR.png")
    with pytest.raises(PolyditError, match=r"has the same stem '1' as"):
        find_pairs(tmp_path)


def test_errors_of_find_pairs(tmp_path):
    with pytest.raises(PolyditError, match="none: no such folder"):
        find_pairs(tmp_path / "none")
    with pytest.raises(PolyditError, match="it has nothing"):
        find_pairs(tmp_path)
    with pytest.raises(PolyditError, match="layout 'flat': unknown; choose from auto, div2k"):
        find_pairs(tmp_path, layout="flat")
    with pytest.raises(PolyditError, match="split 'test': paired data sets have 'train' and 'val'"):
        find_pairs(tmp_path, split="test")


@pytest.fixture
def pairs(tmp_path):
    """Four pairs where the target is the low-quality picture with each pixel four times."""
    rng = np.random.default_rng(0)
    for number in range(4):
        low = rng.integers(0, 255, (12, 16, 3), np.uint8)
        for name, array in (("LR", low), ("HR", low.repeat(4, 0).repeat(4, 1))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / name / f"{number}.png")
    return find_pairs(tmp_path)


def test_crops_of_a_pair_stay_aligned(pairs):
    data = PairedPictures(pairs, scale=4, size=24)
    assert len(data) == 4
    for index in range(40):
        sample = data[index]
        assert sample["gt"].shape == (3, 24, 24)
        assert torch.equal(sample["gt"], sample["lq"].repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert torch.equal(data[1]["gt"], PairedPictures(pairs, scale=4, size=24)[1]["gt"])
    assert not torch.equal(data[1]["gt"], data[5]["gt"])
    whole = PairedPictures(pairs, scale=4)[2]
    assert whole["gt"].shape == (3, 48, 64)
    assert whole["lq"].shape == (3, 12, 16)
    assert whole["stem"] == "2"
    assert whole["gt"].min() >= -1
    assert whole["gt"].max() <= 1


def test_what_is_wrong_with_a_pair_is_said(pairs):
    with pytest.raises(
        PolyditError, match=r"0\.png: 16x12 is not 0\.png \(64x48\) divided by 2; check the scale"
    ):
        PairedPictures(pairs, scale=2)[0]
    with pytest.raises(PolyditError, match=r"0\.png: 64x48 is smaller than the crop of 64 pixels"):
        PairedPictures(pairs, scale=4, size=64)[0]
    with pytest.raises(PolyditError, match="size 30: is not a multiple of scale 4"):
        PairedPictures(pairs, scale=4, size=30)
    with pytest.raises(PolyditError, match="the list of pairs is empty"):
        PairedPictures([], scale=4)


def test_a_target_may_have_a_remainder(tmp_path):
    put(tmp_path / "HR/a.png", 35, 26)
    put(tmp_path / "LR/a.png", 8, 6)
    sample = PairedPictures(find_pairs(tmp_path), scale=4)[0]
    assert sample["gt"].shape == (3, 24, 32)


def test_latents_in_dit4srs_layout(tmp_path):
    for name in ("a", "b"):
        for folder, shape in (
            ("latent_hr", (16, 8, 8)), ("latent_lr", (16, 8, 8)),
            ("prompt_embeds", (4, 6)), ("pooled_prompt_embeds", (5,)),
        ):  # fmt: skip
            (tmp_path / folder).mkdir(exist_ok=True)
            torch.save(torch.full(shape, float(ord(name))), tmp_path / folder / f"{name}.pt")
    data = LatentPairs(tmp_path)
    assert len(data) == 2
    sample = data[1]
    assert sample["stem"] == "b"
    assert sample["latent_hr"].shape == (16, 8, 8)
    assert (sample["pooled_prompt_embeds"] == ord("b")).all()
    with pytest.raises(PolyditError, match=r"drop_caption needs NULL_prompt_embeds\.pt"):
        LatentPairs(tmp_path, drop_caption=0.5)
    torch.save(torch.zeros(4, 6), tmp_path / "NULL_prompt_embeds.pt")
    torch.save(torch.zeros(5), tmp_path / "NULL_pooled_prompt_embeds.pt")
    dropping = LatentPairs(tmp_path, drop_caption=0.5)
    dropped = [bool((dropping[i]["prompt_embeds"] == 0).all()) for i in range(60)]
    assert dropped == [bool((dropping[i]["pooled_prompt_embeds"] == 0).all()) for i in range(60)]
    assert 15 < sum(dropped) < 45

    torch.save({"not": "a tensor"}, tmp_path / "latent_lr" / "a.pt")
    with pytest.raises(PolyditError, match=r"latent_lr/a\.pt: holds a dict, not a tensor"):
        data[0]
    (tmp_path / "latent_lr" / "a.pt").write_bytes(b"half")
    with pytest.raises(PolyditError, match=r"latent_lr/a\.pt: is not a saved tensor"):
        data[0]
    (tmp_path / "latent_lr" / "a.pt").unlink()
    with pytest.raises(PolyditError, match=r"latent_hr/a\.pt: has no partner in latent_lr"):
        LatentPairs(tmp_path)
    with pytest.raises(PolyditError, match="no latents"):
        LatentPairs(tmp_path / "latent_hr")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bad:
        def __reduce__(self):
            return (print, ("ran",))

    for folder in ("latent_hr", "latent_lr"):
        (tmp_path / folder).mkdir()
        torch.save(Bad(), tmp_path / folder / "a.pt")
    with pytest.raises(PolyditError, match="is not a saved tensor"):
        LatentPairs(tmp_path)[0]


def test_samples_of_scikit_image():
    assert set(PHOTOGRAPHS) <= set(sample_names())
    for name in sample_names():
        picture = load_sample(name)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert picture.std() > 5
    assert sample_path("astronaut").name == "astronaut.png"
    with pytest.raises(PolyditError, match="sample 'lena': unknown; choose from astronaut, "):
        load_sample("lena")


def test_samples_do_not_import_scikit_image():
    code = "import sys; from polydit.core.data.samples import sample_path; sample_path('coffee'); "
    code += "sys.exit('skimage' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_gives_its_names_lazily():
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = package.Nothing
