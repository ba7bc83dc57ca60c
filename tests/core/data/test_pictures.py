"""Training crops: the order, the cache, the splits, and what happens to bad files."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from polydit.core.data import pictures as module
from polydit.core.data.corpus.manifest import Record, save_manifest
from polydit.core.data.degradation import Degradation, replay
from polydit.core.data.picture_lists import is_reserved_path, pictures_of
from polydit.core.data.pictures import CropSampler, PictureCrops, sample_generator
from polydit.core.errors import PolyditError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six pictures whose red channel is their number times 40; green and blue give the position."""
    root = tmp_path / "pictures"
    root.mkdir()
    y, x = np.mgrid[0:80, 0:100].astype(np.uint8)
    for number in range(6):
        Image.fromarray(np.dstack([np.full_like(x, number * 40), y, x])).save(root / f"{number}.png")
    return root


def numbers(samples) -> list[int]:
    return [round((s["gt"][0].mean().item() + 1) * 127.5 / 40) for s in samples]


def test_a_sample_is_a_crop_in_minus_one_to_one(folder):
    data = PictureCrops(folder, size=32, flips=False)
    assert len(data) == 6 * 16
    for index in range(12):
        levels = ((data[index]["gt"] + 1) * 127.5).round().long()
        assert levels.shape == (3, 32, 32)
        top, left = levels[1, 0, 0].item(), levels[2, 0, 0].item()
        assert torch.equal(levels[1], (top + torch.arange(32))[:, None].expand(32, 32))
        assert torch.equal(levels[2], (left + torch.arange(32))[None].expand(32, 32))
        assert levels[0].unique().numel() == 1


def test_crops_reach_every_corner_and_every_orientation(folder):
    data = PictureCrops(folder, size=64, crops_per_image=200)
    corners, orientations = set(), Counter()
    for index in range(1200):
        levels = ((data[index]["gt"] + 1) * 127.5).round().long()
        y, x = levels[1], levels[2]
        corners.add((y.min().item(), x.min().item()))
        key = (
            torch.sign(y[1, 0] - y[0, 0]),
            torch.sign(y[0, 1] - y[0, 0]),
            torch.sign(x[1, 0] - x[0, 0]),
            torch.sign(x[0, 1] - x[0, 0]),
        )
        orientations[tuple(int(v) for v in key)] += 1
    tops, lefts = {c[0] for c in corners}, {c[1] for c in corners}
    assert tops == set(range(17))
    assert lefts == set(range(37))
    assert len(orientations) == 8
    assert min(orientations.values()) > 100


@pytest.mark.parametrize("preset", ["bicubic", "mild"])
def test_pairs_come_with_a_record_that_replays(folder, preset):
    data = PictureCrops(folder, size=48, degradation=Degradation(preset, 4), return_records=True)
    sample = data[5]
    assert sample["lq"].shape == (3, 12, 12)
    lq, _ = replay((sample["gt"] + 1) / 2, sample["record"])
    assert torch.allclose(lq * 2 - 1, sample["lq"], atol=2e-2)
    assert sample["lq"].min() >= -1
    assert sample["lq"].max() <= 1


def test_samples_do_not_depend_on_the_number_of_workers(folder):
    runs = []
    for workers in (0, 1, 2):
        data = PictureCrops(folder, size=32, degradation=Degradation("mild", 4), crops_per_image=2, seed=3)
        loader = DataLoader(data, batch_size=4, sampler=CropSampler(data), num_workers=workers)
        runs.append(torch.cat([batch["lq"] for batch in loader]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_order_depends_on_seed_and_epoch_only(folder):
    first, again = PictureCrops(folder, size=32, seed=1), PictureCrops(folder, size=32, seed=1)
    count = len(first)
    assert all(torch.equal(first[i]["gt"], again[i]["gt"]) for i in (0, 7, 95))
    # Out of order, and from another epoch in between.
    reference = first[20]["gt"]
    _ = first[count * 3 + 1], first[2]
    assert torch.equal(first[20]["gt"], reference)
    other = PictureCrops(folder, size=32, seed=2)
    assert not all(torch.equal(first[i]["gt"], other[i]["gt"]) for i in range(8))
    assert not all(torch.equal(first[i]["gt"], first[count + i]["gt"]) for i in range(8))


def test_each_pass_gives_every_picture_its_crops_within_windows(folder):
    data = PictureCrops(folder, size=32, crops_per_image=5, window=2)
    for epoch in range(3):
        seen = numbers(data[epoch * 30 + i] for i in range(30))
        assert Counter(seen) == dict.fromkeys(range(6), 5)
        for start in (0, 10, 20):
            assert len(set(seen[start : start + 10])) == 2  # two pictures are decoded for ten samples


def test_a_longer_epoch_goes_on_with_new_crops(folder):
    data = PictureCrops(folder, size=32, crops_per_image=2, length=1000)
    assert len(data) == 1000
    assert not torch.equal(data[0]["gt"], data[12]["gt"])
    assert Counter(numbers(data[i] for i in range(24))) == dict.fromkeys(range(6), 4)


def test_decoding_is_shared_and_the_cache_is_bounded(folder, monkeypatch):
    decoded = Counter()
    real = module.read_image
    monkeypatch.setattr(
        module, "read_image", lambda path, **kw: (decoded.update([path]), real(path, **kw))[1]
    )
    data = PictureCrops(folder, size=32, crops_per_image=8, window=3)
    for index in range(48):
        data[index]
    assert decoded.total() == 6
    bytes_each = 80 * 100 * 3
    small = PictureCrops(folder, size=32, cache_mb=0)
    small.cache_bytes = int(2.5 * bytes_each)
    for index in range(40):
        small[index]
        assert sum(a.nbytes for a in small._cache.values()) <= small.cache_bytes
    assert len(pickle.loads(pickle.dumps(data))._cache) == 0


def test_center_crops_are_the_same_in_every_epoch(folder):
    data = PictureCrops(folder, size=32, center=True, degradation=Degradation("mild", 4))
    assert len(data) == 6
    levels = ((data[2]["gt"] + 1) * 127.5).round().long()
    assert levels[1, 0, 0] == 24
    assert levels[2, 0, 0] == 34
    assert numbers(data[i] for i in range(6)) == list(range(6))
    assert torch.equal(data[2]["lq"], data[8]["lq"])


def test_larger_crops_are_reduced(folder):
    data = PictureCrops(folder, size=32, reduce_max=2.0, flips=False)
    spans = []
    for index in range(40):
        levels = (data[index]["gt"] + 1) * 127.5
        assert levels.shape == (3, 32, 32)
        spans.append((levels[2, 0, -1] - levels[2, 0, 0]).item() / 31)
    assert min(spans) < 1.2
    assert 1.8 < max(spans) <= 2.01


def test_the_sampler_goes_on_where_a_run_stopped(folder):
    data = PictureCrops(folder, size=32, crops_per_image=2)
    whole = CropSampler(data)
    expected = [i for _ in range(3) for i in whole]
    assert expected == list(range(36))
    assert len(whole) == 12
    resumed = CropSampler(data)
    resumed.load_state_dict(CropSampler(data).state_dict(used=17))
    assert [i for _ in range(2) for i in resumed] == expected[17:36]


def test_generators_of_neighbouring_samples_are_unrelated():
    first = torch.tensor([torch.rand(1, generator=sample_generator(0, i)).item() for i in range(2000)])
    second = torch.tensor([torch.rand(1, generator=sample_generator(1, i)).item() for i in range(2000)])
    assert abs(first.mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 0.08
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.08


# --- bad files and options -----------------------------------------------------------------------------------------


def test_bad_and_small_files_are_named_and_counted(folder):
    (folder / "zero.png").touch()
    Image.new("RGB", (10, 10)).save(folder / "small.png")
    with pytest.warns(UserWarning, match=".") as caught:
        data = PictureCrops(folder, size=32)
    lines = [str(w.message) for w in caught]
    assert "zero.png: is empty" in lines[0]
    assert lines[1] == "1 of 8 pictures could not be read, 1 are smaller than 32 pixels; 6 are used"
    assert len(data.paths) == 6
    with pytest.raises(PolyditError, match=r"zero\.png: is empty"):
        PictureCrops(folder, size=32, strict=True)


def test_a_picture_that_is_cut_short_is_replaced_by_the_next(folder):
    noise = np.random.default_rng(0).integers(0, 255, (80, 100, 3), np.uint8)
    Image.fromarray(noise).save(folder / "3.png")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    data = PictureCrops(folder, size=32, crops_per_image=2)
    with pytest.warns(
        UserWarning, match=r"skipped: .*3\.png: cut short or damaged.*; 1 of 6 pictures skipped so far"
    ):
        seen = numbers(data[i] for i in range(12))
    assert Counter(seen) == {0: 2, 1: 2, 2: 2, 4: 4, 5: 2}
    strict = PictureCrops(folder, size=32, strict=True)
    with pytest.raises(PolyditError, match=r"3\.png: cut short"):
        [strict[i] for i in range(len(strict))]


def test_nothing_usable_says_how_many_for_which_reason(folder):
    with (
        pytest.warns(UserWarning, match="6 are smaller"),
        pytest.raises(PolyditError, match="none of 6 pictures can be used"),
    ):
        PictureCrops(folder, size=96)
    with pytest.raises(PolyditError, match="size 30: is not a multiple of scale 4"):
        PictureCrops(folder, size=30, degradation=Degradation("bicubic", 4))
    with pytest.raises(PolyditError, match=r"reduce_max 0\.5: must be 1 or more"):
        PictureCrops(folder, reduce_max=0.5)


# --- splits --------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path) -> Path:
    root = tmp_path / "corpus"
    records = []
    for split, folder, tag in (
        ("train", "photos/train", "photo"),
        ("train", "photos/train", "artwork"),
        ("val", "photos/val", "photo"),
        ("reserved", "reserved/photos", "photo"),
    ):
        path = root / folder / f"{split}-{tag}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
        record = Record(
            str(path.relative_to(root)),
            "photos",
            split,
            tag,
            "p",
            "1",
            "x",
            "GPL",
            64,
            48,
            path.stat().st_size,
            "0",
        )
        records.append(record)
    save_manifest(root, records)
    return root


def names(listed) -> list[str]:
    return [path.name for path, _ in listed]


def test_a_corpus_is_split_by_its_manifest(corpus):
    assert names(pictures_of(corpus, "train")) == ["train-artwork.png", "train-photo.png"]
    assert names(pictures_of(corpus, "train", tag="photo")) == ["train-photo.png"]
    assert names(pictures_of(corpus, "val")) == ["val-photo.png"]
    assert names(pictures_of(corpus)) == ["train-artwork.png", "train-photo.png", "val-photo.png"]
    assert pictures_of(corpus, "val")[0][1] == (64, 48)
    with pytest.raises(PolyditError, match="the corpus has no cutouts in the split 'train'"):
        pictures_of(corpus, "train", kind="cutouts")


def test_reserved_pictures_are_refused_on_every_way_in(corpus):
    with pytest.raises(PolyditError, match="split 'reserved': these pictures are for evaluation only"):
        PictureCrops(corpus, split="reserved", size=32)
    reserved = corpus / "reserved" / "photos"
    for root in (reserved, str(reserved / "*.png"), [reserved / "reserved-photo.png"]):
        with pytest.raises(PolyditError, match="these pictures are reserved for evaluation; give others"):
            PictureCrops(root, size=32)
    # A folder above the corpus: what is reserved is left out, and that is said.
    with pytest.warns(UserWarning, match="1 pictures reserved for evaluation were left out"):
        assert "reserved-photo.png" not in names(pictures_of(corpus.parent))
    assert is_reserved_path(reserved / "reserved-photo.png")
    assert len(PictureCrops(corpus, split="reserved", size=32, center=True, allow_reserved=True)) == 1


def test_a_plain_folder_is_split_by_names(folder):
    train, val = names(pictures_of(folder, "train")), names(pictures_of(folder, "val"))
    assert len(val) == 1
    assert sorted(train + val) == [f"{i}.png" for i in range(6)]
    assert names(pictures_of(folder)) == sorted(train + val)
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    assert set(train) <= set(names(pictures_of(folder, "train"))) | set(names(pictures_of(folder, "val")))
    with pytest.raises(PolyditError, match="split 'test': unknown; choose from train, val, reserved"):
        pictures_of(folder, "test")
    with pytest.raises(PolyditError, match=r"tags need a corpus with a manifest\.jsonl"):
        pictures_of(folder, tag="photo")


def test_folders_named_train_and_val_are_the_splits(folder):
    for split in ("train", "val"):
        (folder / split).mkdir()
    (folder / "0.png").rename(folder / "train" / "a.png")
    (folder / "1.png").rename(folder / "val" / "b.png")
    assert names(pictures_of(folder, "train")) == ["a.png"]
    assert names(pictures_of(folder, "val")) == ["b.png"]


def test_one_picture_is_enough(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(pictures_of(tmp_path, "train")) == names(pictures_of(tmp_path, "val")) == ["a.png"]
        assert len(PictureCrops(tmp_path / "a.png", size=48, crops_per_image=4)) == 4
