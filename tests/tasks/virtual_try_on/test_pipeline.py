"""The pipeline: pictures of any size in and out, what stays untouched, guidance, caches, saved folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import polydit
from polydit.core.adapters import LoraOptions, inject_group
from polydit.core.conditioning import TokenGroupDiT
from polydit.core.diffusion import Parameterization, make_scheduler
from polydit.core.errors import PolyditError
from polydit.tasks.virtual_try_on.fitting import view_around
from polydit.tasks.virtual_try_on.formulation import TokenGroupFormulation
from polydit.tasks.virtual_try_on.framing import Frame
from polydit.tasks.virtual_try_on.masks import read_mask
from polydit.tasks.virtual_try_on.pipeline import VirtualTryOnPipeline, to_mask, to_tensor


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    model = TokenGroupDiT(
        conditions={"person": "shared", "garment": "beside"}, input_size=[16, 12], patch_size=4, in_channels=3,
        hidden_size=16, depth=2, num_heads=2, num_classes=None, position="rope", gate_init=0.5,
    )  # fmt: skip
    for group, rank in (("garment", 4), ("person", 2)):
        inject_group(model, LoraOptions(rank, targets="attention"), group)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    parameterization = Parameterization(prediction="x0")
    made = VirtualTryOnPipeline(
        transformer=model.eval(),
        scheduler=make_scheduler("euler", parameterization, shift=2.0),
        formulation=TokenGroupFormulation(16, 12, keep_known=True).config(),
        parameterization=parameterization.config(),
        adapters={"garment": "garment", "person": "person"},
        steps=3,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    person, garment = (rng.integers(0, 256, shape, np.uint8) for shape in ((40, 36, 3), (20, 50, 3)))
    mask = np.zeros((40, 36), np.uint8)
    mask[8:30, 6:28] = 255
    return person, garment, mask


def run(pipe, person, garment, mask, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(person, garment, mask, generator=generator, **options).images[0])


def test_pixels_outside_of_the_mask_are_the_persons_own(pipe, pictures):
    person, _, mask = pictures
    result = run(pipe, *pictures)
    assert result.shape == person.shape
    assert (result[mask == 0] == person[mask == 0]).all()
    assert (result[mask > 0] != person[mask > 0]).mean() > 0.5
    free = run(pipe, *pictures, repaint=False)
    assert (free[mask == 0] != person[mask == 0]).any()
    # the ramp is inside: in the middle there is nothing of the person
    assert (result[16:22, 14:20] == free[16:22, 14:20]).all()


def test_the_feather_mixes_towards_the_border(pipe, pictures):
    person, _, mask = pictures
    hard, soft = (run(pipe, *pictures, feather=share).astype(int) for share in (0.0, 0.15))
    ring = np.zeros(mask.shape, bool)
    ring[8:30, 6:28] = True
    ring[9:29, 7:27] = False
    assert np.abs(soft - person)[ring].mean() < 0.6 * np.abs(hard - person)[ring].mean()


def test_the_seed_decides_and_the_cache_does_not(pipe, pictures):
    first = run(pipe, *pictures)
    assert (first == run(pipe, *pictures)).all()
    assert (first != run(pipe, *pictures, seed=1)).any()
    slow = run(pipe, *pictures, cache=False).astype(int)
    assert np.abs(first - slow).max() <= 1


def test_guidance_pushes_away_from_no_garment(pipe, pictures):
    person, _, mask = pictures
    bare = run(pipe, person, None, mask, output_type="np")
    once = run(pipe, *pictures, output_type="np")
    assert np.allclose(run(pipe, *pictures, guidance_scale=1.0, output_type="np"), once)
    none = run(pipe, *pictures, guidance_scale=0.0, output_type="np", num_inference_steps=1)
    np.testing.assert_allclose(
        none, run(pipe, person, None, mask, output_type="np", num_inference_steps=1), atol=1e-5
    )
    assert not np.allclose(run(pipe, *pictures, guidance_scale=3.0, output_type="np"), once)
    assert not np.allclose(bare, once)


def test_what_is_under_the_mask_does_not_leak(pipe, pictures):
    """At the network's own size, where no filter reaches over the border of the mask."""
    rng = np.random.default_rng(1)
    person, garment = rng.integers(0, 256, (16, 12, 3), np.uint8), pictures[1]
    mask = np.zeros((16, 12), bool)
    mask[4:12, 3:9] = True
    other = np.where(mask[..., None], rng.integers(0, 256, (16, 12, 3), np.uint8), person)
    assert (run(pipe, person, garment, mask, feather=0) == run(pipe, other, garment, mask, feather=0)).all()


def test_saved_and_loaded_it_is_the_same(pipe, pictures, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved/adapters").iterdir()) == [
        "garment.safetensors",
        "person.safetensors",
    ]
    again = polydit.load(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.config.steps == 3
    assert (run(again, *pictures) == run(pipe, *pictures)).all()
    # without the LoRAs it is another model
    for file in (tmp_path / "saved/adapters").iterdir():
        file.unlink()
    with pytest.raises(PolyditError, match=r"garment.safetensors: missing; the folder is incomplete"):
        polydit.load(tmp_path / "saved")
    # saving put the LoRAs back in their places
    assert any("lora_A" in name for name, _ in pipe.transformer.named_parameters())


def test_lists_and_kinds_of_pictures(pipe, pictures, tmp_path):
    person, garment, mask = pictures
    Image.fromarray(person).save(tmp_path / "person.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(garment).save(tmp_path / "garment.png")
    expected = run(pipe, *pictures)
    files = (tmp_path / f"{name}.png" for name in ("person", "garment", "mask"))
    assert (run(pipe, *files) == expected).all()
    tensor = torch.from_numpy(person).permute(2, 0, 1) / 127.5 - 1
    made = pipe(
        [tensor, Image.fromarray(person)], Image.fromarray(garment), mask > 0,
        generator=torch.Generator().manual_seed(0), output_type="pt", num_inference_steps=1,
    ).images  # fmt: skip
    assert [tuple(m.shape) for m in made] == [(1, 3, 40, 36)] * 2
    with pytest.raises(PolyditError, match="2 pictures as garment for 1 people"):
        pipe(person, [garment, garment], mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.ones((9, 36), bool)}, "mask of 36x9 pixels for a person of 36x40"),
        ({"mask": np.zeros((40, 36), bool)}, "mask: nothing is set in it"),
        ({"output_type": "latent"}, "output_type 'latent'"),
        ({"num_inference_steps": 0}, "--steps 0"),
        ({"person": np.zeros((40, 36, 4), np.uint8)}, r"picture of shape \(40, 36, 4\)"),
    ],
)
def test_wrong_input_in_one_line(pipe, pictures, change, message):
    given = {**dict(zip(("person", "garment", "mask"), pictures, strict=True)), **change}
    with pytest.raises(PolyditError, match=message):
        pipe(**given)


def test_a_mask_may_be_grey_colour_or_bool():
    values = np.zeros((4, 4), np.uint8)
    values[1, 2] = 200
    wanted = to_mask(values > 0, (4, 4))
    assert float(wanted.sum()) == 1
    for mask in (values, np.stack([values] * 3, -1), Image.fromarray(values), torch.from_numpy(values > 0)):
        assert torch.equal(to_mask(mask, (4, 4)), wanted)


@pytest.mark.parametrize("whole", [(40, 36), (9, 100), (16, 12), (32, 24), (1, 1)])
def test_a_frame_keeps_the_proportions_and_comes_back(whole):
    frame = Frame.fitting(whole, (16, 12))
    assert frame.inner[0] <= 16
    assert frame.inner[1] <= 12
    assert 16 in frame.inner[:1] or 12 in frame.inner[1:]
    picture = torch.full((1, 3, *whole), 0.25)
    assert torch.allclose(frame.shrink(picture), torch.full((1, 3, 16, 12), 0.25), atol=1e-5)
    assert frame.enlarge(frame.shrink(picture)).shape == picture.shape
    point = torch.zeros(1, 1, *whole)
    point[..., whole[0] // 2, whole[1] // 2] = 1
    assert frame.shrink_mask(point).sum() >= 1
    assert frame.shrink_mask(torch.ones(1, 1, *whole)).sum() == frame.inner[0] * frame.inner[1]


def test_a_garment_lies_on_white():
    framed = Frame.onto_white(torch.full((1, 3, 20, 50), -1.0), (16, 12))
    assert framed.shape == (1, 3, 16, 12)
    assert float(framed[..., 0, :].min()) == 1
    assert float(framed[..., 8, :].max()) == pytest.approx(-1)


def test_the_shift_follows_the_tokens_where_the_scheduler_asks_for_it(pipe):
    from diffusers import FlowMatchEulerDiscreteScheduler

    assert pipe.time_shift(torch.zeros(1, 3, 16, 12)) is None
    old, pipe.scheduler = pipe.scheduler, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    try:
        assert pipe.time_shift(torch.zeros(1, 3, 64, 64)) == {"mu": pytest.approx(0.5)}
        assert pipe.time_shift(torch.zeros(1, 3, 256, 256)) == {"mu": pytest.approx(1.15)}
    finally:
        pipe.scheduler = old


def test_a_picture_opened_with_pillow_is_what_its_file_is(pictures, tmp_path):
    _, garment, _ = pictures
    alpha = np.zeros(garment.shape[:2], np.uint8)
    alpha[4:16, 10:40] = 255
    alpha[4, 10:40] = 100
    forms = {
        "rgba": Image.fromarray(np.dstack([garment, alpha])),
        "la": Image.fromarray(np.dstack([garment[..., 0], alpha])),
        "grey": Image.fromarray(garment[..., 0]),
        "palette": Image.fromarray(garment).quantize(16),
        "rgb": Image.fromarray(garment),
    }
    for name, form in forms.items():
        form.save(tmp_path / f"{name}.png")
        shown, read = to_tensor(form), to_tensor(tmp_path / f"{name}.png")
        assert torch.equal(shown, read), name
    assert (to_tensor(forms["rgba"])[0][:, alpha == 0] == 1).all()  # white paper, as in a product photograph
    assert torch.equal(to_tensor(Image.fromarray(garment).convert("CMYK")), to_tensor(
        np.asarray(Image.fromarray(garment).convert("CMYK").convert("RGB"))))  # fmt: skip


def test_what_counts_as_a_mask(pictures):
    _, _, mask = pictures
    expected = to_mask(mask, mask.shape)
    red = np.zeros((*mask.shape, 3), np.uint8)
    red[..., 0] = mask
    for form in (mask // 255, mask > 0, red, Image.fromarray(red), Image.fromarray(mask)):
        assert torch.equal(to_mask(form, mask.shape), expected)


def test_no_mask_is_one_line(pipe, pictures):
    person, garment, _ = pictures
    with pytest.raises(PolyditError, match="mask: none was given; give a picture that is white"):
        pipe(person, garment, None)


def test_a_transparent_mask_is_read_as_the_command_reads_it(tmp_path):
    opaque = np.zeros((40, 36), np.uint8)
    opaque[8:30, 6:28] = 255
    for shade in (255, 0):
        picture = np.dstack([np.full((40, 36, 3), shade, np.uint8), opaque])
        Image.fromarray(picture).save(tmp_path / "mask.png")
        wanted = read_mask(tmp_path / "mask.png")
        for form in (tmp_path / "mask.png", Image.open(tmp_path / "mask.png")):
            assert (to_mask(form, (40, 36))[0, 0].numpy() == wanted).all()
            assert (wanted == (opaque > 0)).all()


def test_a_person_in_a_large_photograph_is_looked_at_closely(pipe, pictures):
    """The network sees the part around the mask: what is far from it changes nothing."""
    person, garment, mask = pictures
    wide = np.random.default_rng(2).integers(0, 256, (120, 200, 3), np.uint8)
    region = np.zeros((120, 200), np.uint8)
    wide[40:80, 90:126], region[40:80, 90:126] = person, mask
    view = view_around(region > 0, (16, 12))
    assert view.height < 60  # half of the photograph
    far = np.ones((120, 200), bool)
    far[view.top : view.top + view.height, view.left : view.left + view.width] = False
    other = np.where(far[..., None], 255 - wide, wide)
    result, same = (run(pipe, one, garment, region) for one in (wide, other))
    np.testing.assert_array_equal(result[~far], same[~far])
    np.testing.assert_array_equal(result[far], wide[far])
    assert (result[~far] != wide[~far]).mean() > 0.1
