"""MMD-DDM as an objective: the loss and gradients of the whole sampler, what ``fit`` makes of it, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polydit.core.acceleration import MMDFinetuning, MMDObjective, RandomFeatures
from polydit.core.backbones import DiT
from polydit.core.diffusion import (
    DiscretePath,
    Objective,
    Parameterization,
    Shifted,
    TimeConvention,
    make_scheduler,
    with_scheduler,
)
from polydit.core.errors import PolyditError
from polydit.core.metrics.kernel import gaussian_kernel, kernel_distance, polynomial_kernel
from polydit.core.training import DiffusionModule

INDICES = TimeConvention(1000, discrete=True)


def flat(samples):
    """The samples themselves."""
    return samples.flatten(1)


def network_and_draws(seed=0, batch=6):
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    return conv, torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kernel", ["polynomial", "gaussian"])
def test_loss_and_gradients_are_those_of_the_whole_sampler(kernel, recompute):
    conv, x0, noise = network_and_draws()
    other = copy.deepcopy(conv)
    objective = MMDObjective(3, flat, kernel, recompute=recompute, prediction="x0")
    output = objective(lambda x, t: conv(x), x0, noise=noise, t=torch.rand(6))
    made = polynomial_kernel() if kernel == "polynomial" else gaussian_kernel()
    finetuning = MMDFinetuning(Parameterization(prediction="x0"), [1.0, 2 / 3, 1 / 3, 0.0], flat, made)
    expected = finetuning.loss(lambda x, t: other(x), noise, x0)
    torch.testing.assert_close(output.loss, expected.float())
    output.loss.backward()
    expected.backward()
    torch.testing.assert_close(conv.weight.grad, other.weight.grad)
    assert conv.weight.grad.abs().max() > 0
    again = MMDObjective(3, flat, kernel, prediction="x0")(lambda x, t: conv(x), x0, noise=noise)
    assert torch.equal(again.loss, output.loss)  # the time that was drawn says nothing


def test_what_a_call_computed_is_that_of_the_last_step():
    conv, x0, noise = network_and_draws()
    objective = MMDObjective(4, flat)
    output = objective(lambda x, t: conv(x), x0, noise=noise)
    torch.testing.assert_close(output.t, torch.full((6,), 0.25))
    torch.testing.assert_close(objective.x0(output.prediction, output.x_t, output.t), output.x0)
    assert torch.equal(output.noise, noise)
    assert output.loss_per_sample.shape == (6,)
    # A task's own loss on the samples reaches the network through all steps.
    output.x0.square().mean().backward()
    assert conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [
        (MMDObjective(4, flat, timesteps=Shifted(shift=3.0)), "euler"),
        (MMDObjective(5, flat, path=DiscretePath(), prediction="v", time=INDICES), "ddim"),
        (MMDObjective(4, flat, path=DiscretePath(), prediction="epsilon", time=INDICES), "ddim"),
    ],
    ids=["flow", "v", "epsilon"],
)  # fmt: skip
def test_the_pipelines_sampler_makes_the_samples_of_training(objective, sampler):
    """Saved as any other parameterization, under the scheduler of the tasks."""
    conv, x0, noise = network_and_draws()

    def denoise(x, t):
        return conv(x) * (1 + t.view(-1, 1, 1, 1) / 1000)

    saved = Parameterization.from_config(objective.config())
    assert type(saved) is Parameterization
    shift = getattr(objective.timesteps, "shift", 1.0)
    with torch.no_grad():
        output = objective(denoise, x0, noise=noise)
        scheduler = make_scheduler(sampler, saved, shift=shift)
        made = with_scheduler(denoise, noise, saved, scheduler, objective.steps)
    # Noise that is told from alpha = 0.006 makes large clean data.
    torch.testing.assert_close(made, output.x0, atol=1e-4 * float(made.abs().max()), rtol=1e-3)


def test_elements_without_weight_are_not_judged():
    conv, x0, noise = network_and_draws()
    weight = torch.zeros(1, 1, 8, 8)
    weight[..., :4] = 2.0
    objective = MMDObjective(2, flat)
    loss = objective(lambda x, t: conv(x), x0, noise=noise, element_weight=weight).loss
    samples = objective(lambda x, t: conv(x), x0, noise=noise).x0
    samples = torch.cat([samples[..., :4], x0[..., 4:]], dim=-1)
    torch.testing.assert_close(loss, kernel_distance(flat(samples), flat(x0)).float())


def test_what_is_refused():
    conv, x0, noise = network_and_draws(batch=1)
    objective = MMDObjective(2)
    with pytest.raises(PolyditError, match=r"^--data\.batch_size 1: .* 2 or more in a batch; raise it$"):
        objective(lambda x, t: conv(x), x0, noise=noise)
    with torch.no_grad():  # the rest of held-out data
        assert float(objective(lambda x, t: conv(x), x0, noise=noise).loss) >= 0
        assert float(objective(lambda x, t: x0, x0, noise=noise - noise).loss) > 0
    with pytest.raises(PolyditError, match=r"^--model\.objective\.steps 0: "):
        MMDObjective(0)
    with pytest.raises(PolyditError, match=r"kernel 'rbf': is unknown; choose from polynomial, gaussian"):
        MMDObjective(kernel="rbf")
    with pytest.raises(PolyditError, match=r"gamma -1: "):
        MMDObjective(gamma=-1.0)
    conv, x0, noise = network_and_draws()
    with pytest.raises(PolyditError, match=r"features: of 6 samples they are \(\)"):
        MMDObjective(2, lambda x: x.mean())(lambda x, t: conv(x), x0, noise=noise)
    with pytest.raises(PolyditError, match="one to three axes"):
        RandomFeatures()(torch.randn(2, 3))
    with pytest.raises(PolyditError, match="levels 0"):
        RandomFeatures(levels=0)


def test_features_may_be_a_module_which_stays_frozen():
    conv, x0, noise = network_and_draws()
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    output = MMDObjective(2, features)(lambda x, t: conv(x), x0, noise=noise)
    output.loss.backward()
    assert conv.weight.grad is not None
    assert all(p.grad is None for p in features.parameters())


@pytest.mark.parametrize("shape", [(3, 40), (3, 24, 20), (4, 1, 16, 16), (2, 12, 12, 12), (1, 1, 1)])
def test_random_features(shape):
    features, x = RandomFeatures(width=8), torch.randn(5, *shape)
    found = features(x)
    assert found.shape[0] == 5
    assert torch.equal(found, RandomFeatures(width=8)(x))  # no random state is asked
    torch.testing.assert_close(features(x[1:2]), found[1:2], atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, RandomFeatures(width=8, seed=1)(x))


def test_random_features_see_detail_of_each_size_and_no_order_of_points():
    x = torch.zeros(2, 1, 32, 32)
    x[1, :, ::2] = 0.5  # stripes one pixel wide, gone when halved
    x[1, :, 1::2] = -0.5
    fine, coarse = (RandomFeatures(width=8, levels=n, cells=1) for n in (1, 3))
    assert (fine(x)[1] - fine(x)[0])[1:].min() > 0.01
    assert (coarse(x)[1] - coarse(x)[0])[10:].abs().max() < 1e-6
    cloud = torch.randn(1, 3, 50)
    shuffled = cloud[..., torch.randperm(50)]
    torch.testing.assert_close(RandomFeatures()(cloud), RandomFeatures()(shuffled))
    # Two clouds of the same means: one filter's response, not the coordinates' mean, tells them apart.
    pair = torch.stack([cloud[0] - cloud[0].mean(1, keepdim=True), 0 * cloud[0]])
    found = RandomFeatures(levels=1)(pair)
    assert (found[0] - found[1])[:3].abs().max() < 1e-6
    assert (found[0] - found[1])[3:].abs().max() > 0.1


class Pictures(DiffusionModule):
    """Unconditional pictures: the data are given."""

    def target(self, batch):
        return batch


def striped(count, seed):
    """Pictures of stripes, across or along, of any phase."""
    generator = torch.Generator().manual_seed(seed)
    phase = 6.3 * torch.rand(count, 1, 1, 1, generator=generator)
    wave = torch.sin(torch.arange(8.0)[None, None, None] * 1.57 + phase).expand(count, 1, 8, 8)
    return torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, wave, wave.mT).contiguous()


def test_a_module_gets_nearer_in_two_steps_also_in_features_it_was_not_trained_by():
    """A flow, then the objective in its place; the same updates of the flow's own loss do not do it."""
    torch.manual_seed(0)
    backbone = DiT(
        input_size=8,
        patch_size=2,
        in_channels=1,
        hidden_size=32,
        depth=2,
        num_heads=2,
        norm="rms",
        gate_init=0.5,
    )

    def train(module, count, lr, first):
        optimizer = torch.optim.Adam(module.parameters(), lr=lr)
        for number in range(count):
            torch.manual_seed(first + number)
            loss = sum(module.losses(striped(64, first + number))[0].values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
        return module

    train(Pictures(backbone, Objective()), 120, 3e-3, 0)
    more = train(Pictures(copy.deepcopy(backbone), Objective()), 30, 1e-3, 1000)
    tuned = train(Pictures(copy.deepcopy(backbone), MMDObjective(2)), 30, 1e-3, 1000)
    noise, real = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(1)), striped(256, 5000)

    def distances(module):
        """By filters of another seed, and in pixels under another kernel."""
        sampler = MMDFinetuning(Parameterization(), [1.0, 0.5, 0.0], flat)
        with torch.no_grad():
            made = sampler.sample(lambda x, t: module.backbone(x, t).sample, noise)
        other = RandomFeatures(seed=7)
        return (
            float(kernel_distance(other(made), other(real))),
            float(kernel_distance(flat(made), flat(real), gaussian_kernel())),
        )

    for longer, after in zip(distances(more), distances(tuned), strict=True):
        assert after < 0.7 * longer
