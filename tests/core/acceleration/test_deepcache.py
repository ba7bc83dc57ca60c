"""DeepCache on a UNet of diffusers: what runs how often, and the released schedules."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from polydit.core.acceleration import DeepCache, accelerate
from polydit.core.acceleration.plan import non_uniform_steps
from polydit.core.errors import PolyditError

STEPS = 10


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        in_channels=4, out_channels=4, cross_attention_dim=8, norm_num_groups=4, attention_head_dim=2, sample_size=8,
        layers_per_block=2, block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@torch.no_grad()
def run(unet):
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, text).sample, t, x).prev_sample
    return x


def test_interval_1_is_no_cache(unet):
    plain, before = run(unet), [module.forward for module in unet.modules()]
    with accelerate(unet, DeepCache(1)):
        assert torch.equal(run(unet), plain)
    assert [module.forward for module in unet.modules()] == before


@pytest.mark.parametrize(
    ("branch", "always"),
    [
        (0, {"up_blocks.1.resnets.2"}),
        (1, {"up_blocks.1.resnets.1", "up_blocks.1.resnets.2", "down_blocks.0.resnets.0"}),
        (3, {f"up_blocks.1.resnets.{i}" for i in range(3)} | {"up_blocks.0.resnets.2"}
            | {"down_blocks.0.resnets.0", "down_blocks.0.resnets.1"}),
    ],
)  # fmt: skip
def test_what_is_always_computed(unet, branch, always):
    names = [name for name, module in unet.named_modules() if isinstance(module, ResnetBlock2D)]
    calls = dict.fromkeys(names, 0)

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    for name in calls:
        unet.get_submodule(name).conv1.register_forward_hook(count(name))
    plain = run(unet)
    calls.update(dict.fromkeys(calls, 0))
    with accelerate(unet, DeepCache(3, branch)) as handle:
        cached = run(unet)
        assert handle.report().plan.full_steps == [0, 3, 6, 9]
        first = run(unet)
    assert {name for name, count in calls.items() if count == 2 * STEPS} == always
    assert {count for name, count in calls.items() if name not in always} == {2 * 4}
    assert torch.equal(first, cached)
    assert 0 < (cached - plain).norm() < 0.5 * plain.norm()


def test_a_constant_deep_path_loses_nothing(unet):
    for module in (unet.mid_block, *unet.down_blocks[1:], unet.up_blocks[0]):
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.data.zero_()  # biases stay: a constant comes up
    unet.down_blocks[0].downsamplers[0].conv.weight.data.zero_()
    plain = run(unet)
    with accelerate(unet, DeepCache(5, branch=2)):
        torch.testing.assert_close(run(unet), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("total", "interval", "centre", "power", "steps"),
    [
        (50, 5, 15, 1.2, [0, 5, 10, 14, 18, 22, 27, 32, 38, 44]),
        (50, 5, 15, 1.4, [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]),
        (50, 10, 10, 1.2, [0, 9, 16, 26, 38]),
        (50, 10, 15, 1.2, [0, 10, 18, 27, 38]),
        (50, 5, 10, 1.2, [0, 5, 9, 12, 16, 21, 26, 32, 38, 43]),
        (20, 3, 5, 1.2, [0, 3, 5, 7, 10, 13, 16]),
    ],
)
def test_released_uneven_schedules(total, interval, centre, power, steps):
    assert non_uniform_steps(total, interval, centre, power) == steps


def test_uneven_steps_in_a_run(unet):
    with accelerate(unet, DeepCache(3, centre=4, power=1.2)) as handle, handle.run(STEPS):
        run(unet)
        assert handle.report().plan.full_steps == non_uniform_steps(STEPS, 3, 4, 1.2)


def test_what_it_refuses(unet, make_dit):
    for make, said in [
        (lambda: accelerate(make_dit(), DeepCache(2)), "take BlockSpan"),
        (lambda: DeepCache(0), "interval 0"),
        (lambda: DeepCache(branch=-1), "branch -1"),
    ]:
        with pytest.raises(PolyditError, match=said):
            make()
