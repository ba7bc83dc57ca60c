"""A checkpoint that diffusers saved, read back by our door: its output is that of calling diffusers."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler

from polydit.core.backbones.pretrained import FAMILIES, adapt_transformer, load_transformer
from polydit.core.conditioning import Position
from polydit.core.diffusion import Parameterization


def parameterization(model):
    return Parameterization.from_config(adapt_transformer(model).parameterization_config)


def test_a_saved_checkpoint_answers_as_diffusers_does(checkpoint, tmp_path):
    model = checkpoint.build()
    model.save_pretrained(tmp_path / "transformer")
    adapter = load_transformer(str(tmp_path))
    x, t, condition = checkpoint.inputs()
    with torch.no_grad():
        sample = adapter(x, t, **condition).sample
        expected = checkpoint.direct(adapter.transformer, x, t, **condition)
        before = checkpoint.direct(model, x, t, **condition)
    assert sample.shape == (len(x), adapter.latent_channels, *x.shape[2:])
    assert torch.equal(sample, expected)
    torch.testing.assert_close(sample, before)  # where weights lie in memory decides the last bit
    assert adapter.in_channels == x.shape[1]


def test_every_family_of_the_table_is_tested(families):
    elsewhere = {"DiT4SR", "CompositingTransformer"}  # test_stream.py, and the task that composites
    assert {family.model for family in families.values()} == set(FAMILIES) - elsewhere


def test_text_is_read_where_it_is_said_to_be(checkpoint):
    adapter = adapt_transformer(checkpoint.build())
    x, t, condition = checkpoint.inputs()
    text = adapter.text_inputs
    assert (text is None) == ("encoder_hidden_states" not in condition)
    if text is None:
        return
    assert text.width == condition["encoder_hidden_states"].shape[-1]
    assert (text.pooled_width is not None) == ("pooled_projections" in condition)
    assert text.masked == ("encoder_attention_mask" in inspect.signature(adapter.forward).parameters)
    with torch.no_grad():
        plain = adapter(x, t, **condition).sample
        other = {**condition, "encoder_hidden_states": condition["encoder_hidden_states"] + 0.5}
        assert not torch.allclose(adapter(x, t, **other).sample, plain)
        if text.masked:  # what stands in the padding does not matter
            padding = condition["encoder_attention_mask"] == 0
            noisy = condition["encoder_hidden_states"] + 7 * padding[..., None]
            torch.testing.assert_close(
                adapter(x, t, **{**condition, "encoder_hidden_states": noisy}).sample, plain
            )
    if text.exact_length:
        short = {**condition, "encoder_hidden_states": condition["encoder_hidden_states"][:, :-1]}
        with pytest.raises(RuntimeError):
            adapter(x, t, **short)


@pytest.mark.parametrize("family", ["ltx", "wan", "cogvideox", "qwen"], indirect=True)
def test_video_families_take_a_picture_as_one_frame(family):
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    picture = x[:, :, 0] if x.ndim == 5 else x
    with torch.no_grad():
        as_video = adapter(picture[:, :, None], t, **condition).sample
        assert torch.equal(adapter(picture, t, **condition).sample, as_video[:, :, 0])


def test_shapes_are_refused_by_name(family):
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    name = family.model
    with pytest.raises(ValueError, match=f"{name} takes {x.shape[1]} channels, not {x.shape[1] + 1}"):
        adapter(torch.cat([x, x[:, :1]], dim=1), t, **condition)
    with pytest.raises(ValueError, match=f"{name} takes latents"):
        adapter(x[0, 0], t, **condition)
    if max(adapter.patch) > 1:
        with pytest.raises(ValueError, match="do not divide"):
            adapter(x[..., :-1], t, **condition)


def test_half_precision_weights_take_and_give_float32(family, tmp_path):
    family.build().save_pretrained(tmp_path)
    adapter = load_transformer(str(tmp_path), dtype="bfloat16")  # diffusers keeps some parts in float32
    x, t, condition = family.inputs()
    with torch.no_grad():
        sample = adapter(x, t, **condition).sample
    assert sample.dtype == torch.float32
    assert adapter.dtype == torch.bfloat16
    reference = family.build()
    with torch.no_grad():
        exact = family.direct(reference, x, t, **condition)
    assert (sample - exact).norm() < 0.1 * exact.norm()


def test_gradients_are_those_of_diffusers_and_checkpointing_changes_nothing(family):
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()

    def gradients(call):
        adapter.zero_grad()
        sample = call(x, t, **condition)
        sample.square().sum().backward()
        return {n: p.grad.clone() for n, p in adapter.named_parameters() if p.grad is not None}

    expected = gradients(lambda *a, **k: family.direct(adapter.transformer, *a, **k))
    found = gradients(lambda *a, **k: adapter(*a, **k).sample)
    adapter.enable_gradient_checkpointing()
    assert adapter.transformer.is_gradient_checkpointing
    again = gradients(lambda *a, **k: adapter(*a, **k).sample)
    assert found.keys() == again.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        torch.testing.assert_close(again[name], value)


def test_blocks_are_those_that_run(family):
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    order = []
    for index, block in enumerate(adapter.blocks):
        block.register_forward_hook(lambda *_, index=index: order.append(index))
    with torch.no_grad():
        adapter(x, t, **condition)
    assert order == list(range(len(adapter.blocks)))
    assert {type(block).__name__ for block in adapter.blocks} == set(adapter._repeated_blocks)
    known = adapter.transformer._repeated_blocks
    assert not known or set(adapter._repeated_blocks) <= set(known)


ROTARY = ["flux", "flux-fill", "ltx", "ltx with patches", "wan", "wan image to video", "cogvideox", "cogvideox wide",
          "cogvideox-1.5", "qwen", "qwen-image-edit", "qwen-image-layered"]  # fmt: skip


@pytest.mark.parametrize("checkpoint", ROTARY, indirect=True)
def test_position_ids_of_the_own_grid_change_nothing(checkpoint):
    adapter = adapt_transformer(checkpoint.build())
    x, t, condition = checkpoint.inputs()
    ids = Position().ids(adapter.grid_of(x))
    if checkpoint.config.get("use_layer3d_rope"):
        ids[:, 1][ids[:, 1] == x.shape[2] - 1] = -1  # the layered model numbers its last picture so
    with torch.no_grad():
        plain = adapter(x, t, **condition).sample
        torch.testing.assert_close(
            adapter(x, t, **condition, position_ids=ids).sample, plain, rtol=1e-4, atol=1e-5
        )
        moved = ids + torch.arange(len(ids))[:, None].fmod(2) * 3.0
        assert not torch.allclose(adapter(x, t, **condition, position_ids=moved).sample, plain, atol=1e-4)
        assert torch.equal(adapter(x, t, **condition).sample, plain)  # nothing is left behind


@pytest.mark.parametrize("name", ["flux", "qwen", "ltx", "wan", "cogvideox-1.5"])
def test_rotary_positions_are_relative(families, name):
    family = families[name]
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    condition["encoder_hidden_states"] = condition["encoder_hidden_states"] * 0
    ids = Position().ids(adapter.grid_of(x))
    shifted = Position(offset=2.0).ids(adapter.grid_of(x))
    with torch.no_grad():
        here = adapter(x, t, **condition, position_ids=ids).sample
        there = adapter(x, t, **condition, position_ids=shifted).sample
    # where text shares the attention, it stays behind: the places relative to it have changed
    assert torch.allclose(here, there, atol=1e-4) == (adapter.text_order is None)


def test_cogvideox_is_noised_as_its_scheduler_does(families):
    for name, shift in (("cogvideox", 1.0), ("cogvideox-2b", 3.0)):
        scheduler = CogVideoXDDIMScheduler(snr_shift_scale=shift, rescale_betas_zero_snr=True)
        network = parameterization(families[name].build())
        assert (network.prediction, network.time.discrete) == ("v", True)
        x0, noise = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
        for index in (0, 1, 500, 998, 999):
            t = network.path.time_of_index(torch.tensor([index])).float()
            assert network.model_timestep(t).item() == index
            noisy = scheduler.add_noise(x0, noise, torch.tensor([index]))
            torch.testing.assert_close(network.path.add_noise(x0, noise, t), noisy, rtol=1e-4, atol=1e-5)
            velocity = scheduler.get_velocity(x0, noise, torch.tensor([index]))
            torch.testing.assert_close(network.target(x0, noise, t), velocity, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network.x0(velocity, noisy, t), x0, rtol=1e-4, atol=1e-4)


def test_the_others_are_rectified_flows_or_ddpm(families):
    for name, family in families.items():
        if not name.startswith("cogvideox"):
            network = parameterization(family.build())
            kind = "epsilon" if family.discrete else "velocity"
            assert (network.prediction, network.time.discrete) == (kind, family.discrete)
            t = torch.tensor([0.25])
            assert network.model_timestep(t).item() == (249 if family.discrete else 250)
