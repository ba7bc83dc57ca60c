from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from layer_scenes import scene
from PIL import Image

from polydit.core.backbones.pretrained import as_backbone
from polydit.core.data.masks import Box
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.tasks.layer_decomposition.formulation import CONDITIONS, Formulation
from polydit.tasks.layer_decomposition.group_types import GroupTypes
from polydit.tasks.layer_decomposition.pipeline import compose, fading, surroundings, to_array, to_mask


def files(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    part = scene(height, width, seed)
    image = (part["image"] * 255).round().byte().permute(1, 2, 0).numpy()
    return image, (part["mask"][0] * 255).byte().numpy()


@pytest.mark.parametrize(("height", "width"), [(40, 56), (64, 64), (133, 201)])
def test_layers_make_the_picture_whatever_the_network_says(tiny, height: int, width: int):
    """The network is random: exactness is the algebra's, at the network's size and above it."""
    image, mask = files(height, width)
    made = tiny(awake=True)(image, mask, generator=torch.Generator().manual_seed(0))
    assert made.background.shape == image.shape
    assert made.foreground.shape == (height, width, 4)
    error = np.abs(made.composite.astype(int) - image.astype(int))
    assert error.max() <= 1
    assert (compose(made.background, made.foreground) == made.composite).all()
    untouched = made.foreground[..., 3] == 0
    assert untouched.any()
    assert (made.background[untouched] == image[untouched]).all()
    assert (made.foreground[mask > 0][:, 3] > 0).any()


def test_a_network_that_says_nothing_leaves_the_mask_and_a_smooth_fill(tiny):
    image, mask = files(64, 80)
    made = tiny(awake=False)(image, mask)
    inside = np.zeros_like(mask, dtype=bool)
    inside[20:44, 24:36] = True  # well within the object
    assert (made.foreground[inside][:, 3] == 255).all()
    assert (made.foreground[inside][:, :3] == image[inside]).all()
    assert (made.foreground[mask == 0][:, 3] == 0).mean() > 0.95
    spread = made.background[inside].astype(float).std(0)
    assert (spread < image[mask == 0].astype(float).std(0)).all()
    assert not (made.background[inside] == image[inside]).all()


def test_the_same_seed_gives_the_same_layers(tiny):
    image, mask = files(48, 48)
    pipe = tiny(signal_gain=False)
    first, again, other = (pipe(image, mask, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert (first.foreground == again.foreground).all()
    assert (first.foreground != other.foreground).any()


def test_the_size_for_the_network_can_be_chosen(tiny):
    image, mask = files(120, 120)
    pipe, seen = tiny(), []
    layers = pipe.layers
    pipe.layers = lambda small, *rest, **options: seen.append(small.shape) or layers(small, *rest, **options)
    pipe(image, mask)
    pipe(image, mask, size=40)
    assert max(seen[0][-2:]) == 64  # as trained
    assert max(seen[1][-2:]) == 40


def test_an_empty_mask_copies_the_picture(tiny):
    image, mask = files(40, 40)
    made = tiny()(image, mask * 0)
    assert made.empty
    assert (made.background == image).all()
    assert (made.composite == image).all()
    assert made.foreground.max() == 0


def test_an_object_of_one_pixel(tiny):
    image, mask = files(40, 60)
    mask[:] = 0
    mask[39, 0] = 255  # in the corner
    made = tiny(awake=False)(image, mask)
    assert made.foreground[39, 0, 3] == 255
    assert (made.foreground[..., 3] > 0).sum() <= 9
    assert np.abs(made.composite.astype(int) - image).max() <= 1


def test_an_object_that_fills_the_picture(tiny):
    image, mask = files(40, 60)
    made = tiny(awake=False)(image, np.full_like(mask, 255))
    assert (made.foreground[..., :3] == image).all()
    assert np.isfinite(made.background).all()


def test_a_wide_picture_costs_what_its_object_costs(tiny):
    """10,000 pixels wide: only the object's surroundings are worked on."""
    image = np.tile(files(40, 100)[0], (1, 100, 1))
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[10:30, 5000:5020] = 255
    pipe, seen = tiny(), []
    decompose = pipe.decompose
    pipe.decompose = lambda part, *rest: seen.append(part.shape) or decompose(part, *rest)
    made = pipe(image, mask)
    assert seen == [(1, 3, 40, 52)]
    assert (made.background[:, :4900] == image[:, :4900]).all()
    assert np.abs(made.composite.astype(int) - image).max() <= 1


def test_a_large_object_is_filled_at_reduced_size(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("polydit.tasks.layer_decomposition.pipeline._LARGEST_FILL", 32)
    image, mask = files(96, 120)
    made = tiny(awake=False)(image, mask)
    assert np.abs(made.composite.astype(int) - image).max() <= 1
    whole = image[mask == 0].reshape(-1, 3).mean(0)
    hidden = made.background[made.foreground[..., 3] == 255].mean(0)
    assert np.abs(hidden - whole).max() < 40


def test_pictures_of_any_kind(tiny, tmp_path: Path):
    image, mask = files(40, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    pipe = tiny()
    expected = pipe(image, mask).foreground
    assert (pipe(Image.fromarray(image), Image.fromarray(mask)).foreground == expected).all()
    assert (pipe(tmp_path / "a.png", tmp_path / "m.png").foreground == expected).all()
    assert (pipe(image, mask > 0).foreground == expected).all()
    clear = Image.fromarray(np.dstack([image, mask]))
    assert (to_array(clear)[mask == 0] == 255).all()  # over white
    assert (to_mask(clear) == (mask > 0)).all()
    clear.save(tmp_path / "rgba.png")
    assert (to_array(tmp_path / "rgba.png") == to_array(clear)).all()
    assert (to_mask(tmp_path / "rgba.png") == (mask > 0)).all()


def test_what_counts_as_a_mask(tmp_path):
    _, mask = files(40, 56)
    mask = np.where(mask > 127, np.uint8(255), np.uint8(0))
    expected = to_mask(mask)
    assert expected.max() == 1
    green = np.zeros((*mask.shape, 3), np.uint8)
    green[..., 1] = mask
    opaque = np.dstack([green, np.full_like(mask, 255)])
    forms = {"counted": mask // 255, "green": green, "opaque": opaque}
    for name, form in forms.items():
        Image.fromarray(form).save(tmp_path / f"{name}.png")
        assert (to_mask(tmp_path / f"{name}.png") == expected).all(), name
        assert (to_mask(Image.fromarray(form)) == expected).all(), name
    assert (to_mask(mask // 255) == expected).all()
    assert not to_mask(mask * 0).any()


def test_what_does_not_fit_is_one_line(tiny):
    image, mask = files(40, 40)
    with pytest.raises(PolyditError, match="is 20x40 and the picture 40x40"):
        tiny()(image, mask[:, :20])
    with pytest.raises(PolyditError, match="at least 1 step"):
        tiny()(image, mask, 0)
    with pytest.raises(PolyditError, match="give \\(H, W, 3\\) uint8"):
        tiny()(image[..., 0], mask)
    with pytest.raises(PolyditError, match="give \\(H, W\\), uint8 or bool"):
        tiny()(image, image)


def test_surroundings_and_their_rim():
    assert surroundings(Box(40, 50, 60, 90), (200, 300)) == Box(10, 20, 90, 120)
    assert surroundings(Box(0, 0, 1, 1), (10, 300)) == Box(0, 0, 10, 17)
    fade = fading(Box(10, 0, 60, 100), (60, 300))
    assert fade[0].max() < 0.2  # cut off above
    assert fade[-1, 0] == 1  # ends with the picture
    assert fade[-1, -1] < 0.1
    assert fade[30, 40] == 1


def test_saved_and_loaded(tiny, tmp_path: Path):
    import polydit

    pipe = tiny()
    pipe.save_pretrained(tmp_path / "w")
    again = polydit.load(tmp_path / "w", task="layer-decomposition")
    assert again.formulation == pipe.formulation
    image, mask = files(40, 40)
    assert (again(image, mask).foreground == pipe(image, mask).foreground).all()


def test_on_a_diffusers_transformer():
    """FLUX's class, tiny and random: each layer sees the conditions and the layers before it, by its type."""
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    formulation, objective = Formulation(alpha_layer=True), Objective()
    types = GroupTypes([*CONDITIONS, *formulation.layers], 32)
    conditions = {name: torch.randn(1, 4, 8, 8) for name in CONDITIONS}
    text = {"encoder_hidden_states": torch.randn(1, 5, 16), "pooled_projections": torch.randn(1, 16)}
    x, t = torch.randn(1, 12, 8, 8), torch.tensor([500.0])

    def run(x_t: torch.Tensor, given: dict = conditions, vectors: dict | None = None) -> torch.Tensor:
        vectors = vectors or types()
        return formulation.predict(as_backbone(flux), x_t, t, given, objective, vectors, text)

    sample = run(x)
    assert sample.shape == x.shape
    sample.square().mean().backward()
    assert all(vector.grad.abs().max() > 0 for vector in types.vectors.values())
    with torch.no_grad():
        later = run(torch.cat([x[:, :8], x[:, 8:] + 1], dim=1))
        torch.testing.assert_close(later[:, :8], sample[:, :8])
        assert (run(torch.cat([x[:, :4] + 1, x[:, 4:]], dim=1))[:, 4:8] - sample[:, 4:8]).abs().max() > 1e-4
        assert (run(x, {**conditions, "mask": conditions["mask"] + 1}) - sample).abs().max() > 1e-4
        alike = torch.cat([x[:, :4]] * 3, dim=1)
        typed = {**types(), "background": torch.randn(32)}
        assert (run(alike, vectors=typed)[:, :4] - run(alike)[:, :4]).abs().max() > 1e-4
