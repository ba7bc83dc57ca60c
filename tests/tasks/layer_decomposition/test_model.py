from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_scenes import small_dit, wake

from polydit.core.diffusion import Objective, Uniform
from polydit.core.errors import PolyditError
from polydit.tasks.layer_decomposition.formulation import Layers
from polydit.tasks.layer_decomposition.losses import alpha_loss, consistency_loss, region_psnr_loss
from polydit.tasks.layer_decomposition.model import LayerDecomp


def module(**settings: Any) -> LayerDecomp:
    objective = Objective(prediction="x0", loss="l1", timesteps=Uniform(0.2, 0.8))
    model = LayerDecomp(wake(small_dit()), objective, **{"residual_scale": 0.2, "size": 64, **settings})
    model.prepare()
    return model


def gradients_of_layers(model: LayerDecomp, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradient of each loss by the network's answer: (B, 8, H, W) for each name."""
    answers: list[torch.Tensor] = []
    denoise = model.denoise

    def watched(*args: Any) -> torch.Tensor:
        answers.append(denoise(*args))
        answers[-1].retain_grad()
        return answers[-1]

    model.denoise = watched  # type: ignore[method-assign]
    found = {}
    for name in ("objective", "consistency"):
        torch.manual_seed(0)
        terms, _ = model.losses(batch)
        terms[name].backward()
        found[name] = answers[-1].grad
    return found


def test_pairs_without_a_foreground_teach_it_by_consistency_alone(batch):
    gradients = gradients_of_layers(module(), batch)
    labelled, real = slice(0, 2), slice(2, 3)
    background, foreground = slice(0, 3), slice(4, 8)
    assert gradients["objective"][real, foreground].abs().max() == 0  # exactly
    assert gradients["consistency"][real, foreground].abs().max() > 0
    assert gradients["objective"][labelled, foreground].abs().min() > 0
    assert gradients["objective"][:, background].abs().amax((1, 2, 3)).min() > 0


def test_consistency_vanishes_for_true_layers_and_pulls_alpha_the_right_way():
    background, colour = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    alpha = (torch.rand(2, 1, 8, 8) * 0.6 + 0.2).requires_grad_()
    t = torch.tensor([0.3, 0.6])
    truth = Layers(background, alpha * colour, alpha)
    image = truth.composite().detach()
    assert consistency_loss(truth, image, t) == 0
    wrong = (image + 0.1 * torch.randn_like(image)).detach()
    consistency_loss(Layers(background, alpha * colour, alpha), wrong, t).backward()
    pull = ((colour - background) * (truth.composite().detach() - wrong).sign()).sum(1, keepdim=True)
    clear = pull.abs() > 1e-3
    assert torch.equal(alpha.grad[clear].sign(), pull[clear].sign())


def test_the_gate_is_one_minus_t_squared():
    layers = Layers(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    image = torch.full((2, 3, 4, 4), 0.5)
    loss = consistency_loss(layers, image, torch.tensor([0.0, 0.6]))
    assert loss.item() == pytest.approx(0.5 * (1 + 0.16) / 2)
    assert consistency_loss(layers, image, torch.ones(2)).item() == 0
    assert consistency_loss(layers, image, torch.ones(2), gated=False).item() == pytest.approx(0.5)


def test_alpha_and_region_losses_in_closed_form():
    alpha, truth = torch.zeros(2, 1, 10, 10), torch.zeros(2, 1, 10, 10)
    alpha[0, :, :5], truth[0] = 1.0, 1.0
    alpha[1] = 1.0  # has no true one: not counted
    loss = alpha_loss(alpha, truth, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(1 - 51 / 101)
    assert alpha_loss(alpha, truth, torch.zeros(2, dtype=torch.bool)) == 0
    picture, region = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    region[..., :2] = 1
    truth = picture.clone()
    truth[..., :2], truth[..., 2:] = 0.1, 0.9
    assert region_psnr_loss(picture, truth, region, floor=0).item() == pytest.approx(-20, abs=1e-4)


def test_frozen_decoders_get_no_gradient(batch):
    from diffusers import AutoencoderKL

    from polydit.core.autoencoders import DiffusersAutoencoder

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    backbone = wake(
        small_dit(
            conditions={"image": 4, "mask": 4}, layers=["background", "foreground", "alpha"], patch_size=2
        )
    )
    model = LayerDecomp(backbone, Objective(timesteps=Uniform(0.2, 0.5)), DiffusersAutoencoder(vae))
    model.prepare()
    terms, output = model.losses(batch)
    assert output.x0.shape == (3, 12, 16, 20)
    terms["consistency"].backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert backbone.final_layer.linear.weight.grad.abs().max() > 0


def test_the_pipeline_gives_what_the_module_predicts(batch):
    model = module(signal_gain=True).eval()
    pipe = model.build_pipeline()
    layers = pipe.layers(batch["image"], batch["mask"], generator=torch.Generator().manual_seed(0))
    known = model.known(batch)
    with torch.no_grad():
        answer = model.denoise(torch.randn(3, 8, 32, 40), torch.full((3,), 1000.0), model.condition(batch))
    expected = model.formulation.finish(answer, known, model.space)
    torch.testing.assert_close(layers.alpha, expected.alpha)
    torch.testing.assert_close(layers.background, expected.background)


def test_validation_shows_pictures(batch):
    model = module().eval()
    panels = model.pictures(model.build_pipeline(), batch, torch.Generator().manual_seed(0))
    assert len(panels) == 3
    assert {picture.shape for panel in panels for picture in panel.values()} == {(32, 40, 3)}


def test_what_does_not_fit_is_refused():
    from polydit.core.autoencoders import PixelSpace

    with pytest.raises(PolyditError, match="needs image, mask, background, foreground"):
        LayerDecomp(small_dit(layers=["front"]), residual_scale=0.2)
    with pytest.raises(PolyditError, match="leave --model"):
        LayerDecomp(small_dit(), autoencoder=PixelSpace(), residual_scale=0.2)


def test_pixels_are_refused_by_a_backbone_of_latents():
    layers = ["background", "foreground", "alpha"]
    model = LayerDecomp(small_dit(layers=layers), Objective(prediction="x0"), size=64)
    with pytest.raises(
        PolyditError, match=r"the backbone predicts 4 channels and the data has 3; give the auto"
    ):
        model.prepare()
