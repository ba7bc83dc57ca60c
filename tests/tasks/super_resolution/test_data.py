"""Pictures and pairs: layouts, alignment, order, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.core.training.resume import ResumableSampler
from polydit.tasks.super_resolution.data import SuperResolutionData, split
from polydit.tasks.super_resolution.formulation import upsample


def coded(width: int, height: int) -> np.ndarray:
    """Every pixel says where it is: red is its column, green its row."""
    rows, columns = np.indices((height, width))
    return np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_pair(high: Path, low: Path, scale: int, width: int = 120, height: int = 104) -> None:
    """The low picture holds the top left pixel of each block, so that alignment can be read off."""
    pixels = coded(width, height)
    save(high, pixels)
    save(low, pixels[: height // scale * scale : scale, : width // scale * scale : scale])


def aligned(sample: dict) -> bool:
    """Whether the low picture is the high one's block corners (whichever corner a turn has made of it)."""
    scale, high, low = sample["scale"], sample["high"], sample["low"]
    corners = [high[:, i::scale, j::scale] for i in (0, scale - 1) for j in (0, scale - 1)]
    return any(corner.equal(low) for corner in corners)


def data(path: Path, **options) -> SuperResolutionData:
    module = SuperResolutionData(
        str(path), **{"crop": 48, "scales": {4: 1.0}, "num_workers": 0, "samples_per_epoch": 40, **options}
    )
    module.setup("fit")
    return module


def div2k(root: Path) -> None:
    for number in range(3):
        save_pair(
            root / f"DIV2K_train_HR/000{number}.png", root / f"DIV2K_train_LR_bicubic/X4/000{number}x4.png", 4
        )
    save_pair(root / "DIV2K_valid_HR/0801.png", root / "DIV2K_valid_LR_bicubic/X4/0801x4.png", 4)


def div2k_unknown(root: Path) -> None:
    save_pair(root / "DIV2K_train_HR/0001.png", root / "DIV2K_train_LR_unknown/X4/0001x4.png", 4)
    save_pair(root / "DIV2K_valid_HR/0801.png", root / "DIV2K_valid_LR_unknown/X4/0801x4.png", 4)


def realsr(root: Path) -> None:
    for camera, part in (("Canon", "Train"), ("Nikon", "Train"), ("Nikon", "Test")):
        folder = root / camera / part / "4"
        save_pair(folder / f"{camera}_001_HR.png", folder / f"{camera}_001_LR4.png", 4)


def drealsr(root: Path) -> None:
    for part, name in (("Train", "panasonic_12"), ("Test", "sony_7")):
        lower = part.lower()
        save_pair(
            root / f"{part}_x4/{lower}_HR/{name}_x4.png", root / f"{part}_x4/{lower}_LR/{name}_x1.png", 4
        )


@pytest.mark.parametrize(
    ("write", "layout", "trained"),
    [
        (div2k, "div2k", 3),
        (div2k, "auto", 3),
        (div2k_unknown, "auto", 1),
        (realsr, "realsr", 2),
        (drealsr, "auto", 1),
    ],
)
def test_published_layouts_give_aligned_crops_of_their_own_pairs(tmp_path, write, layout, trained):
    write(tmp_path)
    module = data(tmp_path, layout=layout)
    samples = [module.train_set[i] for i in range(12)]
    assert all(aligned(sample) for sample in samples)
    assert all(
        sample["high"].shape == (3, 48, 48) and sample["low"].shape == (3, 12, 12) for sample in samples
    )
    assert samples[0]["enlarged"].equal(upsample(samples[0]["low"][None], 4)[0])
    assert len({tuple(sample["low"][:2, 0, 0].tolist()) for sample in samples}) > 6  # crops differ
    train, held_out = module.pairs()
    assert len(train[4]) == trained
    assert not {pair.hr for pair in train[4]} & {pair.hr for pair in held_out[4]}
    seen = module.val_set[0]
    assert aligned(seen)
    assert seen["high"].equal(module.val_set[0]["high"])


def test_two_folders_are_paired_by_name_not_by_order(tmp_path):
    # In the order of their names, b would meet a's partner.
    for stem, low in (("a", "a_LR4"), ("b", "bx4"), ("b10", "b10x4")):
        save_pair(tmp_path / f"high/{stem}.png", tmp_path / f"low/{low}.png", 4)
    module = data(tmp_path / "high", low_path=str(tmp_path / "low"))
    assert {(p.hr.stem, p.lr.stem) for group in module.pairs() for p in group[4]} == {
        ("a", "a_LR4"),
        ("b", "bx4"),
        ("b10", "b10x4"),
    }
    (tmp_path / "low/b10x4.png").unlink()
    with pytest.raises(
        PolyditError, match=r"high/b10.png: has no low-quality partner with the stem 'b10' \(1 of 3"
    ):
        data(tmp_path / "high", low_path=str(tmp_path / "low"))
    save(tmp_path / "low/c.png", coded(8, 8))
    with pytest.raises(PolyditError, match=r"low/c.png: has no high-quality partner with the stem 'c'"):
        data(tmp_path / "high", low_path=str(tmp_path / "low"))


def test_pairs_have_the_factor_that_their_sizes_say(tmp_path, capsys):
    save_pair(tmp_path / "high/a.png", tmp_path / "low/a.png", 2)
    save_pair(tmp_path / "high/b.png", tmp_path / "low/b.png", 4)
    module = data(tmp_path / "high", low_path=str(tmp_path / "low"), scales={2: 0.5, 3: 0.2, 4: 0.3})
    assert {s for group in module.pairs() for s in group} == {2, 4}
    save_pair(tmp_path / "other/a.png", tmp_path / "halved/a.png", 2)
    with pytest.raises(PolyditError, match=r"none of 1 pairs .*60x52 is not a.png \(120x104\) divided by 4"):
        data(tmp_path / "other", low_path=str(tmp_path / "halved"), scales={4: 1.0})
    save_pair(tmp_path / "high/c.png", tmp_path / "low/c.png", 4)
    capsys.readouterr()
    module = data(tmp_path / "high", low_path=str(tmp_path / "low"), scales={2: 1.0, 4: 1.0}, crop=96)
    assert len(module.train_set.sets) == 1  # a is held out, b and c have one factor
    assert capsys.readouterr().out == ""


def test_a_folder_without_the_layout_says_what_it_has(tmp_path):
    save(tmp_path / "pictures/a.png", coded(60, 60))
    with pytest.raises(PolyditError, match=r"no pairs for split 'train' and scale 4 .* it has pictures"):
        data(tmp_path, layout="auto")
    with pytest.raises(
        PolyditError, match=r"--data.layout: 'div2' is unknown; choose from pictures, auto, div2k"
    ):
        data(tmp_path, layout="div2")
    with pytest.raises(PolyditError, match=r"--data.low_path does not go with --data.layout auto"):
        data(tmp_path, layout="auto", low_path="low")


def test_pictures_of_div2k_are_its_high_resolution_ones(tmp_path):
    div2k(tmp_path)
    train, val = data(tmp_path).files()
    assert [p.parent.name for p in train] == ["DIV2K_train_HR"] * 3
    assert [p.parent.name for p in val] == ["DIV2K_valid_HR"]


def test_one_picture_of_ones_own_is_enough(tmp_path, make_texture):
    make_texture(60, 52).save(tmp_path / "page.png")
    module = data(tmp_path, scales={2: 0.5, 4: 0.5}, degradations={"bicubic": 0.5, "mild": 0.5})
    sample, held_out = module.train_set[0], module.val_set[0]
    assert sample["high"].shape == sample["enlarged"].shape == (3, 48, 48)
    assert "low" not in sample  # factors are mixed: sizes differ within a batch
    assert held_out["high"].shape == (3, 52, 52)  # the largest multiple of the factor that it holds
    assert held_out["low"].shape == (3, 13, 13)
    assert len(module.val_set) == 2  # once per degradation


def test_samples_are_a_function_of_seed_and_number(pictures):
    first, again, other = data(pictures), data(pictures), data(pictures, seed=1)
    for number in (0, 7, 39):
        assert first.train_set[number]["high"].equal(again.train_set[number]["high"])
        assert first.train_set[number]["low"].equal(again.train_set[number]["low"])
    assert not first.train_set[0]["high"].equal(other.train_set[0]["high"])
    cold = data(pictures, cache_megabytes=0)
    assert cold.train_set[7]["high"].equal(first.train_set[7]["high"])
    assert len(cold.train_set.read._held) == 1


def test_batches_without_workers_and_held_out_batches_of_one_size(pictures):
    module = data(pictures, batch_size=5)
    loader = module.train_dataloader()
    assert isinstance(loader.sampler, ResumableSampler)
    batch = next(iter(loader))
    assert batch["high"].shape == (5, 3, 48, 48)
    assert batch["scale"].tolist() == [4] * 5
    assert batch["high"].min() >= -1
    assert batch["high"].max() <= 1
    held_out = torch.cat([b["high"] for b in module.val_dataloader()])
    assert held_out.shape == (1, 3, 56, 56)


def test_bad_pictures_are_named_and_left_out_or_fatal_when_strict(pictures, capsys):
    (pictures / "empty.png").write_bytes(b"")
    Image.new("RGB", (20, 90)).save(pictures / "narrow.png")
    module = data(pictures)
    shown = capsys.readouterr().out
    assert f"skipped {pictures / 'empty.png'}: is empty (0 bytes)" in shown
    assert f"skipped {pictures / 'narrow.png'}: 20x90 is smaller than the crop of 48" in shown
    assert "2 of 5 pictures skipped" in shown
    assert [p.name for p in module.train_set.files] == ["picture_1.png", "picture_2.png"]
    with pytest.raises(PolyditError, match=r"empty.png: is empty"):
        data(pictures, strict=True)
    with pytest.raises(PolyditError, match=r"none of 5 pictures can be used; .*empty.png: is empty"):
        data(pictures, crop=96)


def test_a_picture_that_breaks_off_is_named_once_and_another_is_drawn(pictures, capsys):
    whole = (pictures / "picture_1.png").read_bytes()
    (pictures / "picture_1.png").write_bytes(whole[: len(whole) // 2])
    module = data(pictures)
    assert all(torch.isfinite(module.train_set[i]["high"]).all() for i in range(20))
    shown = capsys.readouterr().out
    assert shown.count("picture_1.png: cut short or damaged") == 1
    assert "1 of 2 so far" in shown
    strict = data(pictures, strict=True)
    with pytest.raises(PolyditError, match=r"picture_1.png: cut short or damaged"):
        [strict.train_set[i] for i in range(20)]
    (pictures / "picture_2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PolyditError, match="cut short or damaged"):
        data(pictures).train_set[0]


def test_reserved_pictures_are_not_trained_on(tmp_path, make_texture):
    (tmp_path / "reserved").mkdir()
    (tmp_path / "manifest.jsonl").write_text("")
    make_texture(60, 60).save(tmp_path / "reserved/a.png")
    with pytest.raises(PolyditError, match="reserved for evaluation"):
        data(tmp_path / "reserved")


def test_options_are_checked():
    with pytest.raises(PolyditError, match=r"--data.degradations: 'bicubik' is unknown; choose from bicubic"):
        SuperResolutionData(degradations={"bicubik": 1.0})
    with pytest.raises(
        PolyditError, match=r"--data.crop 50: does not divide by .* \[3, 4\]; .* multiple of 12"
    ):
        SuperResolutionData(crop=50, scales={3: 1.0, 4: 1.0})
    with pytest.raises(PolyditError, match=r"--data.scales \{0: 1.0\}: 0 is no factor"):
        SuperResolutionData(scales={0: 1.0})
    for wrong in ({}, {4: 0.0}, {2: 1.0, 4: -0.5}):
        with pytest.raises(PolyditError, match=r"--data.scales .*: give relative frequencies"):
            SuperResolutionData(scales=wrong)
    for option in ("path", "val_path", "low_path"):
        with pytest.raises(PolyditError, match=rf"--data.{option} gone: no such file or folder; give one"):
            SuperResolutionData(**{"path": ".", option: "gone"}).setup("fit")


def test_sixteen_bit_pictures_are_read_in_their_range(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "deep.tif", np.full((60, 60, 3), 65535 // 2, np.uint16), photometric="rgb")
    sample = data(tmp_path).train_set[0]
    assert sample["high"].abs().max() < 0.01


def test_the_split_of_a_folder():
    assert split([1]) == ([1], [1])
    assert split([1, 2, 3]) == ([2, 3], [1])
    train, held_out = split(list(range(45)))
    assert held_out == [0, 20, 40]
    assert sorted(train + held_out) == list(range(45))
