"""Trajectory regression and the adversarial game, by closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydit.core.acceleration import AdversarialDistillation, FeatureDiscriminator, TrajectoryDistillation
from polydit.core.acceleration.adversarial_distillation import hinge_for_discriminator, hinge_for_generator
from polydit.core.diffusion import Parameterization
from polydit.core.diffusion.samplers import sample
from polydit.core.errors import PolyditError

VELOCITY = Parameterization()
CLEAN = Parameterization(prediction="x0")


def curved(x_t, timestep):
    """A field whose Euler steps do not lie on a line."""
    return torch.sin(3 * x_t) + (timestep / 1000).view(-1, 1, 1, 1)


def inputs(batch=4):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(batch, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_the_first_segment_is_what_the_teacher_samples(shift):
    distillation = TrajectoryDistillation(12, 3, shift=shift)
    x0, noise = inputs()
    segment = distillation.follow(curved, VELOCITY, x0, noise, torch.zeros(4, dtype=torch.long))
    assert torch.equal(segment.start, noise)
    expected = sample(curved, noise, VELOCITY, 12, times=distillation.times[:5])
    torch.testing.assert_close(segment.end, expected, atol=1e-6, rtol=0)
    assert segment.t_end.tolist() == pytest.approx([distillation.times[4]] * 4)


def test_each_sample_goes_along_its_own_segment():
    distillation = TrajectoryDistillation(8, 4)
    x0, noise = inputs()
    together = distillation.follow(curved, VELOCITY, x0, noise, torch.tensor([0, 1, 2, 3]))
    for number in range(4):
        alone = distillation.follow(
            curved, VELOCITY, x0[number : number + 1], noise[number : number + 1], torch.tensor([number])
        )
        torch.testing.assert_close(together.end[number : number + 1], alone.end)
        assert float(together.t[number]) == pytest.approx(1 - number / 4)


@pytest.mark.parametrize(
    ("parameterization", "space"), [(VELOCITY, "velocity"), (VELOCITY, "x0"), (CLEAN, "x0")]
)
def test_the_answer_that_lands_on_the_end_costs_nothing(parameterization, space):
    distillation = TrajectoryDistillation(8, 2, shift=2.0, space=space)
    x0, noise = inputs()
    segment = distillation.follow(curved, VELOCITY, x0, noise, torch.tensor([0, 1, 1, 0]))
    answer = segment.velocity
    if parameterization is CLEAN:
        answer = segment.start - segment.t.view(-1, 1, 1, 1) * segment.velocity
    assert distillation.error(answer, segment, parameterization).max() < 1e-10
    worse = distillation.error(answer + 0.5, segment, parameterization)
    expected = 0.25 * (segment.t.double() ** 2 if (parameterization, space) == (VELOCITY, "x0") else 1)
    torch.testing.assert_close(worse, torch.ones(4, dtype=torch.float64) * expected)


def test_a_teacher_on_straight_lines_is_its_own_student():
    """The velocity of data to noise is the same everywhere on the way, so that one step is as good as many."""
    x0, noise = inputs()
    distillation = TrajectoryDistillation(32, 8)
    segment = distillation.follow(lambda x, t: noise - x0, VELOCITY, x0, noise, torch.tensor([0, 3, 5, 7]))
    assert distillation.error(noise - x0, segment, VELOCITY).max() < 1e-10


def test_segments_are_drawn_evenly_and_to_the_last():
    distillation = TrajectoryDistillation(32, 8)
    drawn = distillation.segments_of(torch.linspace(0, 1, 801))
    assert drawn.unique(return_counts=True)[1].tolist() == [100] * 7 + [101]
    assert sum(distillation.student_lengths()) == pytest.approx(1)


def test_a_learned_student_follows_better_than_the_teacher_at_its_steps():
    """A field proportional to the state; the student has one number, and its best value lands exactly."""
    distillation = TrajectoryDistillation(16, 2, space="velocity")
    slope = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([slope], 0.3)
    x0, noise = inputs()
    for _ in range(40):
        segments = distillation.segments_of(torch.tensor([0.1, 0.4, 0.6, 0.9]))
        segment = distillation.follow(lambda x, t: 1.5 * x, VELOCITY, x0, noise, segments)
        distillation.error(slope * segment.start, segment, VELOCITY).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    truth = sample(lambda x, t: 1.5 * x, noise, VELOCITY, 16)
    few = (sample(lambda x, t: 1.5 * x, noise, VELOCITY, 2) - truth).square().mean()
    taught = (sample(lambda x, t: slope.detach() * x, noise, VELOCITY, 2) - truth).square().mean()
    assert taught < 1e-6 * few, (taught, few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_steps": 30, "student_steps": 8}, "teacher_steps 30: no multiple of student_steps 8"),
        ({"student_steps": 0}, "no multiple of student_steps 0"),
        ({"loss": "l3"}, "distillation loss 'l3'"),
        ({"space": "v"}, "distillation space 'v'"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(PolyditError, match=message):
        TrajectoryDistillation(**options)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert float(hinge_for_discriminator(real, fake)) == pytest.approx(0.25 + 0.625)
    assert float(hinge_for_generator(fake)) == pytest.approx(1.375)


@pytest.fixture
def game():
    torch.manual_seed(0)
    teacher = nn.Conv2d(2, 6, 1).requires_grad_(False)

    def features(x_t, t):
        return [teacher(x_t).flatten(2).transpose(1, 2)]

    return features, FeatureDiscriminator(6, 1, hidden=8)


def test_gradients_of_the_game_stay_on_their_sides(game):
    features, discriminator = game
    data, answer = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4, requires_grad=True)
    terms = AdversarialDistillation().terms(discriminator, features, VELOCITY, answer, data, (4, 4))
    terms["adversarial"].backward(retain_graph=True)
    assert answer.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminator.parameters())
    answer.grad = None
    terms["discriminator"].backward()
    assert answer.grad is None
    weights = [p for p in discriminator.parameters() if p.ndim > 1]  # both sides cancel in the last offset
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


def test_the_same_generator_judges_at_the_same_noise(game):
    features, discriminator = game
    data = torch.randn(3, 2, 4, 4)
    first, again, other = (
        AdversarialDistillation().terms(
            discriminator, features, VELOCITY, data, data, (4, 4), torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["adversarial"], again["adversarial"])
    assert not torch.equal(first["adversarial"], other["adversarial"])


def test_a_student_of_one_number_learns_the_mean_of_the_data(game):
    """The whole game in one optimiser: what is judged moves to where the data is."""
    features, discriminator = game
    value = torch.zeros(1, 2, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([value, *discriminator.parameters()], 2e-2, betas=(0.5, 0.9))
    for _ in range(60):
        data = 1 + 0.1 * torch.randn(4, 2, 4, 4)
        answer = value + 0.1 * torch.randn(4, 2, 4, 4)
        terms = AdversarialDistillation().terms(discriminator, features, VELOCITY, answer, data, (4, 4))
        sum(terms.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (value.mean() - 1).abs() < 0.5, value


def test_features_that_do_not_fit_the_heads(game):
    discriminator = game[1]
    with pytest.raises(ValueError, match="features of 2 blocks for 1 heads"):
        discriminator([torch.zeros(1, 16, 6)] * 2, (4, 4))
    with pytest.raises(ValueError, match="15 tokens do not lie on a grid of"):
        discriminator([torch.zeros(1, 15, 6)], (4, 4))
