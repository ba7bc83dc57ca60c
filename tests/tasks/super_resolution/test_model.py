"""Training: what is learned, and that it is learned from the condition, by each way that DiT4SR opens for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polydit.core.autoencoders import DiffusersAutoencoder
from polydit.core.backbones import DiT
from polydit.core.conditioning import StreamDiT
from polydit.core.diffusion import Objective, Terminal
from polydit.core.errors import PolyditError
from polydit.tasks.super_resolution.formulation import upsample
from polydit.tasks.super_resolution.losses import gradient_loss, psnr_loss
from polydit.tasks.super_resolution.model import SuperResolution

SIZE, SCALE = 16, 2


def stripes(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Waves of random direction, length and phase, and what bicubic reduction leaves of them."""
    draw = torch.rand(3, count, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    angle, length, phase = draw[0] * torch.pi, 4 + 5 * draw[1], draw[2] * 2 * torch.pi
    wave = torch.sin(2 * torch.pi / length * (rows * angle.sin() + columns * angle.cos()) + phase)
    high = (wave.sign() * wave.abs().sqrt())[:, None].expand(-1, 3, -1, -1) * 0.8
    low = F.interpolate(high, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    scale = torch.full((count,), SCALE)
    return {"high": high, "low": low, "enlarged": upsample(low, SCALE), "scale": scale}


def module(conditioning: str = "stream", residual_scale: float | None = None, **options) -> SuperResolution:
    torch.manual_seed(0)
    settings = {
        "input_size": SIZE, "patch_size": 4, "hidden_size": 32, "depth": 2, "num_heads": 1, "position": "rope",
        "norm": "rms", "qk_norm": "rms",
    }  # fmt: skip
    channels = 3 if residual_scale is None else 6
    if conditioning == "stream":
        backbone = StreamDiT(
            in_channels=3, condition_channels=channels, stream_init="identity", gate_init=0.5, **settings
        )
    else:
        backbone = DiT(in_channels=3 + channels, out_channels=3, gate_init=0.5, **settings)
    return SuperResolution(
        backbone,
        Objective(prediction="x0", timesteps=Terminal(probability=0.8)),
        conditioning=conditioning,
        residual_scale=residual_scale,
        scales=[SCALE],
        signal_gain=True,
        **options,
    )


def train(
    model: SuperResolution, steps: int, change: Callable[[dict], dict] = lambda batch: batch
) -> tuple[float, float]:
    """Mean loss of the first and of the last ten steps."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(steps):
        loss = sum(model.losses(change(stripes(8, generator)))[0].values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[:10])), float(np.mean(losses[-10:]))


def held_out_loss(
    model: SuperResolution, change_condition: Callable[[Tensor], Tensor] = lambda c: c
) -> float:
    batch = stripes(32, torch.Generator().manual_seed(99))
    condition = model.condition(batch)
    condition["condition"] = change_condition(condition["condition"])
    x0 = model.target(batch)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        denoise = lambda x_t, t: model.denoise(x_t, t, condition)  # noqa: E731
        return float(model.objective(denoise, x0, noise=noise, t=torch.ones(len(x0))).loss)


@pytest.mark.parametrize("conditioning", ["stream", "channels"])
def test_the_loss_falls_and_a_condition_of_another_picture_makes_it_rise(conditioning: str):
    model = module(conditioning, residual_scale=0.2)
    untrained = held_out_loss(model)
    first, last = train(model, 60)
    assert last < 0.75 * first
    trained = held_out_loss(model)
    assert trained < 0.8 * untrained
    shuffled = held_out_loss(model, lambda condition: condition.roll(1, 0))
    assert shuffled > 1.3 * trained
    assert shuffled > untrained  # what was learned is about this very picture


def zeroed(batch: dict) -> dict:
    return {**batch, "enlarged": torch.zeros_like(batch["enlarged"])}


def freeze(model: SuperResolution, *names: str) -> SuperResolution:
    """Close a way of the condition: its weights are zero and stay so."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.zero_().requires_grad_(False)
    return model


def test_each_way_of_the_stream_carries_the_condition_and_nothing_is_learned_without_it():
    """DiT4SR's ablation in small: attention alone, injection alone, both, and no condition at all."""
    blind = train(module(), 50, zeroed)[1]
    attention = train(freeze(module(), "control_conv"), 120)[1]  # the slower of the two to learn
    injection = train(freeze(module(), "control_q", "control_k", "control_v"), 50)[1]
    both = train(module(), 50)[1]
    variance = float(stripes(64, torch.Generator().manual_seed(0))["high"].var())
    assert blind > 0.75 * variance  # the mean is all there is to say
    assert both < 0.5 * blind
    assert attention < 0.5 * blind
    assert injection < 0.5 * blind


def test_extra_losses_are_of_the_finished_picture():
    model = module(residual_scale=0.2, gradient_weight=2.0, psnr_weight=0.5)
    batch = stripes(2, torch.Generator().manual_seed(0))
    x0 = model.target(batch)
    perfect = type("Output", (), {"x0": x0})
    terms = model.extra_losses(batch, perfect)
    assert set(terms) == {"gradient", "psnr"}
    assert terms["gradient"] < 1e-5
    assert terms["psnr"] == pytest.approx(0.5 * 10 * np.log10(4e-5 / 4), abs=1e-3)
    wrong = type("Output", (), {"x0": x0 + 0.5})
    restored = batch["high"] + 0.1
    assert model.extra_losses(batch, wrong)["psnr"].item() == pytest.approx(
        0.5 * psnr_loss(restored, batch["high"]).item(), abs=1e-3
    )
    assert module().extra_losses(batch, perfect) == {}


def test_the_losses_by_hand():
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0] = 0.2
    expected = (10 * np.log10((0.04 + 4e-5) / 4) + 10 * np.log10(4e-5 / 4)) / 2
    assert psnr_loss(a, b).item() == pytest.approx(expected, abs=1e-4)
    assert gradient_loss(a, b) == 0  # a constant has no edges
    a[0, 0, :, 1] = 0.6
    assert gradient_loss(a, b).item() == pytest.approx(0.4 / 2, abs=1e-6)


def test_a_latent_model_needs_its_autoencoder(kl):
    torch.manual_seed(0)
    backbone = StreamDiT(input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=1, num_heads=1)
    with pytest.raises(
        PolyditError, match=r"--model.autoencoder: the backbone predicts 2 channels and the data has 3"
    ):
        SuperResolution(backbone).setup("fit")
    model = SuperResolution(backbone, autoencoder=DiffusersAutoencoder(kl), scales=[SCALE])
    model.setup("fit")
    terms, output = model.losses(stripes(2, torch.Generator().manual_seed(0)))
    assert output.x0.shape == (2, 2, 4, 4)
    terms["objective"].backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())
    assert model.build_pipeline().vae is kl


def test_ldm_sr_trains_on_the_low_picture(vq):
    torch.manual_seed(0)
    backbone = DiT(
        input_size=4, patch_size=1, in_channels=6, out_channels=3, hidden_size=16, depth=1, num_heads=1
    )
    model = SuperResolution(
        backbone,
        autoencoder=DiffusersAutoencoder(vq),
        conditioning="channels",
        low_condition=True,
        scales=[4],
    )
    batch = stripes(2, torch.Generator().manual_seed(0))
    batch["low"] = F.interpolate(batch["high"], scale_factor=0.25, mode="bicubic", antialias=True)
    assert model.condition(batch)["condition"].equal(batch["low"])
    assert torch.isfinite(model.losses(batch)[0]["objective"])
    model.prepare()
    for wrong in ({"autoencoder": None}, {"scales": [2]}):
        options = {"autoencoder": model.autoencoder, "scales": [4], **wrong}
        other = SuperResolution(backbone, conditioning="channels", low_condition=True, **options)
        with pytest.raises(
            PolyditError, match=r"--model.autoencoder: with low_condition .* shrinks by [14] and"
        ):
            other.prepare()


def test_factors_of_the_data_that_the_model_does_not_know_are_refused():
    model = module()
    model._trainer = type("Trainer", (), {"datamodule": type("Data", (), {"scales": {2: 1.0, 3: 1.0}})()})()
    with pytest.raises(PolyditError, match=r"--data.scales: has factor 3, and the model is made for 2;"):
        model.setup("fit")


@pytest.mark.parametrize(("scales", "classes"), [([4], 3), ([2, 4], None), ([2, 3, 4], 2)])
def test_factors_and_classes_belong_together(scales, classes):
    backbone = DiT(
        input_size=4, patch_size=2, in_channels=9, out_channels=3, hidden_size=16, depth=1, num_heads=1,
        num_classes=classes,
    )  # fmt: skip
    with pytest.raises(
        PolyditError, match=rf"--model.scales .*: the backbone's num_classes is {classes}; it is"
    ):
        SuperResolution(backbone, conditioning="channels", residual_scale=0.2, scales=scales)


def test_validation_pictures_are_enlarged_restored_and_true():
    model = module(residual_scale=0.2)
    batch = stripes(5, torch.Generator().manual_seed(0))
    panels = model.pictures(model.build_pipeline(), batch, torch.Generator().manual_seed(0))
    assert len(panels) == 4
    assert list(panels[0]) == ["bicubic", "restored", "original"]
    assert all(panel.shape == (SIZE, SIZE, 3) and panel.dtype == np.uint8 for panel in panels[0].values())
    expected = ((batch["high"][0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(panels[0]["original"], expected)
