"""Layouts on disk, composites, tiles, and what is said of files that are not right."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from discs import disc
from PIL import Image

from polydit.core.data.composites import CompositeOptions, Compositor
from polydit.core.errors import PolyditError
from polydit.tasks.segmentation.data import SegmentationData
from polydit.tasks.segmentation.folders import MaskFolder, edge_target, find_layout, read_mask
from polydit.tasks.segmentation.samples import CompositeSamples, FolderSamples, as_sample, coarse_context


def write(folder, names, suffix, mode="RGB", size=(24, 20)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new(mode, size, 200).save(folder / f"{name}{suffix}")


def test_pictures_and_masks_are_paired_by_name_whatever_their_type(folders):
    pairs = MaskFolder(*folders)
    assert len(pairs) == 6
    assert not pairs.unmatched
    picture, mask, edges = pairs.read(2)
    assert picture.shape == (40, 56, 3)
    assert np.array_equal(mask, disc(40, 56, 2)[1])
    assert np.array_equal(edges, edge_target(mask))


def test_edges_are_the_thresholded_gradient_of_the_published_target():
    mask = np.zeros((20, 24), np.uint8)
    mask[:, 10:] = 200  # touches three borders, which are no edge
    mask[8, 3], mask[15, 3] = 6, 5  # faint, and too faint
    edges = edge_target(mask)
    expected = np.zeros_like(mask)
    expected[:, 8:12] = expected[6:11, 1:6] = 255
    assert np.array_equal(edges, expected)
    picture = np.zeros((20, 24, 3), np.uint8)
    for given in (mask, mask / np.float32(255)):
        assert np.array_equal(as_sample(picture, given)["edges"][0].numpy(), expected / 255)


def test_files_without_a_partner_are_named(folders):
    (folders[0] / "lonely.png").write_bytes((next(folders[1].iterdir())).read_bytes())
    assert [path.name for path in MaskFolder(*folders).unmatched] == ["lonely.png"]
    with pytest.raises(PolyditError, match=r"lonely\.png: has no partner"):
        MaskFolder(*folders, strict=True)
    write(folders[0].parent / "others", "ab", ".png")
    with pytest.raises(PolyditError, match="none of 7 pictures has a mask of its name"):
        MaskFolder(folders[0], folders[0].parent / "others")


def test_a_mask_of_another_size_is_one_line(folders):
    mask = sorted(folders[1].iterdir())[0]
    Image.new("L", (30, 30)).save(mask)
    with pytest.raises(PolyditError, match="is 30x30, and its picture is 56x40") as caught:
        MaskFolder(*folders).read(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "LA", "RGBA"])
def test_masks_of_every_mode_are_read_alike(tmp_path, mode):
    _, mask = disc(20, 24)
    image = Image.fromarray(mask)
    if mode in ("LA", "RGBA"):  # nothing but alpha
        image = Image.merge("RGBA", [Image.new("L", image.size)] * 3 + [image]).convert(mode)
    image.convert(mode).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)


@pytest.mark.parametrize(
    ("layout", "split", "place"),
    [
        ("dis5k", "train", ("DIS-TR/im", "DIS-TR/gt")),
        ("dis5k", "test", ("DIS-TE3/im", "DIS-TE3/gt")),
        ("dis5k", "val", ("DIS-VD/images", "DIS-VD/masks")),
        ("hrsod", "train", ("HRSOD-TR/image", "HRSOD-TR/mask")),
        ("cod10k", "train", ("TrainDataset/Imgs", "TrainDataset/GT")),
        ("cod10k", "test", ("TestDataset/COD10K/Imgs", "TestDataset/COD10K/GT")),
        ("cod10k", "test", ("TestDataset/Imgs", "TestDataset/GT")),
        ("cod10k", "train", ("Train/Image", "Train/GT_Object")),
        ("folders", "train", ("images", "masks")),
    ],
)
def test_layouts_of_the_data_sets(tmp_path, layout, split, place):
    write(tmp_path / place[0], ["5#Artifact#1", "b[2]"], ".jpg")
    write(tmp_path / place[1], ["5#Artifact#1", "b[2]"], ".png", "L")
    for name in (layout, "auto"):
        ((pictures, masks, edges),) = find_layout(tmp_path, name, split)
        assert (pictures, masks, edges) == (tmp_path / place[0], tmp_path / place[1], None)
    assert len(MaskFolder(pictures, masks)) == 2


def test_cod10k_is_read_once_and_without_its_neighbours(tmp_path):
    for name in ("CAMO", "COD10K", "NC4K"):
        write(tmp_path / "TestDataset" / name / "Imgs", "ab", ".jpg")
        write(tmp_path / "TestDataset" / name / "GT", "ab", ".png", "L")
    for layout in ("cod10k", "auto"):
        ((pictures, _, _),) = find_layout(tmp_path, layout, "test")
        assert pictures == tmp_path / "TestDataset" / "COD10K" / "Imgs"


def test_splits_of_plain_folders_are_read_once_each(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / split / "images", "ab", ".jpg")
        write(tmp_path / split / "masks", "ab", ".png", "L")
    for split in ("train", "val", "test"):
        ((pictures, _, _),) = find_layout(tmp_path, "folders", split)
        assert pictures == tmp_path / split / "images"


def test_edges_of_the_data_set_are_used_where_it_has_them(tmp_path):
    for folder, mode in (("im", "RGB"), ("gt", "L"), ("contour", "L")):
        write(tmp_path / "DIS-TR" / folder, ["a"], ".png", mode)
    ((pictures, masks, edges),) = find_layout(tmp_path, "dis5k")
    assert edges == tmp_path / "DIS-TR" / "contour"
    assert (MaskFolder(pictures, masks, edges).read(0)[2] == 200).all()


def test_missing_layouts_are_told(tmp_path):
    with pytest.raises(PolyditError, match="no pictures and masks of the split 'train'"):
        find_layout(tmp_path)
    with pytest.raises(PolyditError, match="layout 'coco': unknown"):
        find_layout(tmp_path, "coco")
    with pytest.raises(PolyditError, match="no such folder"):
        SegmentationData(path=str(tmp_path / "none")).setup()


def test_samples_of_folders_keep_picture_and_mask_together(folders):
    samples = FolderSamples([MaskFolder(*folders)], 32, train=True, repeat=5, color=0.0)
    assert len(samples) == 30
    for index in range(0, 30, 7):
        sample = samples[index]
        assert sample["picture"].shape == (3, 32, 32)
        red = sample["picture"][0] > 0.3  # the disc
        assert ((sample["mask"][0] > 0.5) == red).float().mean() > 0.97
        assert torch.equal(sample["picture"], samples[index]["picture"])
    assert not torch.equal(samples[0]["picture"], samples[6]["picture"])


def test_unreadable_pictures_are_passed_over_and_named_once(folders, capsys):
    sorted(folders[0].iterdir())[0].write_bytes(b"no picture")
    samples = FolderSamples([MaskFolder(*folders)], 16)
    assert samples[0]["picture"].shape == samples[0]["picture"].shape
    assert capsys.readouterr().out.count("skipped") == 1
    with pytest.raises(PolyditError):
        FolderSamples([MaskFolder(*folders, strict=True)], 16)[0]


def test_the_module_finds_folders_and_holds_some_out(folders):
    data = SegmentationData(path=str(folders[0].parent), size=16, batch_size=2, num_workers=0)
    data.setup()
    assert len(data.train_set) == 5
    assert len(data.val_set) == 1
    named = SegmentationData(path=str(folders[0]), masks_path=str(folders[1]), size=16)
    named.setup()
    assert len(named.train_set) + len(named.val_set) == 6
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].shape == (1, 1, 16, 16)


@pytest.fixture
def corpus(tmp_path):
    """Two photographs and two cut-outs of each split."""
    records = []
    for split in ("train", "val", "reserved"):
        for kind in ("photos", "cutouts"):
            for number in range(2):
                place = f"reserved/{kind}" if split == "reserved" else f"{kind}/{split}"
                file = tmp_path / place / f"pack--{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture, mask = disc(48, 48, number)
                layers = [picture] if kind == "photos" else [picture, mask]
                Image.fromarray(np.dstack(layers)).save(file)
                records.append(
                    {
                        "file": f"{place}/{file.name}", "kind": kind, "split": split, "tag": "", "package": "pack",
                        "version": "1", "source": "x", "licence": "CC0-1.0", "width": 48, "height": 48, "size": 1,
                        "sha256": "0",
                    }
                )  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "manifest.jsonl").write_text(lines)
    return tmp_path


def test_composites_of_a_corpus_never_use_reserved_files(corpus):
    data = SegmentationData(path=str(corpus), size=32, tiles=0.5, samples_per_epoch=10, held_out=4)
    data.setup()
    whole = data.train_set.whole
    assert all(
        "reserved" not in str(path) and "val" not in path.parts for path in whole.photos + whole.cutouts
    )
    assert data.train_set[3]["picture"].equal(data.train_set[3]["picture"])
    assert len(data.val_set) == 4
    assert (data.val_set[0]["context"] == 0.5).all()
    with pytest.raises(PolyditError, match="evaluation only"):
        Compositor.from_corpus(corpus, "reserved", 32)


def test_tiles_come_with_a_context_that_is_coarse_and_close(corpus):
    samples = CompositeSamples(Compositor.from_corpus(corpus, "train", 64), 40, tiles=1.0)
    told = [sample for sample in (samples[i] for i in range(12)) if not (sample["context"] == 0.5).all()]
    assert len(told) > 8
    assert all(s["context"].min() >= 0 and s["context"].max() <= 1 for s in told)
    errors = [(s["context"] - s["mask"]).abs().mean().item() for s in told]
    chance = [(0.5 - s["mask"]).abs().mean().item() for s in told]
    assert 0.01 < np.mean(errors) < 0.8 * np.mean(chance)


def test_context_is_a_function_of_the_generator():
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 8:24] = 1
    one, two = (coarse_context(mask, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert one[0, 16, 16] > one[0, 0, 0]


def test_sources_of_cutouts_can_be_balanced_and_photographs_are_drawn_alike(tmp_path, monkeypatch):
    files = [tmp_path / f"many--{n}.png" for n in range(90)] + [tmp_path / f"few--{n}.png" for n in range(10)]
    rng = np.random.default_rng(0)
    for balance, share in ((1.0, 0.1), (0.0, 0.5)):
        compositor = Compositor(files, files, 32, CompositeOptions(balance=balance))
        for kind in ("_photos", "_cutouts"):
            monkeypatch.setattr(compositor, kind, lambda file: np.zeros((2, 2, 4), np.uint8))

        def few(draw):
            return np.mean([draw(rng)[1].name.startswith("few") for _ in range(2000)])

        assert few(compositor.draw_cutout) == pytest.approx(share, abs=0.04)
        assert few(compositor.draw_photo) == pytest.approx(0.1, abs=0.03)


def test_named_sources_of_cutouts_are_drawn_more_often(tmp_path, monkeypatch):
    files = [tmp_path / f"many--{n}.png" for n in range(90)] + [tmp_path / f"few--{n}.png" for n in range(10)]
    rng = np.random.default_rng(0)
    for balance, shares, share in (
        (0.0, {"few": 3.0}, 0.75),
        (1.0, {"few": 9.0}, 0.5),
        (1.0, {"many": 0}, 1.0),
    ):
        compositor = Compositor(files, files, 32, CompositeOptions(balance=balance, shares=shares))
        monkeypatch.setattr(compositor, "_cutouts", lambda file: np.zeros((2, 2, 4), np.uint8))
        drawn = [compositor.draw_cutout(rng)[1].name.startswith("few") for _ in range(2000)]
        assert np.mean(drawn) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"fewer": 2.0}, "no cut-outs of this source; there are few, many"),
        ({"few": -1.0}, "is negative"),
        ({"few": 0.0, "many": 0.0}, "nothing would be drawn"),
    ],
)
def test_wrong_shares_are_told(tmp_path, shares, says):
    files = [tmp_path / "many--0.png", tmp_path / "many--1.png", tmp_path / "few--0.png"]
    with pytest.raises(PolyditError, match=says):
        Compositor(files, files, 32, CompositeOptions(shares=shares))


def test_photographs_are_held_large_enough_for_small_crops(tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (400, 300)).save(file)
    for held, side in ((2.0, 64), (4.0, 128), (20.0, 300)):  # never enlarged
        compositor = Compositor([file], [file], 32, CompositeOptions(photo_held=held))
        assert min(compositor.draw_photo(np.random.default_rng(0))[0].shape[:2]) == side
