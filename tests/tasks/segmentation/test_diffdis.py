"""DiffDIS' mechanisms: each exactly, and each by an experiment that fails if it did nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import nn

from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.conditioning.channels import duplicate_input
from polydit.core.diffusion import DiscretePath, LinearPath, Objective, Parameterization, TimeConvention
from polydit.tasks.segmentation.backbone import DichotomousDiT, PretrainedDichotomy, parts_for
from polydit.tasks.segmentation.dichotomy import halves
from polydit.tasks.segmentation.noise import cut_mix, pyramid_noise
from polydit.tasks.segmentation.text import empty_text

TURBO = Parameterization(
    DiscretePath("scaled_linear", 0.00085, 0.012), "epsilon", TimeConvention(1000, discrete=True)
)


def noisy(model: nn.Module, std: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=std)
    return model.eval()


def dit(**options):
    config = {
        "input_size": 8,
        "patch_size": 2,
        "in_channels": 8,
        "out_channels": 4,
        "hidden_size": 16,
        "depth": 4,
        "num_heads": 2,
    }
    return DichotomousDiT(**{**config, **options})


def inputs(seed: int = 0, batch: int = 1):
    g = torch.Generator().manual_seed(seed)
    picture, noise = torch.randn(2, batch, 4, 8, 8, generator=g)
    scales = [torch.randn(batch, 4, side, side, generator=g) for side in (4, 2, 1)]
    x = torch.cat([picture, noise], dim=1)
    return torch.cat([x, x]), torch.full((2 * batch,), 999.0), [torch.cat([s, s]) for s in scales]


# -- the one step ------------------------------------------------------------------------------------------


def test_the_last_timestep_has_the_published_algebra():
    t = torch.ones(1)
    assert TURBO.model_timestep(t).item() == 999
    alpha_bar = TURBO.path.alpha(t.double()) ** 2
    assert alpha_bar.item() == pytest.approx(0.00466010, abs=1e-8)
    assert (1 / alpha_bar.sqrt()).item() == pytest.approx(14.648819, abs=1e-5)
    assert ((1 - alpha_bar).sqrt() / alpha_bar.sqrt()).item() == pytest.approx(14.614647, abs=1e-5)


def test_true_noise_recovers_the_data_as_the_trailing_scheduler_does():
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    t = torch.ones(2)
    x_t = TURBO.path.add_noise(x0, noise, t)
    ours = TURBO.x0(noise, x_t, t)
    assert (ours - x0).abs().max() < 1e-5
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDPMScheduler(**options, timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]
    theirs = scheduler.step(noise, 999, x_t).pred_original_sample
    assert (ours - theirs).abs().max() < 2e-5
    leading = DDPMScheduler(**options, timestep_spacing="leading")
    leading.set_timesteps(1)
    assert leading.timesteps.item() != 999


def test_rectified_flow_recovers_the_data_without_amplification():
    flow = Parameterization(LinearPath(), "velocity")
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=g)
    t = torch.ones(2)
    x_t = flow.path.add_noise(x0, noise, t)
    assert torch.equal(x_t, noise)
    assert (flow.x0(noise - x0, x_t, t) - x0).abs().max() < 1e-6


def test_the_published_loss_is_that_of_denoised_latents():
    objective = Objective(TURBO.path, "epsilon", weighting="x0", time=TURBO.time)
    g = torch.Generator().manual_seed(0)
    x0, noise, answer = torch.randn(3, 2, 4, 8, 8, generator=g)
    out = objective(lambda x, t: answer, x0, noise=noise, t=torch.ones(2))
    assert out.loss.item() == pytest.approx((out.x0 - x0).square().mean().item(), rel=1e-4)


# -- the parts ---------------------------------------------------------------------------------------------


def test_labels_of_the_halves():
    assert torch.allclose(
        halves(1), torch.tensor([[0, 0.8415, 1, 0.5403], [0.8415, 0, 0.5403, 1]]), atol=1e-4
    )


@torch.no_grad()
def test_scale_injection_starts_at_nothing_and_then_matters():
    torch.manual_seed(0)
    model = dit(interact=False)
    nn.init.normal_(model.final_layer.linear.weight)
    for block in model.blocks:
        nn.init.normal_(block.modulation.weight, std=0.2)
    x, t, scales = inputs()
    labels = halves(1)
    plain = model(x, t, halves=labels).sample
    assert torch.equal(model(x, t, scales=scales, halves=labels).sample, plain)
    other = [s + 1 for s in scales]
    for number, injection in enumerate(model.parts.injections):
        nn.init.normal_(injection.scale.weight, std=0.3)
        now = model(x, t, scales=scales, halves=labels).sample
        changed = [*scales[:number], other[number], *scales[number + 1 :]]
        assert not torch.allclose(now, plain, atol=1e-5)
        assert not torch.allclose(model(x, t, scales=changed, halves=labels).sample, now, atol=1e-6)


def test_places_of_the_parts():
    parts = dit(depth=12).parts
    assert parts.places == [2, 5, 8]
    assert parts.middle == 5


@pytest.mark.parametrize("interact", [False, True])
def test_the_mask_half_sees_the_edge_half_only_by_interaction(interact):
    model = noisy(dit(interact=interact, interact_gate=1.0))
    x, t, scales = inputs()
    x.requires_grad_(True)
    model(x, t, scales=scales, halves=halves(1)).sample[:1].square().sum().backward()
    assert bool(x.grad[1].abs().max() > 0) is interact
    assert x.grad[0].abs().max() > 0


@torch.no_grad()
def test_exchanging_halves_and_labels_exchanges_the_answers():
    model = noisy(dit())
    x, t, scales = inputs(batch=2)
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    swapped = torch.cat([x[2:], x[:2]])
    labels = halves(2)
    straight = model(x, t, scales=scales, halves=labels).sample
    other = model(swapped, t, scales=scales, halves=torch.cat([labels[2:], labels[:2]])).sample
    assert torch.allclose(torch.cat([other[2:], other[:2]]), straight, atol=1e-5)
    assert not torch.allclose(
        model(swapped, t, scales=scales, halves=labels).sample[2:], straight[:2], atol=1e-3
    )


@torch.no_grad()
def test_without_labels_equal_halves_give_equal_answers():
    model = noisy(dit())
    x, t, scales = inputs()
    mask, edges = model(x, t, scales=scales).sample.chunk(2)
    assert torch.allclose(mask, edges, atol=1e-6)
    mask, edges = model(x, t, scales=scales, halves=halves(1)).sample.chunk(2)
    assert (mask - edges).abs().max() > 1e-3


def test_embedding_of_the_halves_learns_faster():
    assert {p.lr_scale for p in dit().parts.embedding.parameters()} == {10.0}


# -- on pretrained transformers ----------------------------------------------------------------------------


def sd3():
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
    )  # fmt: skip


def pixart():
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
        cross_attention_dim=16, caption_channels=8, norm_num_groups=1,
    )  # fmt: skip


def flux():
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


@pytest.mark.parametrize("make", [sd3, pixart, flux], ids=lambda make: make.__name__)
def test_the_parts_fit_pretrained_transformers(make):
    network = adapt_transformer(noisy(make()))
    text = empty_text(network)
    x, t, scales = inputs()
    with torch.no_grad():
        plain = network(x[:, :4], t, **text.rows(2)).sample
        duplicate_input(network)
        parts = parts_for(network)
        both = PretrainedDichotomy(network, parts)
        same = torch.cat([x[:, :4]] * 2, dim=1)
        fresh = both(same, t, scales=scales, halves=halves(1), **text.rows(2)).sample
    assert torch.allclose(fresh, plain, atol=1e-5), "a fresh model is the pretrained one"

    noisy(parts, std=0.3)
    x.requires_grad_(True)
    answer = both(x, t, scales=scales, halves=halves(1), **text.rows(2)).sample
    answer[:1].square().sum().backward()
    assert x.grad[1].abs().max() > 0, "the mask half sees the edge half"
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parts.parts.injections.parameters())
    with torch.no_grad():
        mask, edges = both(x, t, scales=scales, halves=halves(1), **text.rows(2)).sample.chunk(2)
        assert (mask - edges).abs().max() > 1e-3, "labels tell equal halves apart"
        quiet = both(x, t, **text.rows(2)).sample
        assert torch.allclose(*quiet.chunk(2), atol=1e-5)


def test_gradients_are_the_same_with_checkpointing():
    network = adapt_transformer(noisy(sd3()))
    duplicate_input(network)
    both = PretrainedDichotomy(network, noisy(parts_for(network)))
    text = empty_text(network).rows(2)
    x, t, scales = inputs()
    found = []
    for checkpointing in (False, True):
        both.zero_grad()
        both.train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        both(x, t, scales=scales, halves=halves(1), **text).sample.square().sum().backward()
        found.append([p.grad.clone() for p in both.parameters() if p.grad is not None])
    assert len(found[0]) > 20
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


# -- augmentation ------------------------------------------------------------------------------------------


def test_pyramid_noise_has_unit_deviation_and_long_waves():
    g = torch.Generator().manual_seed(0)
    white = torch.randn(4, 4, 64, 64, generator=g)
    coloured = pyramid_noise(white, rng=np.random.default_rng(0))
    assert torch.allclose(coloured.flatten(1).std(1), torch.ones(4), atol=1e-4)

    def slow(noise):
        return nn.functional.avg_pool2d(noise, 16).std()

    assert slow(coloured) > 5 * slow(white)
    assert torch.equal(white, torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0))), (
        "not in place"
    )


def test_cut_mix_takes_the_same_box_of_the_partner_in_all_maps():
    picture = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 40, 40)
    batch = {"picture": picture, "mask": picture[:, :1], "names": torch.arange(4)}
    mixed = cut_mix(batch, 1.0, np.random.default_rng(0))
    for row in range(4):
        changed = mixed["picture"][row, 0] != row
        assert 0.01 < changed.float().mean() < 0.5
        assert (mixed["picture"][row, 0][changed] == row ^ 1).all()
        assert torch.equal(mixed["mask"][row, 0], mixed["picture"][row, 0])
    assert cut_mix(batch, 0.0)["picture"].equal(picture)
    assert (picture[0] == 0).all()


def test_cut_mix_takes_given_boxes_from_the_unmixed_partner():
    picture = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 6, 8)
    mixed = cut_mix({"mask": picture}, 0.0, boxes=[(1, 2, 3, 4), (0, 0, 6, 8), (0, 0, 6, 8)])["mask"]
    expected = torch.tensor([0.0, 0.0, 2.0]).view(3, 1, 1, 1).repeat(1, 1, 6, 8)
    expected[0, :, 1:4, 2:6] = 1
    assert torch.equal(mixed, expected)
    assert torch.equal(cut_mix({"mask": picture}, 1.0, boxes=[None] * 3)["mask"], picture)
