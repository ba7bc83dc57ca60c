"""Our networks under diffusers' schedulers: equal to diffusers' own loop, right where paths differ."""

from __future__ import annotations

from itertools import pairwise

import diffusers
import pytest
import torch

from polydit.core.diffusion import (
    DiscretePath,
    GVPPath,
    Parameterization,
    TimeConvention,
    VPPath,
    make_scheduler,
    preset,
    refine,
    respace,
    sample,
    with_scheduler,
)
from polydit.core.diffusion.learned_variance import log_variance_range, posterior_mean
from polydit.core.errors import PolyditError

# diffusers' schedulers still call numpy in ways that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FLOW, DIT = preset("flow"), preset("dit")


@pytest.fixture
def noise(generator):
    return torch.randn(2, 3, 4, 4, generator=generator)


@pytest.fixture
def large(generator):
    return torch.randn(1, 1, 64, 64, generator=generator)


def wavy(x, t):
    """A deterministic network without structure, so that any slip in order or scale shows."""
    return torch.sin(3 * x + t.float().view(-1, 1, 1, 1) / 300) + 0.3 * x.flip(-1)


def test_published_respacing():
    full = respace(250)[::-1]
    assert full[:3] == [0, 4, 8]
    assert full[-3:] == [991, 995, 999]
    assert len(full) == 250
    fifty = respace(50)[::-1]
    assert fifty[:4] == [0, 20, 41, 61]
    assert fifty[-3:] == [958, 979, 999]
    assert respace(50, leading=True) == list(range(980, -1, -20))
    assert respace(1000) == list(range(999, -1, -1))
    assert respace(1) == [0]
    with pytest.raises(ValueError, match="no whole stride gives 300"):
        respace(300, leading=True)
    with pytest.raises(ValueError, match="cannot take 1001"):
        respace(1001)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["flow", "sit"])
def test_flow_match_euler_is_our_euler(name, shift, noise):
    parameterization = preset(name)
    ours = sample(wavy, noise, parameterization, 6, shift=shift)
    theirs = with_scheduler(
        wavy, noise, parameterization, make_scheduler("euler", parameterization, shift), 6
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "euler", "heun"])
def test_equal_to_the_plain_diffusers_loop(name, noise):
    """Epsilon network and scheduler on the same table: nothing is converted, nothing may change."""
    scheduler = make_scheduler(name, DIT)
    ours = with_scheduler(wavy, noise, DIT, scheduler, 8)
    scheduler.set_timesteps(8)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        answer = wavy(scheduler.scale_model_input(x, t), t.expand(2))
        x = scheduler.step(answer, t, x, return_dict=False)[0]
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_ddim_closed_form(noise):
    path, x = DIT.path, noise.double()
    ours = with_scheduler(wavy, noise, DIT, make_scheduler("ddim", DIT, timestep_spacing="leading"), 50)
    indices = [*respace(50, leading=True), None]
    for index, previous in pairwise(indices):
        epsilon = wavy(x, torch.full((2,), index))
        abar = path.alphas_cumprod[index]
        abar_previous = path.alphas_cumprod[previous] if previous is not None else torch.tensor(1.0)
        x0 = (x - (1 - abar).sqrt() * epsilon) / abar.sqrt()
        x = abar_previous.sqrt() * x0 + (1 - abar_previous).sqrt() * epsilon
    torch.testing.assert_close(ours.double(), x, rtol=1e-3, atol=1e-3)


def test_ancestral_sampling_with_learned_variance(noise):
    """DiT's sampler: respaced indices, log variance interpolated on the respaced chain, no clipping."""
    indices = respace(10)

    def denoise(x, t):
        return torch.cat([wavy(x, t), torch.tanh(x)], dim=1)

    scheduler = make_scheduler("ddpm", DIT, variance_type="learned_range")
    ours = with_scheduler(
        denoise, noise, DIT, scheduler, None,
        set_timesteps={"timesteps": indices}, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip

    # The shortened chain as a discrete path of its own.
    short = DiscretePath(steps=10)
    short.alphas_cumprod = DIT.path.alphas_cumprod[indices[::-1]]
    previous = torch.cat([torch.ones(1, dtype=torch.float64), short.alphas_cumprod[:-1]])
    short.betas = 1 - short.alphas_cumprod / previous
    low, high = log_variance_range(short)
    generator, x = torch.Generator().manual_seed(3), noise.double()
    for k in range(9, -1, -1):
        epsilon, v = denoise(x, torch.full((2,), indices[9 - k])).chunk(2, dim=1)
        abar = short.alphas_cumprod[k]
        x0 = (x - (1 - abar).sqrt() * epsilon) / abar.sqrt()
        mean = posterior_mean(short, x0, x, torch.tensor([k, k]))
        if k == 0:
            x = mean
            break
        log_variance = (v + 1) / 2 * high[k] + (1 - v) / 2 * low[k]
        x = mean + torch.exp(0.5 * log_variance) * torch.randn(x.shape, generator=generator)
    torch.testing.assert_close(ours.double(), x, rtol=1e-3, atol=1e-3)


PARAMETERIZATIONS = [
    FLOW,
    preset("sit"),
    Parameterization(GVPPath(), "v"),
    Parameterization(VPPath(), "epsilon", TimeConvention(scale=1.0)),
    DIT,
    Parameterization(DiscretePath("scaled_linear", 0.00085, 0.012), "v", TimeConvention(discrete=True)),
]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
        diffusers.FlowMatchHeunDiscreteScheduler(),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        diffusers.DDIMScheduler(
            clip_sample=False, timestep_spacing="trailing", beta_schedule="scaled_linear",
            beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        ),
        diffusers.DDPMScheduler(clip_sample=False, prediction_type="sample"),
        diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"),
    ],
    ids=lambda s: f"{type(s).__name__}-{s.config.get('prediction_type')}",
)  # fmt: skip
def test_any_network_under_any_scheduler(scheduler, parameterization, gaussian, large, generator):
    """Exact networks for Gaussian data must give Gaussian data whatever path the scheduler walks."""
    # First-order schedulers on a table converge slowly here; DDIM wants a divisor of 1000.
    slow = {diffusers.EulerDiscreteScheduler: 500, diffusers.DDIMScheduler: 250, diffusers.DDPMScheduler: 250}
    steps = slow.get(type(scheduler), 120)
    out = with_scheduler(
        gaussian.denoiser(parameterization), large, parameterization, scheduler, steps,
        latents=torch.full_like(large, gaussian.mean),  # some tables do not end in pure noise
        generator=generator,
    )  # fmt: skip
    # A network whose table ends at less noise than the scheduler's starts guesses there: 0.02.
    assert out.mean().item() == pytest.approx(gaussian.mean, abs=0.025)
    assert out.std().item() == pytest.approx(gaussian.std, rel=0.06)


def test_the_scheduler_is_not_changed(noise):
    scheduler = make_scheduler("dpm++", FLOW)
    before = scheduler.timesteps.clone()
    first = with_scheduler(wavy, noise, FLOW, scheduler, 5)
    assert torch.equal(scheduler.timesteps, before)
    assert torch.equal(with_scheduler(wavy, noise, FLOW, scheduler, 5), first)


@pytest.mark.parametrize("name", ["euler", "heun", "unipc", "dpm++"])
@pytest.mark.parametrize("parameterization", [FLOW, DIT], ids=["flow", "dit"])
def test_partial_start_runs_the_steps_asked_for(name, parameterization, gaussian, noise):
    levels = []
    out = refine(
        gaussian.denoiser(parameterization), torch.full_like(noise, gaussian.mean), parameterization, 40,
        start=0.5, noise=noise, scheduler=make_scheduler(name, parameterization),
        callback=lambda step: levels.append(step.t),
    )  # fmt: skip
    assert len(levels) == (79 if name == "heun" else 40)  # heun asks twice per step but for the last
    assert 0.48 < levels[0] <= 0.5
    assert levels == sorted(levels, reverse=True)
    # The start was noised to exactly the level of the first step, so the exact flow's end is known.
    t = torch.tensor(levels[0])
    alpha, sigma = parameterization.path.alpha(t), parameterization.path.sigma(t)
    width = gaussian.std * sigma / torch.sqrt((alpha * gaussian.std) ** 2 + sigma**2)
    torch.testing.assert_close(out, gaussian.mean + width * noise, rtol=0, atol=0.08)


def test_first_step_counts_like_strength(gaussian, noise):
    seen = []
    with_scheduler(
        lambda x, t: seen.append(t[0].item()) or x, noise, FLOW, make_scheduler("euler", FLOW), 10,
        latents=noise, first_step=8,
    )  # fmt: skip
    assert seen == pytest.approx([200, 100])
    # A latent start at level 1 is pure noise on the linear path.
    starts = []
    with_scheduler(
        lambda x, t: starts.append(x) or x, noise, FLOW, make_scheduler("euler", FLOW), 2,
        latents=torch.full_like(noise, 5.0), start=1.0,
    )  # fmt: skip
    assert torch.equal(starts[0], noise)


def test_difface_starts_at_index_400(noise):
    """100 of 250 respaced indices and the start itself: 400, 396, ..., 0, however it is asked for."""
    scheduler = make_scheduler("ddim", DIT, timestep_spacing="leading")
    options = {
        "start": DIT.path.time_of_index(400).item(),
        "step_options": {"eta": 0.5},
        "generator": torch.Generator().manual_seed(0),
    }
    by_schedule, by_steps = [], []
    with_scheduler(
        lambda x, t: by_schedule.append(t[0].item()) or x,
        noise,
        DIT,
        scheduler,
        250,
        latents=noise,
        **options,
    )
    options |= {"noise": noise, "scheduler": scheduler}
    refine(lambda x, t: by_steps.append(t[0].item()) or x, noise, DIT, 101, **options)
    assert by_schedule == by_steps == list(range(400, -1, -4))


def test_schedulers_own_noise_follows_the_seed(noise):
    scheduler = make_scheduler("ddim", DIT)

    def run(seed):
        return with_scheduler(
            wavy, noise, DIT, scheduler, 5,
            step_options={"eta": 1.0}, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_callback_may_replace_the_state(noise):
    out = with_scheduler(
        wavy, noise, FLOW, make_scheduler("euler", FLOW), 3,
        callback=lambda step: torch.zeros_like(step.x_t) if step.index == 2 else None,
    )  # fmt: skip
    assert (out == 0).all()


def test_refusals(noise):
    with pytest.raises(PolyditError, match="scheduler 'ddim' does not exist for LinearPath"):
        make_scheduler("ddim", FLOW)
    with pytest.raises(PolyditError, match="KDPM2DiscreteScheduler"):
        with_scheduler(wavy, noise, DIT, diffusers.KDPM2DiscreteScheduler(), 4)
    with pytest.raises(ValueError, match="needs latents"):
        with_scheduler(wavy, noise, FLOW, make_scheduler("euler", FLOW), 4, start=0.5)
    with pytest.raises(PolyditError, match="skips the whole schedule"):
        with_scheduler(wavy, noise, FLOW, make_scheduler("euler", FLOW), 4, latents=noise, start=0.1)
    with pytest.raises(PolyditError, match="no schedule has 400 steps"):
        refine(wavy, noise, DIT, 400, start=0.1, noise=noise, scheduler=make_scheduler("ddim", DIT))
