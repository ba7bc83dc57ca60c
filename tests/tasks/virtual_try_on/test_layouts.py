"""VITON-HD and DressCode as they lie on the disk, complete and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.tasks.virtual_try_on.data import DressCode, PhotographedPairs, VitonHD
from polydit.tasks.virtual_try_on.layouts import dresscode, mask_of, usable, viton_hd


def names(pairs):
    return [(pair.person.name, pair.garment.name) for pair in pairs]


def test_viton_pairs_ignore_the_second_column(viton: Path):
    pairs = viton_hd(viton, "test")
    assert names(pairs) == [(f"000{n}_00.jpg",) * 2 for n in (10, 11, 12)]
    assert all(pair.worn and pair.category == "upper" for pair in pairs)
    assert pairs[0].mask == viton / "test/agnostic-mask/00010_00_mask.png"
    assert pairs[0].garment_mask == viton / "test/cloth-mask/00010_00.jpg"


def test_viton_unpaired_takes_the_second_column_of_its_own_list_first(viton: Path):
    assert names(viton_hd(viton, "test", paired=False))[0] == ("00010_00.jpg", "00011_00.jpg")
    (viton / "test_pairs_unpaired.txt").write_text("00010_00.jpg 00012_00.jpg\n")
    (pair,) = viton_hd(viton, "test", paired=False)
    assert names([pair]) == [("00010_00.jpg", "00012_00.jpg")]
    assert not pair.worn


def test_a_mask_that_is_missing_is_made_from_the_parse_map(viton: Path):
    last = viton_hd(viton, "test")[-1]
    assert last.mask is None
    mask = mask_of(last)
    labels = np.asarray(Image.open(last.parse))
    assert mask[np.isin(labels, (5, 14))].all()  # garment and arms
    assert not mask[labels == 13].any()  # the face
    assert mask.mean() < 0.6


def test_dresscode_pairs_by_category(dress_code: Path):
    assert names(dresscode(dress_code, "train", categories=["upper_body"])) == [
        ("000020_0.jpg", "000020_1.jpg"),
        ("000021_0.jpg", "000021_1.jpg"),
    ]
    (pair,) = dresscode(dress_code, "test", paired=False, categories=["lower_body"])
    assert (names([pair]), pair.category, pair.worn) == ([("000022_0.jpg", "000023_1.jpg")], "lower", False)
    mask = mask_of(pair)
    labels = np.asarray(Image.open(pair.parse))
    assert mask[labels == 6].all()
    assert not mask[labels == 4].any()  # the upper garment stays


def test_masks_of_dresscode_are_read_where_they_exist(dress_code: Path):
    painted = np.zeros((32, 24), np.uint8)
    painted[:4] = 255
    (dress_code / "upper_body/agnostic_masks").mkdir()
    Image.fromarray(painted).save(dress_code / "upper_body/agnostic_masks/000020_0.png")
    pair = dresscode(dress_code, "train", categories=["upper_body"])[0]
    np.testing.assert_array_equal(mask_of(pair), painted > 0)


def test_the_data_module_gives_the_agreed_batches(viton: Path):
    data = VitonHD(str(viton), height=48, width=32, batch_size=2, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["person"].shape == batch["garment"].shape == batch["masked_person"].shape == (2, 3, 48, 32)
    assert batch["mask"].shape == (2, 1, 48, 32)
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    hidden = batch["mask"].expand(-1, 3, -1, -1) == 1
    assert (batch["masked_person"][hidden] == 0).all()
    assert (batch["masked_person"][~hidden] == batch["person"][~hidden]).all()
    assert len(data.train_set) == 4
    again = data.val_set[0]
    assert (again["mask"] == batch["mask"][0]).all()


def test_maps_of_half_the_size_fit_their_photographs(dress_code: Path):
    data = DressCode(str(dress_code), categories=["upper_body"], height=32, width=24, num_workers=0)
    data.setup("fit")
    sample = data.train_set[0]
    assert 0.1 < sample["mask"].mean() < 0.6


def test_pairs_without_files_are_named_and_skipped(viton: Path, capsys):
    (viton / "train/cloth/00002_00.jpg").unlink()
    data = VitonHD(str(viton), height=32, width=24, num_workers=0)
    data.setup("fit")
    assert len(data.train_set) == 3
    said = capsys.readouterr().out
    assert "00002_00.jpg: is in the list but not on the disk" in said
    assert "1 of 4 pairs" in said
    with pytest.raises(PolyditError, match=r"00002_00.jpg: is in the list but not on the disk"):
        VitonHD(str(viton), height=32, width=24, strict=True).setup("fit")


def test_a_pair_without_mask_and_parse_map_is_named(viton: Path):
    for file in (viton / "test/image-parse-v3").iterdir():
        file.unlink()
    pairs = viton_hd(viton, "test")
    good, lines = usable(pairs, viton)
    assert len(good) == 2
    assert lines == [
        f"{viton}/test/image/00012_00.jpg: has neither an agnostic mask nor a parse map; make masks first, "
        "or leave it out"
    ]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda root: (root / "train_pairs.txt").unlink(),
            "train_pairs.txt: no such file; the list of pairs",
        ),
        (lambda root: (root / "train_pairs.txt").write_text("\n"), "train_pairs.txt: is empty"),
        (
            lambda root: (root / "train_pairs.txt").write_text("00000_00.jpg\n"),
            "line 1 is '00000_00.jpg'; it must name a person and a garment",
        ),
        (
            lambda root: (root / "train").rename(root / "training"),
            "is not VITON-HD, there is no folder train",
        ),
        (lambda root: root.rename(root.parent / "moved"), "no such folder; give the one of VITON-HD"),
    ],
)
def test_damaged_viton_folders_are_one_line(viton: Path, damage, line: str):
    damage(viton)
    with pytest.raises(PolyditError, match=line) as caught:
        viton_hd(viton)
    assert "\n" not in str(caught.value)


def test_damaged_dresscode_folders_are_one_line(dress_code: Path):
    with pytest.raises(PolyditError, match="there is no folder dresses"):
        dresscode(dress_code)
    with pytest.raises(PolyditError, match="'skirts' is unknown; choose from upper_body"):
        dresscode(dress_code, categories=["skirts"])
    with pytest.raises(PolyditError, match="no unpaired list"):
        dresscode(dress_code, "train", paired=False, categories=["upper_body"])
    (dress_code / "upper_body/test_pairs_unpaired.txt").unlink()
    with pytest.raises(PolyditError, match=r"test_pairs_unpaired.txt: no such file"):
        dresscode(dress_code, "test", paired=False, categories=["upper_body"])


def test_a_mask_of_another_person_is_refused(viton: Path):
    file = viton / "test/agnostic-mask/00010_00_mask.png"
    Image.new("L", (64, 20), 255).save(file)
    pairs = PhotographedPairs(viton_hd(viton, "test"), (32, 24))
    with pytest.raises(PolyditError, match=r"64x20 has not the proportions of 00010_00.jpg"):
        pairs[0]


def test_a_parse_map_in_colours_or_of_nobody_is_refused(viton: Path):
    pair = viton_hd(viton, "test")[-1]
    Image.new("RGB", (24, 32)).save(pair.parse)
    with pytest.raises(PolyditError, match="stores colours"):
        mask_of(pair)
    Image.new("L", (24, 32)).save(pair.parse)
    with pytest.raises(PolyditError, match="shows no upper garment and no limbs"):
        mask_of(pair)
