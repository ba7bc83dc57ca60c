"""Learned routers: reference vectors of Learning-to-Cache, HarmoniCa's training, what hard and soft have in common."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from polydit.core.acceleration import FORA, Routed, Router, RouterTraining, TaylorSeer, accelerate
from polydit.core.acceleration.routers import SoftRouting
from polydit.core.backbones import load_official
from polydit.core.diffusion import Parameterization, TimeConvention, ddim, index_times, preset, respace
from polydit.core.errors import PolyditError

STEPS = 6


@pytest.fixture(scope="module")
def reference():
    from pathlib import Path

    folder = Path(__file__).parents[2] / "data" / "golden" / "learning_to_cache"
    meta = json.loads((folder / "meta.json").read_text())
    weights, inputs, outputs = (
        load_file(folder / f"{part}.safetensors") for part in ("weights", "inputs", "outputs")
    )
    backbone = {key: value.float() for key, value in weights.items() if "router" not in key}
    model = load_official("dit", backbone, **meta["config"])
    return (
        meta,
        {key: value.float() for key, value in weights.items() if "router" in key},
        inputs,
        outputs,
        model,
    )


@pytest.fixture(scope="module")
def released_router(reference, tmp_path_factory):
    """The released layout, as a file."""
    _, scores, _, _, model = reference
    path = tmp_path_factory.mktemp("router") / "router.safetensors"
    save_file(scores, path)
    return Router.load(path, Router.of(model, 1).sites)


@pytest.mark.parametrize(("kind", "straight_through"), [("soft", False), ("ste", True)])
def test_learning_to_cache_losses_and_gradients(reference, released_router, kind, straight_through):
    meta, _, inputs, outputs, model = reference
    steps = meta["num_sampling_steps"]
    labels = torch.where(inputs["label_drop"].bool(), torch.tensor(10), inputs["y"])
    training = RouterTraining(
        model,
        released_router,
        lambda x, t: model(x, t, labels).sample,
        preset("dit"),
        index_times(respace(steps)),
        threshold=meta["ste_threshold"],
        penalty=meta["l1_weight"],
        straight_through=straight_through,
    )
    released_router.zero_grad()
    full = steps - 1 - meta["train_step_index"]
    term = training.pair(inputs["x0"], inputs["noise"], full)
    term.loss.backward()
    per_sample = (term.student - term.teacher).square().flatten(1).mean(1)
    tolerance = {"rtol": 1e-3, "atol": 1e-8}
    torch.testing.assert_close(per_sample, outputs[f"train.{kind}.mse"], **tolerance)
    torch.testing.assert_close(term.score.reshape(1), outputs[f"train.{kind}.l1"], **tolerance)
    torch.testing.assert_close(term.loss.reshape(1), outputs[f"train.{kind}.loss"], **tolerance)
    gradient = released_router.logits.grad
    torch.testing.assert_close(gradient[full + 1], outputs[f"train.{kind}.grad_router"], **tolerance)
    assert gradient[: full + 1].abs().sum() == gradient[full + 2 :].abs().sum() == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "pos_embed")


def test_learning_to_cache_sampling(reference, released_router):
    meta, _, inputs, outputs, model = reference
    labels = torch.cat([inputs["y_infer"], torch.tensor([10])])

    def denoise(x, t):
        out = model(torch.cat([x[:1], x[:1]]), t, labels).sample
        conditional, null = out[:, :3].chunk(2)
        guided = null + meta["cfg_scale"] * (conditional - null)
        return torch.cat([torch.cat([guided, guided]), out[:, 3:]], dim=1)

    states = []
    steps = meta["num_sampling_steps"]
    policy = Routed(released_router, meta["inference_threshold"], pairs=True, name="L2C")
    with accelerate(model, policy) as handle, torch.no_grad():
        final = ddim(
            denoise,
            inputs["z"].repeat(2, 1, 1, 1),
            preset("dit"),
            index_times(respace(steps)),
            visit=lambda step, x: states.append(x),
        )
        table = torch.tensor(handle.report().plan.computed).flip(0)
    assert torch.equal(table, outputs["infer.computed_table"].bool())
    torch.testing.assert_close(states[1], outputs["infer.after_step1"], atol=3e-4, rtol=1e-5)
    torch.testing.assert_close(final, outputs["infer.final"], atol=5e-3, rtol=1e-5)


@pytest.fixture
def setting(make_dit):
    """A model, its denoiser, and what a router's training takes."""
    model = make_dit(depth=2)
    labels = torch.tensor([0, 3])
    flow = Parameterization(time=TimeConvention(scale=10.0))
    times = [1 - i / STEPS for i in range(STEPS + 1)]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return model, lambda x, t: model(x, t, labels).sample, flow, times, noise


def roll(setting):
    _, denoise, flow, times, noise = setting
    with torch.no_grad():
        return ddim(denoise, noise, flow, times)


def router_of(model, rows):
    router = Router.of(model, STEPS)
    with torch.no_grad():
        router.logits.copy_(rows)
    return router


def test_all_ones_and_all_zeros(setting):
    model = setting[0]
    plain = roll(setting)
    with accelerate(model, Routed(router_of(model, torch.full((STEPS, 4), 5.0)))):
        assert torch.equal(roll(setting), plain)
    zeros = torch.full((STEPS, 4), -5.0)
    with accelerate(model, Routed(router_of(model, zeros))) as handle:
        forever = roll(setting)
        assert handle.report().plan.full_steps == [0]
    with accelerate(model, FORA(STEPS)):  # what the first step gave, for ever
        assert torch.equal(roll(setting), forever)


def test_soft_at_0_and_1_is_hard(setting):
    model, denoise, flow, times, noise = setting
    rows = torch.where(torch.rand(STEPS, 4, generator=torch.Generator().manual_seed(1)) > 0.5, 100.0, -100.0)
    rows[0] = 100.0
    router = router_of(model, rows)
    with accelerate(model, Routed(router, 0.5)) as handle:
        hard = roll(setting)
        assert 0.2 < handle.report().plan.reused < 0.8
    soft = RouterTraining(model, router, denoise, flow, times, threshold=0.5)
    terms = list(soft.trajectory(noise))
    final = soft._next(terms[-1].student, terms[-1].state, STEPS - 1).detach()
    torch.testing.assert_close(final, hard, atol=1e-6, rtol=1e-5)


def test_image_errors(setting):
    model, denoise, flow, times, noise = setting
    router = Router.of(model, STEPS, torch.Generator().manual_seed(0))
    training = RouterTraining(model, router, denoise, flow, times)
    for proxy in ("leave_one_out", "cumulative"):
        errors = training.image_errors(noise, proxy)
        assert errors.shape == (STEPS,)
        assert errors[0] == 0
        assert (errors[1:] > 0).all()
        with torch.no_grad():
            router.logits[3] = 100.0  # a step that computes everything does no harm
        assert training.image_errors(noise, proxy)[3] < 1e-12
        with torch.no_grad():
            router.logits[3] = -1.0


def test_a_trained_router_beats_a_uniform_one(setting, tmp_path):
    """With less computing than whole steps get, nearer to the uncached sample; the network itself does not move."""
    model, denoise, flow, times, _ = setting
    # Blocks of unlike weight: what the second one adds hardly matters, so it need not be computed.
    for block, scale in zip(model.blocks, (3.0, 0.05), strict=True):
        block.modulation.weight.data.mul_(scale)
        block.modulation.bias.data.mul_(scale)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    router = Router.of(model, STEPS, generator)
    training = RouterTraining(model, router, denoise, flow, times, penalty=5e-3)
    optimizer = torch.optim.AdamW(router.parameters(), lr=0.3, weight_decay=0)
    for _ in range(12):
        noise = torch.randn(2, 4, 8, 8, generator=generator)
        for term in training.trajectory(noise):
            optimizer.zero_grad()
            term.loss.backward()
            optimizer.step()
            router.clamp_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    router.save(tmp_path / "router.safetensors")
    loaded = Router.load(tmp_path / "router.safetensors")
    assert torch.equal(loaded.logits, router.logits)
    assert loaded.sites == router.sites
    plain = roll(setting)
    with accelerate(model, Routed(loaded, 0.5)) as handle:
        learned, computed = (roll(setting) - plain).norm(), handle.report().computed
    with accelerate(model, TaylorSeer(order=0, full_steps=[0, 1, 3, 5])) as handle:
        uniform, limit = (roll(setting) - plain).norm(), handle.report().computed
    assert computed <= limit
    assert learned < 0.2 * uniform


def test_the_price_of_computing(setting):
    model, denoise, flow, times, noise = setting
    shares = []
    for penalty in (0.0, 10.0):
        router = Router.of(model, STEPS, torch.Generator().manual_seed(0))
        training = RouterTraining(model, router, denoise, flow, times, penalty=penalty)
        optimizer = torch.optim.AdamW(router.parameters(), lr=1.0, weight_decay=0)
        for _ in range(8):
            for term in training.trajectory(noise):
                optimizer.zero_grad()
                term.loss.backward()
                optimizer.step()
                router.clamp_()
        with accelerate(model, Routed(router)) as handle:
            roll(setting)
            shares.append(handle.report().plan.reused)
    assert shares[0] < 0.2
    assert shares[1] == pytest.approx((STEPS - 1) / STEPS)


def test_what_is_refused(setting, make_dit, tmp_path):
    model, denoise, flow, times, _ = setting
    router = Router.of(model, STEPS)
    with (
        accelerate(model, Routed(router)),
        pytest.raises(PolyditError, match="learned for 6 steps, the run has 5"),
    ):
        ddim(denoise, torch.zeros(2, 4, 8, 8), flow, times[:STEPS])
    with pytest.raises(PolyditError, match="learned on another model"):
        accelerate(make_dit(depth=3), Routed(router))
    with pytest.raises(PolyditError, match="scores other sites"):
        accelerate(make_dit(depth=3), SoftRouting(router))
    with pytest.raises(PolyditError, match="5 steps of times"):
        RouterTraining(model, router, denoise, flow, times[:STEPS])
    with pytest.raises(PolyditError, match="in eval mode"):
        RouterTraining(model.train(), router, denoise, flow, times)
    with pytest.raises(PolyditError, match="cannot be read as safetensors"):
        Router.load(tmp_path / "gone.safetensors")
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(PolyditError, match="no router"):
        Router.load(tmp_path / "other.safetensors")
