"""Pictures of every size and kind through the pipeline."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from discs import disc
from PIL import Image

import polydit
from polydit.core.errors import PolyditError
from polydit.tasks.segmentation.guided import guided_upsample
from polydit.tasks.segmentation.pipeline import SegmentationPipeline, resized


def overlap(found: np.ndarray, mask: np.ndarray) -> float:
    found, mask = found > 0.5, mask > 127
    return (found & mask).sum() / (found | mask).sum()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (37, 53), (150, 90), (20, 16)])
@pytest.mark.parametrize("detail", ["tiles", "guided", "none"])
def test_any_size_gives_a_mask_of_that_size(pipe, size, detail):
    picture, mask = disc(*size, seed=3)
    found = pipe(picture, detail=detail, output_type="np")
    assert found.masks[0].shape == found.edges[0].shape == size
    assert found.masks[0].min() >= 0
    assert found.masks[0].max() <= 1
    assert overlap(found.masks[0], mask) > 0.6


def test_tiles_see_more_than_the_whole(pipe):
    picture, mask = disc(192, 192, seed=5)
    errors = {}
    for detail in ("none", "tiles"):
        found = pipe(picture, detail=detail, output_type="np").masks[0]
        errors[detail] = np.abs(found - mask / 255).mean()
    assert errors["tiles"] < errors["none"]


def test_tiles_are_told_what_the_whole_look_found(pipe):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    told = [pipe.look(picture, context=torch.full((1, 1, 32, 32), value))[0].mean() for value in (0.0, 1.0)]
    assert told[1] > told[0] + 0.2


def test_saved_and_loaded_it_gives_the_same(pipe, weights):
    loaded = polydit.load(weights)
    assert isinstance(loaded, SegmentationPipeline)
    picture, _ = disc(48, 40)
    same = [p(picture, output_type="np").masks[0] for p in (pipe, loaded)]
    assert np.abs(same[0] - same[1]).max() < 1e-5


def test_every_kind_of_input_is_the_same_picture(pipe, tmp_path):
    picture, _ = disc(40, 40)
    path = tmp_path / "disc.png"
    Image.fromarray(picture).save(path)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    kinds = [picture, Image.fromarray(picture), path, str(path), tensor]
    masks = [pipe(kind, output_type="np").masks[0] for kind in kinds]
    assert all(np.allclose(mask, masks[0], atol=1e-6) for mask in masks)
    assert pipe(picture).masks[0].mode == "L"
    assert pipe(picture, output_type="pt").masks[0].shape == (1, 40, 40)


def test_transparent_pictures_stand_on_white(pipe):
    picture, mask = disc(40, 40)
    rgba = Image.fromarray(np.dstack([picture, mask]))
    white = Image.fromarray(np.where(mask[..., None] > 0, picture, 255).astype(np.uint8))
    assert np.array_equal(*(pipe(p, output_type="np").masks[0] for p in (rgba, white)))


def test_sixteen_bits_are_read_as_from_a_file(pipe, tmp_path):
    grey = Image.fromarray(np.asarray(Image.fromarray(disc(40, 40)[0]).convert("L")).astype(np.uint16) * 257)
    grey.save(tmp_path / "grey.png")
    assert grey.mode == "I;16"
    eight = Image.fromarray(disc(40, 40)[0]).convert("L")
    masks = [pipe(p, output_type="np").masks[0] for p in (grey, tmp_path / "grey.png", eight)]
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])


def test_only_what_is_in_the_box(pipe):
    left, mask = disc(48, 48, seed=1)
    both = np.concatenate([left, left], axis=1)
    found = pipe(both, box=(48, 0, 96, 48), output_type="np").masks[0]
    assert not found[:, :48].any()
    assert overlap(found[:, 48:], mask) > 0.6
    with pytest.raises(PolyditError, match="nothing of it lies in the picture"):
        pipe(both, box=(200, 0, 300, 10))


def test_stretching_reaches_both_ends(pipe):
    found = pipe(disc(40, 40)[0], min_max=True, output_type="np").masks[0]
    assert found.min() == 0
    assert found.max() == 1


def test_a_picture_of_one_pixel_and_a_very_wide_one(pipe):
    assert pipe(np.zeros((1, 1, 3), np.uint8), output_type="np").masks[0].shape == (1, 1)
    begin = time.perf_counter()
    found = pipe(np.zeros((60, 10_000, 3), np.uint8), detail_side=64, output_type="np")
    assert found.masks[0].shape == (60, 10_000)
    assert time.perf_counter() - begin < 20


def test_very_long_pictures_are_squeezed_and_keep_their_short_side():
    assert resized(torch.zeros(1, 3, 60, 10_000), 256, 8).shape[-2:] == (128, 512)
    assert resized(torch.zeros(1, 3, 300, 400), 256, 8).shape[-2:] == (224, 296)
    same = torch.rand(1, 3, 64, 64) * 2 - 1
    assert resized(same, 64, 8) is same


def test_large_bytes_are_reduced_like_floats():
    picture = torch.randint(0, 255, (1, 3, 20, 30), dtype=torch.uint8)
    picture = picture.repeat_interleave(20, -1).repeat_interleave(20, -2)
    as_bytes = resized(picture, 64, 8)
    as_floats = resized(picture.float() / 127.5 - 1, 64, 8)
    assert (as_bytes - as_floats).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"detail": "much"}, "detail 'much'"),
        ({"output_type": "jpeg"}, "output_type 'jpeg'"),
        ({"num_inference_steps": 4}, "--steps 4: masks are predicted in one step"),
    ],
)
def test_unknown_options_are_refused_in_one_line(pipe, options, line):
    with pytest.raises(PolyditError, match=line) as caught:
        pipe(disc(32, 32)[0], **options)
    assert "\n" not in str(caught.value)


def test_other_arrays_are_refused(pipe):
    with pytest.raises(PolyditError, match=r"\(H, W, 3\) uint8"):
        pipe(np.zeros((8, 8)))


def test_the_guided_filter_follows_the_pictures_edge():
    """A coarse mask of a slanted edge is enlarged by 8: the rim then lies where the colours change."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    truth = (x + 0.6 * y > 100).float()[None, None]
    picture = (truth * 2 - 1).repeat(1, 3, 1, 1) * torch.tensor([0.8, -0.5, 0.3]).view(1, 3, 1, 1)
    coarse = torch.nn.functional.avg_pool2d(truth, 8)
    guided = guided_upsample(coarse, picture, radius=2)
    plain = torch.nn.functional.interpolate(coarse, (128, 128), mode="bilinear")
    assert (guided - truth).abs().mean() < 0.4 * (plain - truth).abs().mean()


def test_the_guided_filter_leaves_sure_regions_alone():
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    for value in (0.0, 1.0):
        assert torch.equal(
            guided_upsample(torch.full((1, 1, 8, 8), value), picture), torch.full((1, 1, 64, 64), value)
        )


def test_six_looks_are_the_mean_of_mirrored_and_resized_ones(pipe):
    picture, _ = disc(32, 32, seed=2)
    one, six = (pipe(picture, augment=a, detail="none", output_type="np").masks[0] for a in (False, True))
    assert not np.allclose(one, six, atol=1e-3)
    mirrored = pipe(picture[:, ::-1].copy(), augment=True, detail="none", output_type="np").masks[0]
    assert np.allclose(mirrored[:, ::-1], six, atol=1e-5), "the mean has no side"
    tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    mask, _ = pipe.look_at_whole(tensor, None, (1.0, 1.0))
    left, right = pipe.look(tensor / 127.5 - 1)[0], pipe.look((tensor / 127.5 - 1).flip(-1))[0].flip(-1)
    assert torch.allclose(mask, (left + right) / 2, atol=1e-5)
