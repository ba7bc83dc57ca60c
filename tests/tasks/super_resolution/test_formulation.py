"""What the network is asked: targets, conditions, labels, and the gain of its noisy input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from polydit.core.autoencoders import DiffusersAutoencoder, PixelSpace
from polydit.core.diffusion import Objective, Parameterization
from polydit.core.errors import PolyditError
from polydit.tasks.super_resolution.formulation import Formulation, upsample


def draw(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("residual_scale", [None, 0.2])
def test_finish_undoes_target(residual_scale: float | None):
    formulation = Formulation(residual_scale=residual_scale)
    high, enlarged = draw(2, 3, 12, 16), draw(2, 3, 12, 16).flip(0)
    latents = formulation.target(high, enlarged, PixelSpace())
    assert formulation.finish(latents, enlarged, PixelSpace()).allclose(high, atol=1e-6)
    if residual_scale:
        assert latents.allclose((high - enlarged) / residual_scale)


def test_a_latent_target_is_what_the_autoencoder_says(kl):
    space, high = DiffusersAutoencoder(kl), draw(1, 3, 16, 24)
    formulation = Formulation()
    with torch.no_grad():
        latents = formulation.target(high, high, space)
        assert latents.shape == (1, 2, 4, 6)
        assert latents.equal(space.encode(high))
        assert formulation.finish(latents, high, space).equal(space.decode(latents))


def test_enlargement_is_pillows_bicubic():
    # Pillow cuts off between its two passes, so the values stay away from both ends.
    picture = np.random.default_rng(0).integers(90, 165, (9, 7, 3), dtype=np.uint8)
    ours = upsample(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 3)[0].permute(1, 2, 0)
    pillows = np.asarray(Image.fromarray(picture).resize((21, 27), Image.Resampling.BICUBIC))
    assert np.abs(ours.round().clamp(0, 255).numpy() - pillows).max() <= 1


def test_detail_is_the_difference_to_the_local_mean_in_units_of_the_residual():
    formulation, enlarged = Formulation(residual_scale=0.2), draw(1, 3, 40, 44)
    condition = formulation.condition(None, enlarged, PixelSpace())
    assert condition.shape == (1, 6, 40, 44)
    assert condition[:, :3].equal(enlarged)
    mean = enlarged[0, :, 12:29, 10:27].mean((1, 2))  # 17 x 17 around (20, 18)
    assert condition[0, 3:, 20, 18].allclose((enlarged[0, :, 20, 18] - mean) / 0.2, atol=1e-4)
    flat = formulation.condition(None, torch.full((1, 3, 5, 3), 0.7), PixelSpace())
    assert flat[:, 3:].abs().max() < 1e-5  # the border is continued, so nothing flat has detail


def test_the_low_picture_itself_is_the_condition_where_it_has_the_size_of_the_latents():
    formulation, low = Formulation(low_condition=True), draw(1, 3, 4, 4)
    assert formulation.condition(low, draw(1, 3, 16, 16), PixelSpace()) is low
    with pytest.raises(PolyditError, match="pairs of one factor"):
        formulation.condition(None, draw(1, 3, 16, 16), PixelSpace())


def test_labels_number_the_factors():
    formulation = Formulation(scales=(2, 3, 4))
    device = torch.device("cpu")
    assert formulation.labels(3, 2, device).tolist() == [1, 1]
    assert formulation.labels(torch.tensor([4, 2, 3]), 3, device).tolist() == [2, 0, 1]
    assert Formulation(scales=(4,)).labels(4, 2, device) is None


class Echo(torch.nn.Module):
    """Returns what it was given."""

    def forward(self, hidden_states, timestep, labels, condition=None):
        self.condition = condition
        return type("Output", (), {"sample": hidden_states})


@pytest.mark.parametrize(
    ("t", "gain"), [(0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (0.75, 0.25 / (0.0625 + 0.5625))]
)
def test_signal_gain_is_that_of_the_best_linear_estimate(t: float, gain: float):
    parameterization, x = Parameterization(prediction="x0"), draw(2, 3, 4, 4)
    timestep = parameterization.model_timestep(torch.full((2,), t))
    arguments = (Echo(), x, timestep, x, None, parameterization)
    assert Formulation(signal_gain=True).predict(*arguments).allclose(x * gain, atol=1e-6)
    assert Formulation().predict(*arguments).equal(x)


def test_channels_are_noisy_input_and_condition_and_the_stream_is_beside_it():
    x, condition = draw(1, 3, 4, 4), draw(1, 6, 4, 4)
    rest = (torch.zeros(1), condition, None, Objective())
    both = Formulation(conditioning="channels").predict(Echo(), x, *rest)
    assert both.equal(torch.cat([x, condition], 1))
    echo = Echo()
    assert Formulation(conditioning="stream").predict(echo, x, *rest).equal(x)
    assert echo.condition.equal(condition)


def test_the_description_of_a_formulation_makes_it_again():
    formulation = Formulation("channels", False, 0.3, (2, 4), True)
    assert Formulation(**formulation.config()) == formulation
    with pytest.raises(PolyditError, match="choose 'stream' or 'channels'"):
        Formulation(conditioning="chanels")
    with pytest.raises(PolyditError, match="low_condition is for latents"):
        Formulation(low_condition=True, residual_scale=0.2)
