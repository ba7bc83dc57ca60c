"""Students of fewer steps and guidance by a classifier: algebra, reference vectors, small experiments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from polydit.core.acceleration import ClassifierGuidance, GuidedDistillation, MMDFinetuning
from polydit.core.acceleration.classifier_guidance import (
    class_gradient,
    mean_shift,
    smooth,
    state_shift,
    weight_of_step,
)
from polydit.core.acceleration.guided_distillation import (
    guidance_features,
    halve,
    halved_target,
    with_guidance,
)
from polydit.core.acceleration.mmd_finetuning import few_step_indices
from polydit.core.diffusion import Parameterization, ddim, ddim_step, index_times, preset, stochastic_ddim
from polydit.core.diffusion.paths import DiscretePath, VPPath
from polydit.core.errors import PolyditError
from polydit.core.metrics.kernel import gaussian_kernel, kernel_distance, polynomial_kernel

TOLERANCE = {"rtol": 1e-3, "atol": 2e-6}


# -- MMD-DDM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 0.02])
@pytest.mark.parametrize("kind", ["poly1", "poly3", "rbf"])
def test_released_distances(golden, kind, gamma):
    inputs, outputs = (
        load_file(golden / "mmd_ddm" / f"{part}.safetensors") for part in ("inputs", "outputs")
    )
    kernel = gaussian_kernel(gamma) if kind == "rbf" else polynomial_kernel(int(kind[-1]), gamma)
    x = inputs["x"].requires_grad_()
    distance = kernel_distance(x, inputs["y"], kernel)
    distance.backward()
    key = f"mmd.{kind}.gamma{gamma}"
    torch.testing.assert_close(distance.float().reshape(1), outputs[key], **TOLERANCE)
    torch.testing.assert_close(x.grad, outputs[f"{key}.grad_x"], **TOLERANCE)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["poly3", "rbf"])
def test_released_training_step(golden, kind, recompute):
    folder = golden / "mmd_ddm"
    inputs, outputs, weights = (
        load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs", "weights")
    )
    conv = nn.Conv2d(3, 3, 3, padding=1)
    conv.load_state_dict({key: weights[f"conv.{key}"].float() for key in ("weight", "bias")})
    matrix = weights["feature.W"].float()
    assert few_step_indices(5) == [0, 200, 400, 600, 800]
    training = MMDFinetuning(
        preset("dit"),
        index_times(few_step_indices(5)),
        lambda samples: ((samples + 1) / 2).flatten(1) @ matrix.T,
        gaussian_kernel() if kind == "rbf" else polynomial_kernel(3),
        recompute=recompute,
    )

    def denoise(x, t):
        return conv(x) * (1 + 0.01 * t.view(-1, 1, 1, 1) / 1000)

    with torch.no_grad():
        samples = training.sample(denoise, inputs["e2e.e"])
    torch.testing.assert_close(samples, outputs["e2e.samples"], atol=2e-5, rtol=1e-4)
    loss = training.loss(denoise, inputs["e2e.e"], inputs["e2e.real"])
    loss.backward()
    torch.testing.assert_close(loss.float().reshape(1), outputs[f"e2e.{kind}.loss"], **TOLERANCE)
    torch.testing.assert_close(conv.weight.grad, outputs[f"e2e.{kind}.grad.conv.weight"], **TOLERANCE)
    torch.testing.assert_close(conv.bias.grad, outputs[f"e2e.{kind}.grad.conv.bias"], atol=5e-6, rtol=1e-3)
    with pytest.raises(PolyditError, match="give as many"):
        training.loss(denoise, inputs["e2e.e"], inputs["e2e.real"][:3])


def test_steps_and_the_distance_to_itself():
    assert [len(few_step_indices(steps)) for steps in (5, 10, 15, 20)] == [5, 10, 16, 20]
    with pytest.raises(PolyditError, match="steps 0"):
        few_step_indices(0)
    x = torch.randn(12, 5, dtype=torch.float64)
    k = polynomial_kernel()(x, x)
    off = (k.sum() - k.diagonal().sum()) / (12 * 11)
    torch.testing.assert_close(kernel_distance(x, x), 2 / 12 * (off - k.diagonal().mean()))


def test_three_steps_learn_eight_points():
    """A ring of eight Gaussians: the few-step sampler gets several times nearer, and forgets none of them."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.arange(8) * torch.pi / 4
    centres = torch.stack([angles.cos(), angles.sin()], 1)

    def data(count):
        chosen = torch.randint(8, (count,), generator=generator)
        return centres[chosen] + 0.05 * torch.randn(count, 2, generator=generator)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    flow = Parameterization()

    def denoise(x, timestep):
        return network(torch.cat([x, timestep[:, None] / 1000], dim=1))

    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        x0, noise = data(256), torch.randn(256, 2, generator=generator)
        t = torch.rand(256, generator=generator)
        x_t = flow.path.add_noise(x0, noise, t)
        loss = (denoise(x_t, flow.model_timestep(t)) - flow.target(x0, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kernel = gaussian_kernel(10.0)
    training = MMDFinetuning(flow, [1.0, 2 / 3, 1 / 3, 0.0], lambda x: x, kernel)
    noise, real = torch.randn(1000, 2, generator=generator), data(1000)

    def distance():
        with torch.no_grad():
            return float(kernel_distance(training.sample(denoise, noise), real, kernel))

    before = distance()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(100):
        loss = training.loss(denoise, torch.randn(192, 2, generator=generator), data(192))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
    assert distance() < 0.45 * before
    with torch.no_grad():
        nearest = torch.cdist(training.sample(denoise, noise), centres).argmin(1)
    assert (nearest.bincount(minlength=8) > 60).all()


# -- guided distillation ---------------------------------------------------------------------------------------


def test_guidance_features():
    w = torch.tensor([0.0, 0.25, 1.5])
    found = guidance_features(w, 64)
    for k in (0, 5, 31):
        angle = 1000 * w.double() * 10000 ** (-k / 31)
        torch.testing.assert_close(found[:, k].double(), angle.sin(), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found[:, 32 + k].double(), angle.cos(), atol=1e-3, rtol=1e-3)


def test_a_fresh_student_is_the_conditional_teacher(make_dit):
    teacher = make_dit()
    student = with_guidance(teacher, 64)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([300.0, 800.0]), torch.tensor([1, 4])
    distillation = GuidedDistillation(Parameterization())
    w = distillation.draw(2, torch.Generator().manual_seed(0))
    assert ((w >= 0) & (w <= 4)).all()
    with torch.no_grad():
        raw = student(x, t, y, pooled_projections=guidance_features(w, 64)).sample
        assert torch.equal(raw, teacher(x, t, y).sample)
    pair = (lambda x, t: teacher(x, t, y).sample, lambda x, t: teacher(x, t, torch.full((2,), 5)).sample)
    time = t / 1000
    target = distillation.target(*pair, x, time, torch.zeros(2))
    assert distillation.loss(raw, target, x, time).abs().max() < 1e-9  # w = 0: nothing to learn
    assert distillation.loss(raw, distillation.target(*pair, x, time, w), x, time).min() > 1e-6
    torch.testing.assert_close(distillation.weight(torch.tensor([0.2, 0.9])), torch.tensor([16.0, 1.0]))
    with pytest.raises(PolyditError, match="pooled projections already"):
        with_guidance(student)


def test_stage_1_of_a_linear_teacher():
    """Two linear answers, mixed by any w: one network with w beside its input is trained onto it."""
    torch.manual_seed(0)
    conditional, free = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    student = nn.Linear(2 + 3, 2).double()  # x, w, and w x
    distillation = GuidedDistillation(Parameterization(prediction="x0"))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-2)
    for step in range(900):
        for group in optimizer.param_groups:
            group["lr"] = 5e-2 * (1 - step / 900)
        x, t, w = torch.randn(64, 2).double(), torch.full((64,), 0.6).double(), distillation.draw(64).double()
        target = distillation.target(lambda x, t: conditional(x), lambda x, t: free(x), x, t, w)
        answer = student(torch.cat([x, w[:, None], w[:, None] * x], dim=1))
        loss = distillation.loss(answer, target, x, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-4


@pytest.mark.parametrize("path", [None, VPPath(), DiscretePath()], ids=["linear", "vp", "discrete"])
def test_half_the_steps_land_at_the_same_place(path):
    """One step with the target is two of the teacher, exactly; also into t = 0."""
    parameterization = Parameterization(path, "x0")
    teacher = Parameterization(path, "epsilon")
    matrix = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def ask(x, timestep):
        return torch.einsum("ij,bjhw->bihw", matrix, x) * 0.3

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    t, end = torch.tensor([0.8, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.0], dtype=torch.float64)
    target = halved_target(ask, teacher, x, t, end)
    middle = (t + end) / 2
    twice = ddim_step(teacher, ask(x, t), x, t, middle)
    twice = ddim_step(teacher, ask(twice, middle), twice, middle, end)
    torch.testing.assert_close(ddim_step(parameterization, target, x, t, end), twice, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(target[1], twice[1], atol=1e-12, rtol=1e-12)


def test_gaussian_data_from_8_steps_to_1():
    """N(0, s^2): every student is a number per time, found in closed form; the last equals the first's 8 steps."""
    flow, s2 = Parameterization(prediction="x0"), 0.25

    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gains = nn.ParameterDict()

        def forward(self, x, timestep):
            out = []
            for row, t in zip(x, timestep / 1000, strict=True):
                key = f"{float(t):.4f}".replace(".", "_")
                alpha, sigma = 1 - t, t
                ideal = alpha * s2 / (alpha**2 * s2 + sigma**2)
                out.append(row * self.gains.get(key, ideal))
            return torch.stack(out)

    visited = []

    def train(student, teacher, steps):
        visited.append(steps)
        for index in range(steps, 0, -1):
            t, end = (torch.tensor([value / steps], dtype=torch.float64) for value in (index, index - 1))
            x = torch.ones(1, 1, dtype=torch.float64)
            target = halved_target(teacher, flow, x, t, end)
            student.gains[f"{float(t):.4f}".replace(".", "_")] = nn.Parameter(target[0].detach())

    def roll(network, steps):
        times = [1 - i / steps for i in range(steps + 1)]
        with torch.no_grad():
            return ddim(network, torch.ones(1, 1, dtype=torch.float64), flow, times)

    first = Gain()
    students = halve(first, train, 8)
    assert visited == list(students) == [4, 2, 1]
    for steps, student in students.items():
        torch.testing.assert_close(roll(student, steps), roll(first, 8), atol=1e-10, rtol=1e-10)
    assert not first.gains
    with pytest.raises(PolyditError, match="cannot be halved"):
        halve(first, train, 12, 5)


def test_the_stochastic_sampler_keeps_the_law_of_the_data():
    """A student whose double steps are exact for N(0, s^2): noise is forgotten and drawn anew, the variance stays."""
    flow, s2, steps = Parameterization(prediction="x0"), 0.25, 4
    times = [1 - i / steps for i in range(steps + 1)]
    asked = []

    def spread(t):
        return ((1 - t) ** 2 * s2 + t**2) ** 0.5

    def student(x, timestep):
        t = float(timestep[0]) / 1000
        end = max(t - 2 / steps, 0.0)
        asked.append((round(t, 3), float(x.std())))
        lands = x * spread(end) / spread(t)
        return (lands - end / t * x) / ((1 - end) - end / t * (1 - t))

    def run(seed):
        return stochastic_ddim(student, noise, flow, times, torch.Generator().manual_seed(seed))

    noise = torch.randn(40_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    made = run(0)
    assert [t for t, _ in asked] == times[:-1]
    for t, found in asked:
        assert found == pytest.approx(spread(t), rel=0.02)
    assert float(made.std()) == pytest.approx(s2**0.5, rel=0.02)
    assert made.equal(run(0))

    def tie(a, b):
        return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])

    assert tie(made, run(1)) < 0.6  # seeds tell samples of one start apart
    assert tie(noise, ddim(student, noise, flow, times)) > 0.999


# -- classifier guidance ---------------------------------------------------------------------------------------


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 5)).double()


def test_smooth_classifier(classifier):
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    sharp = smooth(classifier, 1e3)
    assert (sharp(x) - classifier(x)).abs().max() < 1e-3
    assert isinstance(classifier[2], nn.ReLU)
    assert isinstance(sharp[2], nn.Softplus)
    assert not any(p.requires_grad for p in sharp.parameters())


def test_class_gradient(classifier):
    smoothed = smooth(classifier, 3.0)
    x, y = torch.randn(4, 3, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 4, 2])

    def by_hand(score):
        at = x.clone().requires_grad_()
        return torch.autograd.grad(score(smoothed(at)).sum(), at)[0]

    chosen = y[:, None]
    bare = by_hand(lambda f: 2 * f.gather(1, chosen))
    torch.testing.assert_close(class_gradient(smoothed, x, y, 2.0, 0.0), bare)
    with torch.inference_mode():
        torch.testing.assert_close(class_gradient(smoothed, x * 1, y, 2.0, 0.0), bare)
    proper = by_hand(lambda f: F.log_softmax(f, 1).gather(1, chosen))
    torch.testing.assert_close(class_gradient(smoothed, x, y, 1.0, 1.0), proper)
    with torch.no_grad():  # as samplers run
        gradient = class_gradient(smoothed, x, y)
        direction = torch.randn_like(x)

        def score(at):
            f = smoothed(at)
            return (f.gather(1, chosen)[:, 0] - torch.logsumexp(0.5 * f, 1)).sum()

        numeric = (score(x + 1e-6 * direction) - score(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), numeric, atol=1e-6, rtol=1e-5)
    huge = nn.Sequential(nn.Flatten(), nn.Linear(48, 5).double())
    huge[1].weight.data.mul_(1e5)
    assert torch.isfinite(class_gradient(huge, x, y)).all()


def test_shifts():
    g, x = torch.randn(2, 3, 4, 4), 5 * torch.randn(2, 3, 4, 4)
    shift = state_shift(g, x, 0.01)
    rms = [t.flatten(1).square().mean(1).sqrt() for t in (shift, x)]
    torch.testing.assert_close(rms[0], 0.01 * rms[1])
    one, largest = torch.tensor(1.0), torch.tensor(4.0)
    torch.testing.assert_close(mean_shift(g, one, largest, 5, 10, 1.0, 0.3), (1 + 0.3 * 4) * g)
    for end in (0, 10):
        torch.testing.assert_close(mean_shift(g, one, largest, end, 10, 2.0, 0.3), 2 * g)
    assert weight_of_step(0, 18, 0.004, 0.3) == pytest.approx(0.004)
    assert weight_of_step(18, 18, 0.004, 0.3) == pytest.approx(0.004 / 19)


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "x0"])
def test_guidance_reaches_the_class(classifier, prediction):
    """Unguided samples fall anywhere; guided ones into the class that was asked for."""
    parameterization = Parameterization(VPPath() if prediction == "epsilon" else None, prediction)
    noise = torch.randn(16, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % 5
    times = [0.98 * (10 - i) / 10 for i in range(11)]
    centre = torch.zeros(1, dtype=torch.float64)

    def denoise(x, timestep):
        t = parameterization.time.project_time(timestep)
        alpha, sigma = (
            value.view(-1, 1, 1, 1)
            for value in (parameterization.path.alpha(t), parameterization.path.sigma(t))
        )
        x0 = x * alpha / (alpha**2 + sigma**2) + centre  # data of unit variance
        return parameterization.path.convert(x0, x, t, "x0", prediction)

    def accuracy(guidance):
        with torch.no_grad():
            wrapped = guidance.wrap(denoise, labels)
            samples = ddim(wrapped, noise, parameterization, times)
        return samples, float((classifier(samples).argmax(1) == labels).double().mean())

    smoothed = smooth(classifier, 5.0)
    plain, before = accuracy(ClassifierGuidance(smoothed, parameterization, weight=0.0))
    with torch.no_grad():
        assert torch.equal(plain, ddim(denoise, noise, parameterization, times))
    # Relative to the clean data as predicted, which the variance-preserving path makes small at first.
    weight = 1.0 if prediction == "epsilon" else 0.3
    _, after = accuracy(ClassifierGuidance(smoothed, parameterization, weight))
    assert before < 0.5
    assert after > 0.9
    with pytest.raises(PolyditError, match="use a sampler of the project"):
        ClassifierGuidance(smoothed, parameterization).wrap(denoise, labels)(noise, torch.full((16,), 500.0))
