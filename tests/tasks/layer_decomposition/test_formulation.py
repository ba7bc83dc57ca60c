from __future__ import annotations

import pytest
import torch
from layer_scenes import scene, small_dit, wake

from polydit.core.autoencoders import PixelSpace
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.tasks.layer_decomposition.formulation import Formulation

PIXELS = Formulation(residual_scale=0.2)
SPACE = PixelSpace()


def given(formulation: Formulation = PIXELS):
    part = {name: value[None] for name, value in scene().items()}
    return part, formulation.known(part["image"] * 2 - 1, part["mask"])


def test_true_layers_come_back_from_their_target():
    part, known = given()
    layers = PIXELS.finish(PIXELS.target(known, part["background"], part["foreground"], SPACE), known, SPACE)
    torch.testing.assert_close(layers.alpha, part["foreground"][:, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(layers.background, part["background"], atol=1e-4, rtol=0)
    torch.testing.assert_close(layers.composite(), part["image"], atol=1e-5, rtol=0)
    seen = part["foreground"][:, 3:] > 0.01
    error = (layers.foreground()[:, :3] - part["foreground"][:, :3]).abs() * seen
    assert error.max() < 1e-3


def test_zero_is_the_cheap_guess():
    part, known = given()
    layers = PIXELS.finish(torch.zeros(1, 8, 32, 40), known, SPACE)
    assert torch.equal(layers.alpha, part["mask"])
    outside = known.hole.expand_as(part["image"]) == 0
    torch.testing.assert_close(layers.background[outside], part["image"][outside])
    torch.testing.assert_close(layers.background[~outside], known.fill[~outside])


def test_the_fill_knows_nothing_of_the_object():
    part, known = given()
    other = torch.where(known.hole > 0, torch.rand_like(part["image"]), part["image"])
    torch.testing.assert_close(PIXELS.known(other * 2 - 1, part["mask"]).fill, known.fill)


@pytest.mark.parametrize("alpha_layer", [True, False])
def test_in_latents_every_layer_is_a_picture(alpha_layer: bool):
    formulation = Formulation(alpha_layer=alpha_layer)
    space = PixelSpace(3 if alpha_layer else 4)  # the identity stands for an autoencoder
    part, known = given(formulation)
    x0 = formulation.target(known, part["background"], part["foreground"], space)
    assert x0.shape[1] == (9 if alpha_layer else 8)
    layers = formulation.finish(x0, known, space)
    torch.testing.assert_close(layers.alpha, part["foreground"][:, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(layers.composite(), part["image"], atol=1e-5, rtol=0)
    invisible = (part["foreground"][:, 3:] == 0).expand(-1, 3, -1, -1)
    colours = x0[:, 3:6] if alpha_layer else x0[:, 4:7]
    assert colours[invisible].std() < 0.5  # padded, not black with a hard edge
    assert {value.shape[1] for value in formulation.conditions(known, space).values()} == {3}


def test_an_unknown_foreground_weighs_nothing():
    _, known = given()
    known = PIXELS.known(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8))
    weight = PIXELS.weight(known, torch.tensor([True, False]), 4)
    assert weight[:, :, 0, 0].tolist() == [[1.0] * 8, [1.0] * 4 + [0.0] * 4]


def test_at_pure_noise_the_answer_does_not_depend_on_it():
    formulation = Formulation(residual_scale=0.2, signal_gain=True)
    model, objective = wake(small_dit()).eval(), Objective(prediction="x0")
    _, known = given()
    conditions = formulation.conditions(known, SPACE)
    noise = [torch.randn(1, 8, 32, 40) for _ in range(2)]
    with torch.no_grad():
        one, other = (
            formulation.predict(model, x, torch.tensor([1000.0]), conditions, objective) for x in noise
        )
        early = formulation.predict(model, noise[0], torch.tensor([300.0]), conditions, objective)
    assert torch.equal(one, other)
    assert not torch.equal(one, early)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(PolyditError, match="residual_scale"):
        Formulation(residual_scale=0.2, alpha_layer=True)
    with pytest.raises(PolyditError, match="grow -1"):
        Formulation(grow=-1)
