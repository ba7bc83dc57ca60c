"""Integrators on Gaussian data, where the exact network and the exact answer are known."""

from __future__ import annotations

import pytest
import torch

from polydit.core.diffusion import (
    DiscretePath,
    GVPPath,
    LinearPath,
    Parameterization,
    TimeConvention,
    VPPath,
    draw_noise,
    preset,
    refine,
    sample,
    shift_time,
    time_grid,
)

FLOW = Parameterization()


@pytest.fixture
def noise(generator):
    return torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "parameterization",
    [
        FLOW,
        preset("sit"),
        Parameterization(prediction="x0"),
        Parameterization(GVPPath()),
        Parameterization(GVPPath(), "v", TimeConvention(scale=1.0)),
        Parameterization(VPPath(), "epsilon"),
        Parameterization(VPPath(), "score", TimeConvention(scale=1.0, flip=True)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_exact_network_carries_noise_to_the_data(parameterization, method, gaussian, noise):
    """The flow of Gaussian data is N(0, 1) -> N(mean, std^2) along straight lines of quantiles."""
    if parameterization.path.name == "vp":
        # alpha(1) is not 0: the flow starts at the marginal of t = 1, not at pure noise.
        alpha, sigma = (
            getattr(parameterization.path, name)(torch.tensor(1.0)) for name in ("alpha", "sigma")
        )
        init = alpha * gaussian.mean + torch.sqrt((alpha * gaussian.std) ** 2 + sigma**2) * noise
    else:
        init = noise
    out = sample(gaussian.denoiser(parameterization), init, parameterization, 400, method)
    tolerance = 0.02 if method == "euler" else 2e-3
    torch.testing.assert_close(out, gaussian.transport(noise), rtol=0, atol=tolerance)


def error(method, steps, gaussian, noise):
    out = sample(gaussian.denoiser(FLOW), noise, FLOW, steps, method, end=0.1)
    t = torch.tensor(0.1, dtype=torch.float64)
    std = torch.sqrt((0.9 * gaussian.std) ** 2 + t**2)
    return (out - (0.9 * gaussian.mean + std * noise)).abs().max().item()


def test_order_of_convergence(gaussian, noise):
    euler, heun = (
        error(method, 40, gaussian, noise) / error(method, 80, gaussian, noise)
        for method in ("euler", "heun")
    )
    assert 1.8 < euler < 2.2
    assert 3.6 < heun < 4.4


@pytest.mark.parametrize("noise_scale", [0.5, 1.0])
@pytest.mark.parametrize("path", [LinearPath(), GVPPath()], ids=lambda p: p.name)
def test_sde_keeps_the_marginals(path, noise_scale, gaussian, generator):
    parameterization = Parameterization(path, time=TimeConvention(scale=1.0, flip=True))
    init = torch.randn(4, 1, 64, 64, generator=generator)
    out = sample(
        gaussian.denoiser(parameterization), init, parameterization, 400, "sde",
        noise_scale=noise_scale, last_step=0.004, generator=generator,
    )  # fmt: skip
    assert out.mean().item() == pytest.approx(gaussian.mean, abs=0.01)
    assert out.std().item() == pytest.approx(gaussian.std, rel=0.03)
    # The noise decides where a start ends: unlike the flow, the result hardly remembers it.
    correlation = torch.corrcoef(torch.stack([init.flatten(), out.flatten()]))[0, 1]
    assert correlation < 0.8


def test_sde_without_noise_is_euler(gaussian, noise):
    times = time_grid(10, last_step=0.1)
    sde, euler = (
        sample(gaussian.denoiser(FLOW), noise, FLOW, 10, method, times=times, noise_scale=0.0)
        for method in ("sde", "euler")
    )
    torch.testing.assert_close(sde, euler)


def test_covariance_is_recovered(generator):
    """Correlated Gaussian data: 50 Heun steps give the covariance within 2 %."""
    root = torch.tensor([[1.0, 0.0], [0.8, 0.4]], dtype=torch.float64)
    covariance = root @ root.T

    def denoise(x_t, timestep):
        t = (timestep / 1000).double()[0]
        marginal = (1 - t) ** 2 * covariance + t**2 * torch.eye(2)
        x0 = x_t @ torch.linalg.solve(marginal, (1 - t) * covariance)
        return FLOW.path.convert(x0, x_t, t, "x0", "velocity")

    noise = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    out = sample(denoise, noise, FLOW, 50, "heun")
    whitened = torch.linalg.solve(torch.linalg.cholesky(torch.cov(noise.T)), noise.T - noise.mean(0)[:, None])
    assert torch.allclose(torch.cov(whitened), torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(torch.cov(out.T), covariance, rtol=0.02, atol=0.02)


def test_time_grid():
    assert time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(2, start=0.5, shift=3.0) == pytest.approx([0.5, shift_time(0.125, 3.0), 0.0])
    assert time_grid(3, last_step=0.1) == pytest.approx([1.0, 0.55, 0.1, 0.0])
    assert time_grid(1, last_step=0.1) == [1.0, 0.0]
    # RAE: 50 points of 1 - linspace(0, 0.999), shifted: 49 steps that end at 0.0069.
    rae = time_grid(49, end=shift_time(0.001, 48**0.5), shift=48**0.5)
    expected = shift_time(1 - torch.linspace(0, 0.999, 50, dtype=torch.float64), 48**0.5)
    torch.testing.assert_close(torch.tensor(rae, dtype=torch.float64), expected)
    assert rae[-1] == pytest.approx(0.0069, abs=5e-5)
    for message, wrong in (
        ("at least one step, not 0", {"steps": 0}),
        ("not from 0.3 to 0.3", {"steps": 4, "start": 0.3, "end": 0.3}),
        ("not from 1.5 to 0.0", {"steps": 4, "start": 1.5}),
        ("last step 2 does not fit", {"steps": 4, "last_step": 2}),
    ):
        with pytest.raises(ValueError, match=message):
            time_grid(**wrong)


def test_a_true_velocity_refines_exactly_in_any_number_of_steps(noise, generator):
    """Partial start at 0.3 with the velocity that leads to the data: exact for 1, 5 and 13 Euler steps."""
    data, decoded = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    start = 0.3
    x_start = FLOW.path.add_noise(decoded, noise, start)
    for steps in (1, 5, 13):
        out = refine(lambda x, t: (x_start - data) / start, decoded, FLOW, steps, start=start, noise=noise)
        torch.testing.assert_close(out, data, rtol=0, atol=1e-12)
    # The velocity of the clean clip alone leaves 70 % of the error of the start.
    plain = refine(lambda x, t: noise - data, decoded, FLOW, 5, start=start, noise=noise)
    torch.testing.assert_close(plain, data + 0.7 * (decoded - data), rtol=0, atol=1e-12)


def test_refinement_forgets_the_start_as_noise_grows(gaussian, generator):
    """Exact network, Gaussian prior: the result has a closed form for every start level."""
    latents = torch.full((1, 1, 8, 8), 2.0, dtype=torch.float64)
    noise = torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    denoise = gaussian.denoiser(FLOW)
    assert refine(denoise, latents, FLOW, 10, start=0.0) is latents
    moved = []
    for start in (0.2, 0.6, 0.95):
        out = refine(denoise, latents, FLOW, 2000, start=start, noise=noise)
        state = (1 - start) * 2.0 + start * noise
        std = ((1 - start) ** 2 * gaussian.std**2 + start**2) ** 0.5
        expected = gaussian.mean + gaussian.std * (state - (1 - start) * gaussian.mean) / std
        torch.testing.assert_close(out, expected, rtol=0, atol=5e-3)
        moved.append((out.mean() - 2.0).abs().item())
    assert moved == sorted(moved)


def test_error_contraction_of_a_partial_start(noise):
    """DifFace: two estimates with the same noise stay sqrt(abar_400) = 0.43997 of their distance apart."""
    dit, starts = preset("dit"), []
    for estimate in (torch.zeros_like(noise), torch.ones_like(noise)):
        refine(
            lambda x, t: starts.append((x, t)) or torch.zeros_like(x),
            estimate, dit, 1, start=dit.path.time_of_index(400).item(), noise=noise,
        )  # fmt: skip
    (first, timestep), (second, _) = starts
    assert timestep.tolist() == [400, 400]
    torch.testing.assert_close(second - first, torch.full_like(noise, 0.43997), rtol=0, atol=5e-6)


def test_seeds(gaussian):
    def run(seed):
        generators = seed if isinstance(seed, list) else torch.Generator().manual_seed(seed)
        return refine(gaussian.denoiser(FLOW), torch.zeros(2, 1, 4, 4), FLOW, 8, start=0.8,
                      generator=generators, method="sde")  # fmt: skip

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    each = run([torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)])
    assert torch.equal(each[0], each[1])  # one seed per sample does not depend on the batch
    assert draw_noise(torch.zeros(2, 3), torch.Generator().manual_seed(0)).shape == (2, 3)


def test_callback_sees_progress_and_may_keep_known_regions(gaussian, noise):
    steps = []
    sample(gaussian.denoiser(FLOW), noise, FLOW, 4, callback=lambda step: steps.append(step))
    assert [(s.index, s.total, s.t, s.t_next) for s in steps] == [
        (0, 4, 1.0, 0.75), (1, 4, 0.75, 0.5), (2, 4, 0.5, 0.25), (3, 4, 0.25, 0.0)
    ]  # fmt: skip
    torch.testing.assert_close(steps[0].x0, torch.full_like(noise, gaussian.mean))
    known = torch.full_like(noise, 9.0)

    def paste(step):
        noised = FLOW.path.add_noise(known, noise, step.t_next)
        return torch.cat([noised[:, :1], step.x_t[:, 1:]], dim=1)

    out = sample(gaussian.denoiser(FLOW), noise, FLOW, 4, callback=paste)
    assert (out[:, 0] == 9).all()
    assert (out[:, 1:] < 5).all()


def test_bad_arguments(noise, gaussian):
    with pytest.raises(ValueError, match="unknown sampling method 'rk4'; one of euler, heun, sde"):
        sample(gaussian.denoiser(FLOW), noise, FLOW, 4, "rk4")
    with pytest.raises(ValueError, match="must descend"):
        sample(gaussian.denoiser(FLOW), noise, FLOW, 4, times=[1.0, 0.5, 0.6])


def test_low_precision_network_keeps_the_state_precise(gaussian, noise):
    out = sample(lambda x, t: gaussian.denoiser(FLOW)(x, t).bfloat16(), noise, FLOW, 4)
    assert out.dtype == torch.float64


def test_discrete_network_is_asked_at_whole_indices(noise):
    dit, seen = Parameterization(DiscretePath(), "epsilon", TimeConvention(discrete=True)), []
    sample(lambda x, t: seen.append(t) or x, noise, dit, 4)
    assert [t[0].item() for t in seen] == [999, 749, 499, 249]
    assert all(t.dtype == torch.int64 for t in seen)
