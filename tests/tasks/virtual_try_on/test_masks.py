"""Agnostic masks and how pictures are fitted to the weights and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polydit.core.errors import PolyditError
from polydit.tasks.virtual_try_on.fitting import (
    View,
    fit_garment,
    fit_mask,
    fit_person,
    view_around,
)
from polydit.tasks.virtual_try_on.masks import from_parse, from_region, read_mask

from .conftest import person_labels


@pytest.mark.parametrize(("scheme", "trousers", "face"), [("lip", 9, 13), ("atr", 6, 11)])
def test_an_upper_mask_hides_the_arms_and_keeps_the_rest(scheme: str, trousers: int, face: int):
    labels = person_labels(96, 64, scheme)
    mask = from_parse(labels, scheme)
    assert mask[np.isin(labels, {"lip": (5, 14), "atr": (4, 14)}[scheme])].all()
    assert not mask[labels == face].any()
    # Only the last dilation, max(w, h) // 250 = 0 pixels here, and the blur reach into what stays.
    assert mask[labels == trousers].mean() < 0.25
    assert not from_parse(labels, scheme, "lower")[labels == face].any()


def test_a_mask_does_not_tell_short_sleeves_from_long_ones():
    bare, covered = (person_labels(96, 64, "lip") for _ in range(2))
    covered[covered == 14] = 5
    agree = from_parse(bare, "lip") == from_parse(covered, "lip")
    assert agree.mean() > 0.99


def test_a_region_is_closed_and_grown():
    region = np.zeros((100, 60), bool)
    region[20:60, 20:25] = region[20:60, 40:45] = True
    mask = from_region(region)
    assert mask[20:60, 20:45].all()
    assert mask[40, 20 - 4]
    assert not mask[40, 20 - 6]


def test_masks_are_read_from_light_or_from_opacity(tmp_path: Path):
    light = np.zeros((8, 6), np.uint8)
    light[2:4, 2:4] = 255
    Image.fromarray(light).save(tmp_path / "grey.png")
    rgba = np.zeros((8, 6, 4), np.uint8)
    rgba[..., 3] = light  # a layer painted black
    Image.fromarray(rgba).save(tmp_path / "layer.png")
    for name in ("grey.png", "layer.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, (8, 6)), light > 0)


def test_masks_that_cannot_be_used_are_one_line(tmp_path: Path):
    Image.new("L", (6, 8)).save(tmp_path / "m.png")
    with pytest.raises(PolyditError, match=r"m.png: is empty; paint white"):
        read_mask(tmp_path / "m.png")
    Image.new("L", (6, 8), 255).save(tmp_path / "m.png")
    with pytest.raises(
        PolyditError, match=r"m.png: 6x8, but the person is 12x16; give a mask of the same size"
    ):
        read_mask(tmp_path / "m.png", (16, 12))


def test_persons_are_cut_and_garments_filled_up():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 30:] = 200
    person = fit_person(wide, (48, 32))
    assert person.shape == (48, 32, 3)
    assert (person[:, 0] == 0).all()
    assert (person[:, -1] == 200).all()
    garment = fit_garment(wide, (48, 32))
    assert garment.shape == (48, 32, 3)
    assert (garment[:18] == 255).all()
    assert (garment[30:] == 255).all()
    assert (garment[24, 2] == 0).all()
    mask = np.zeros((20, 60), bool)
    mask[5, 30] = True
    fitted = fit_mask(mask, (48, 32))
    assert set(np.unique(fitted)) == {0, 255}
    assert 4 <= (fitted > 0).sum() <= 16  # one pixel of 20 rows, and nothing far from it


def test_a_view_has_the_proportions_and_holds_the_mask():
    mask = np.zeros((300, 900), bool)
    mask[150:200, 700:740] = True
    view = view_around(mask, (96, 64))
    assert view.width == pytest.approx(view.height * 2 / 3, abs=1)
    assert view.height == pytest.approx(50 / 0.62, abs=1)
    assert 0 <= view.top <= 150
    assert view.top + view.height >= 200
    assert view.left <= 700
    assert view.left + view.width >= 740
    large = np.zeros((96, 64), bool)
    large[30:80, 5:60] = True
    assert view_around(large, (192, 128)) == View(0, 0, 96, 64)  # the whole picture


def test_a_mask_wider_than_the_picture_allows_gets_a_view_beyond_the_edge():
    mask = np.ones((40, 200), bool)
    view = view_around(mask, (96, 64))
    assert view.width >= 200
    assert view.top < 0
    part = view.cut(np.arange(8000, dtype=np.uint16).reshape(40, 200).astype(np.uint8))
    assert part.shape == (view.height, view.width)


def test_a_part_is_cut_and_put_back():
    picture = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    for view in (View(5, 0, 50, 40), View(-10, 20, 90, 30)):
        np.testing.assert_array_equal(view.insert(picture, view.cut(picture)), picture)
    changed = View(5, 0, 50, 40).insert(picture, np.zeros((50, 40, 3), np.uint8))
    assert not changed[5:55].any()
    np.testing.assert_array_equal(changed[:5], picture[:5])


def test_a_single_pixel_is_a_mask():
    mask = np.zeros((64, 48), bool)
    mask[10, 10] = True
    view = view_around(mask, (96, 64))
    assert view.height >= 8
    assert view.cut(mask).sum() == 1
