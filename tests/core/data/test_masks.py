from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.morphology import diamond, disk

from polydit.core.data import masks
from polydit.core.data.random_masks import RandomMasks, bezier_blob, brush_strokes, object_shape, rectangle


def random_mask(size=(37, 53), share=0.03, seed=0):
    return np.random.default_rng(seed).random(size) < share


FOOTPRINTS = {
    "disk": disk,
    "square": lambda r: np.ones((2 * r + 1, 2 * r + 1), bool),
    "diamond": diamond,
    "cross": lambda r: (np.indices((2 * r + 1, 2 * r + 1)) == r).any(0),
}


@pytest.mark.parametrize("shape", FOOTPRINTS)
@pytest.mark.parametrize("radius", [0, 1, 2, 5, 40])
def test_growth_equals_scipy(shape, radius):
    footprint = FOOTPRINTS[shape](radius).astype(bool)
    hard = random_mask()
    assert np.array_equal(
        masks.dilate(hard, radius, shape), ndimage.binary_dilation(hard, footprint) if radius else hard
    )
    full = ~hard
    eroded = ndimage.binary_erosion(full, footprint, border_value=1) if radius else full
    assert np.array_equal(masks.erode(full, radius, shape), eroded)


def test_growth_of_soft_masks_is_a_maximum():
    soft = np.random.default_rng(1).random((2, 21, 30)).astype(np.float32)
    expected = np.stack([ndimage.grey_dilation(m, footprint=disk(3), mode="constant") for m in soft])
    assert np.array_equal(masks.dilate(soft, 3), expected)
    assert np.allclose(masks.erode(soft, 3), 1 - masks.dilate(1 - soft, 3))


@pytest.mark.parametrize("kind", ["bool", "uint8", "float32"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_type_and_kind_are_kept(kind, library):
    hard = masks.dilate(random_mask(share=0.01), 4)
    value = {"bool": hard, "uint8": hard.astype(np.uint8) * 255, "float32": hard.astype(np.float32)}[kind]
    given = value[None] if library == "numpy" else torch.from_numpy(value)[None]
    for function in (
        lambda m: masks.dilate(m, 2),
        lambda m: masks.erode(m, 2),
        masks.edge_band,
        masks.convex_hull,
        masks.fill_holes,
        masks.inflate,
        lambda m: masks.resize_mask(m, (8, 9), "max"),
    ):
        result = function(given)
        assert type(result) is type(given)
        assert result.dtype == given.dtype
        assert np.array_equal(
            np.asarray(masks.harden(result)), np.asarray(function(hard[None]))
        )  # all kinds say the same


def test_edge_band_is_the_five_by_five_gradient_and_not_at_the_border():
    mask = np.zeros((20, 20), bool)
    mask[:, :10] = True
    band = masks.edge_band(mask)
    assert band[:, 8:12].all()
    assert band.sum() == 20 * 4
    assert masks.edge_band(mask, outside=False).sum() == masks.edge_band(mask, inside=False).sum() == 40


def test_hull_contains_the_mask_and_is_convex():
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:9] = mask[26:30, 5:30] = True
    hull = masks.convex_hull(mask)
    assert (hull >= mask).all()
    assert hull[20, 12]
    assert not hull[6, 28]
    assert np.array_equal(masks.convex_hull(hull), hull)
    for tiny in (np.zeros((9, 9), bool), np.eye(1, 81, 40).reshape(9, 9) > 0):  # none, one pixel
        assert np.array_equal(masks.convex_hull(tiny), tiny)


def test_holes_are_filled():
    ring = np.zeros((9, 9), np.uint8)
    ring[2:7, 2:7] = 255
    ring[4, 4] = 0
    assert masks.fill_holes(ring)[4, 4] == 255
    assert masks.fill_holes(ring)[0, 0] == 0


@pytest.mark.parametrize("margin", [0, 3, 100])
@pytest.mark.parametrize("multiple", [1, 8])
def test_box_holds_everything_and_stays_inside(margin, multiple):
    mask = np.zeros((2, 50, 41), bool)
    mask[0, 10, 7] = mask[1, 29, 33] = True
    box = masks.bounding_box(mask, margin, multiple)
    assert mask[(..., *box.slices)].sum() == 2
    assert 0 <= box.top < box.bottom <= 50
    assert 0 <= box.left < box.right <= 41
    assert box.height % multiple == 0 or box.height == 50
    assert box.width % multiple == 0 or box.width == 41
    if (margin, multiple) == (0, 1):
        assert box == masks.Box(10, 7, 30, 34)
        assert masks.box_mask(box, (50, 41)).sum() == box.height * box.width
    assert masks.bounding_box(np.zeros((4, 4))) is None


def test_inflation_follows_the_size_of_each_mask():
    both = np.zeros((2, 100, 100), bool)
    both[0, 45:55, 45:55] = both[1, 30:70, 30:70] = True
    grown = masks.inflate(both, 0.1, "square")
    assert [masks.bounding_box(m).height for m in grown] == [12, 48]
    assert not masks.inflate(np.zeros((5, 5), bool)).any()


def test_paste_back_changes_no_bit_outside():
    rng = np.random.default_rng(2)
    mask = masks.dilate(random_mask((64, 64), 0.002), 9)
    for dtype in (np.uint8, np.float32):
        old, new = ((rng.random((64, 64, 3)) * 255).astype(dtype) for _ in range(2))
        pasted = masks.paste_back(old, new, mask, feather_width=5)
        assert pasted.dtype == dtype
        assert np.array_equal(pasted[~mask], old[~mask])
        core = masks.erode(mask, 4, "square")
        assert core.any()
        assert np.array_equal(pasted[core], new[core])
        assert np.array_equal(masks.paste_back(old, new, mask)[mask], new[mask])
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    pasted = masks.paste_back(a, b, torch.from_numpy(mask)[None, None], 5)
    outside = ~torch.from_numpy(mask).expand(2, 3, 64, 64)
    assert torch.equal(pasted[outside], a[outside])
    with pytest.raises(ValueError, match="mask"):
        masks.paste_back(old, new, mask[:32])


def test_feather_is_a_ramp_inside():
    mask = np.zeros((31, 31), bool)
    mask[5:26, 5:26] = True
    ramp = masks.feather(mask, 4)
    assert np.allclose(ramp[15, 3:11], [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert (ramp[~mask] == 0).all()
    assert np.array_equal(masks.feather(mask, 0), mask.astype(np.float32))


def test_grid_of_latents():
    mask = np.zeros((16, 16), bool)
    mask[:5, :4] = True
    area = masks.resize_mask(mask, (4, 4))
    assert area[0, 0] == 1
    assert area[1, 0] == 0.25
    assert area.sum() * 16 == mask.sum()
    assert masks.resize_mask(mask, (4, 4), "max").sum() == 2
    assert masks.resize_mask(mask, (4, 4), "min").sum() == 1
    assert np.array_equal(
        masks.resize_mask(masks.resize_mask(mask, (48, 48), "nearest"), (16, 16), "max"), mask
    )
    video = torch.zeros(1, 1, 8, 16, 16, dtype=torch.bool)
    video[..., 3, 2, 2] = True
    assert masks.resize_mask(video, (2, 4, 4), "max").nonzero().tolist() == [[0, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="height, width"):
        masks.resize_mask(mask, (4,))


def test_union_over_time():
    video = torch.zeros(1, 9, 4, 4, dtype=torch.bool)
    video[0, 4, 1, 1] = True
    assert masks.temporal_union(video, 2)[0, :, 1, 1].tolist() == [i in range(2, 7) for i in range(9)]
    assert masks.temporal_union(video)[0, :, 1, 1].all()
    assert masks.temporal_union(video, 100)[0, :, 1, 1].all()
    assert masks.temporal_union(video, 0).sum() == video.sum() == 1


def test_hard_and_soft():
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    assert masks.harden(levels).tolist() == [[False, False, True, True]]
    assert masks.soften(levels)[0, 3] == 1
    assert masks.soften(masks.harden(levels)).dtype == np.float32
    assert np.array_equal(masks.harden(masks.soften(levels)), masks.harden(levels))


KINDS = {
    "brush": brush_strokes,
    "blob": bezier_blob,
    "rectangle": rectangle,
    "object": lambda size, g: object_shape(size, g, disk(20) > 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_masks_are_seeded_and_of_their_size(kind):
    def draw(seed):
        return KINDS[kind]((96, 128), torch.Generator().manual_seed(seed))

    several = [draw(seed) for seed in range(5)]
    assert all(m.shape == (96, 128) and m.dtype == bool and 0 < m.mean() < 0.9 for m in several)
    assert all(np.array_equal(m, draw(seed)) for seed, m in enumerate(several))
    assert len({m.tobytes() for m in several}) == 5


def test_a_blob_is_one_piece_without_holes():
    for seed in range(5):
        mask = bezier_blob((128, 128), torch.Generator().manual_seed(seed))
        assert ndimage.label(mask)[1] == 1
        assert np.array_equal(masks.fill_holes(mask), mask)


def test_mixture_keeps_to_its_area():
    generator = torch.Generator().manual_seed(0)
    draw = RandomMasks(brush=1, blob=1, rectangle=1, object=1, shapes=[disk(9) > 0], area=(0.05, 0.3))
    shares = [draw((64, 80), generator).mean() for _ in range(20)]
    assert min(shares) >= 0.05
    assert max(shares) <= 0.3
    assert RandomMasks(brush=0)((1, 1), generator).all()  # nothing smaller fits
    with pytest.raises(ValueError, match="shapes"):
        RandomMasks(object=1)
