"""Distilled point clouds: what stage 1 and 2 hold the student to, how it is sampled, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import polydit
from polydit.core.acceleration.guided_distillation import guidance_features, halved_target
from polydit.core.backbones.dit_3d import DiT3D
from polydit.core.diffusion import DiscretePath, Objective, TimeConvention, ddim, make_scheduler
from polydit.core.errors import PolyditError
from polydit.tasks.shape_3d.cloud_distillation import DistilledPointClouds
from polydit.tasks.shape_3d.cloud_formulation import CloudFormulation
from polydit.tasks.shape_3d.cloud_pipeline import PointCloudPipeline

from .conftest import CLOUD, scattered

STUDENT = {**CLOUD, "pooled_projection_dim": 16}
FORM = {
    "categories": ["chair", "table"],
    "points": 64,
    "mean": [0.0, 0.1, 0.0],
    "std": 0.4,
    "guidance_scale": 2.0,
}
READS = {**FORM, "guidance_range": [1.0, 5.0]}


def flow():
    # A slow clock: random weights on sines of 0 .. 1000 would jump from time to time.
    return Objective(time=TimeConvention(scale=10.0))


def folder_of(transformer, formulation, path):
    pipe = PointCloudPipeline(transformer, make_scheduler("euler", flow()), formulation, flow().config())
    pipe.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A guided pair."""
    return folder_of(scattered(DiT3D(**CLOUD)), {**FORM, "steps": 50}, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A network that reads guidance and samples in 4 steps."""
    return folder_of(scattered(DiT3D(**STUDENT)), {**READS, "steps": 4}, tmp_path_factory.mktemp("reading"))


def student(teacher, kind="guided", form=READS, backbone=None, **options):
    torch.manual_seed(3)
    given = {"objective": flow(), "steps": 2 if kind == "halved" else 4, "ema": None, **options}
    return DistilledPointClouds(
        DiT3D(**STUDENT) if backbone is None else backbone, teacher, kind, formulation=CloudFormulation(**form), **given
    )  # fmt: skip


def batch(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"points": torch.randn(count, 3, 32, generator=generator), "label": torch.arange(count) % 2}


def counted(pipe):
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def make(pipe, **options):
    return pipe("table", num=2, generator=torch.Generator().manual_seed(5), **options).points


def test_a_fresh_student_is_the_conditional_teacher_in_one_call_a_step(plain):
    module = student(plain)
    module.setup("fit")
    taught, pipe = polydit.load(plain), module.eval().build_pipeline()
    calls = counted(pipe), counted(taught)
    np.testing.assert_allclose(
        make(pipe, guidance_scale=3.0), make(taught, steps=4, guidance_scale=1.0), atol=1e-5
    )
    assert [len(one) for one in calls] == [4, 4]
    make(taught, steps=4, guidance_scale=3.0)
    assert len(calls[1]) == 12
    assert module.taught.transformer.training is False
    assert not any("taught" in name for name in module.saved_names())


def test_guidance_1_has_nothing_to_learn_and_more_has(plain):
    module = student(plain)
    module.setup("fit")
    found = {}
    for w in (0.0, 3.0):
        module.draw_guidance = lambda batch, first=None, w=w: torch.full((batch,), w)
        torch.manual_seed(0)
        with torch.no_grad():
            found[w] = float(
                module.train().losses(batch())[0]["guided"]
            )  # in training no label may be dropped
    assert found[0.0] < 1e-9
    assert found[3.0] > 1e-5


def test_held_out_guidance_belongs_to_the_sample(plain):
    module = student(plain)
    together = module.draw_guidance(6, 10)
    torch.testing.assert_close(together[2:], module.draw_guidance(4, 12))
    assert ((together >= 0) & (together <= 4)).all()
    assert abs(float(module.draw_guidance(500, 0).mean()) - 2) < 0.05


def test_one_step_of_a_halved_student_is_held_to_two_of_its_teacher(reading):
    """A student that answers the target lands, after all its steps, where the teacher's pipeline does."""
    module = student(reading, "halved")
    module.setup("fit")
    network, guidance = module.taught.transformer, torch.linspace(0.0, 4.0, 6)
    module.draw_guidance = lambda *_: guidance
    terms, output = module.train().losses(batch())
    read = guidance_features(guidance, 16)
    target = halved_target(
        lambda x_t, timestep: network(x_t, timestep, batch()["label"], pooled_projections=read).sample,
        flow(), output.x_t, output.t, output.t - 0.5,
    )  # fmt: skip
    torch.testing.assert_close(
        terms["halved"], (output.x0 - target).square().mean()
    )  # at t >= 0.5 the weight is 1
    assert set(output.t.tolist()) <= {0.5, 1.0}
    terms["halved"].backward()
    assert any(
        p.grad is not None and p.grad.abs().max() > 0 for p in module.backbone.pooled_embed.parameters()
    )

    network, objective = (
        module.taught.transformer,
        Objective(prediction="x0", time=TimeConvention(scale=10.0)),
    )
    labels, features = torch.ones(2, dtype=torch.long), guidance_features(torch.full((2,), 1.0), 16)

    def teacher(x_t, timestep):
        return network(x_t, timestep, labels, pooled_projections=features).sample

    def ideal(x_t, timestep):
        t = timestep / 10
        return halved_target(teacher, flow(), x_t, t, t - 0.5)

    noise = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        landed = module.formulation.restore(ddim(ideal, noise, objective, [1.0, 0.5, 0.0]))
    pipe = polydit.load(reading)
    np.testing.assert_allclose(
        make(pipe, noise=noise, guidance_scale=2.0), landed.transpose(1, 2).numpy(), atol=1e-4
    )
    assert (
        np.abs(np.stack(make(pipe, noise=noise)) - make(pipe, noise=noise, guidance_scale=4.0)).max() > 1e-3
    )


@pytest.mark.parametrize("kind", ["guided", "halved"])
def test_a_student_learns_its_teacher(plain, reading, kind):
    """A few updates bring it nearer to its teacher on held-out clouds, and stage 1 also to the guided samples."""
    module = student(plain if kind == "guided" else reading, kind)
    module.setup("fit")
    if kind == "halved":  # two steps of random weights are nearly one: start further away
        with torch.no_grad():
            module.backbone.final_layer.linear.weight.mul_(0.5)

    def distances():
        torch.manual_seed(0)
        with torch.no_grad():
            apart = [float(module.eval().losses(batch(32, 99), first=0)[0][kind])]
        if kind == "guided":
            samples = (
                make(pipe, steps=4, guidance_scale=4.0) for pipe in (module.build_pipeline(), module.taught)
            )
            apart.append(float(np.square(np.subtract(*samples)).mean()))
        return apart

    before = distances()
    optimizer = torch.optim.Adam(module.backbone.parameters(), lr=1e-3)
    for number in range(25):
        torch.manual_seed(number)
        loss = module.train().losses(batch(12, number))[0][kind]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for at_first, now in zip(before, distances(), strict=True):
        assert now < 0.7 * at_first


def test_a_saved_student_comes_back_with_its_steps(reading, tmp_path):
    module = student(reading, "halved")
    module.setup("fit")
    pipe = module.eval().build_pipeline()
    pipe.save_pretrained(tmp_path)
    again = polydit.load(tmp_path, task="shape-3d")
    assert (again.formulation.steps, again.formulation.only_steps) == (2, 2)
    calls = counted(again)
    np.testing.assert_allclose(make(again), make(pipe), atol=1e-6)
    assert len(calls) == 2
    with pytest.raises(PolyditError, match=r"^--steps 5: these weights were distilled to 2; leave it out$"):
        make(again, steps=5)
    with pytest.raises(PolyditError, match=r"^--guidance-scale 9: .* for 1 to 5; stay within$"):
        make(again, guidance_scale=9.0)


def test_settings_that_contradict_each_other_are_refused():
    epsilon = Objective(DiscretePath(), "epsilon", time=TimeConvention(1000, discrete=True))
    v = Objective(DiscretePath(), "v", time=TimeConvention(1000, discrete=True))
    for options, message in (
        ({"kind": "both"}, "kind: 'both' is unknown; choose from guided, halved"),
        ({"steps": 0}, "steps 0"),
        ({"form": FORM}, "guidance_range: is missing"),
        ({"backbone": DiT3D(**CLOUD)}, "pooled_projection_dim: is missing"),
        ({"sampler": "heun"}, "sampler heun: .* choose euler or ddim"),
        ({"tune": "difffit"}, "tune difffit: a student is trained as a whole"),
        ({"kind": "halved", "objective": epsilon}, "prediction epsilon: from noise alone"),
        ({"kind": "halved", "objective": v, "steps": 3}, "steps 3: the teacher's 6 steps"),
    ):
        with pytest.raises(PolyditError, match=message):
            student(None, **options)
    assert student(None, objective=v).sampler == "ddim"
    with pytest.raises(PolyditError, match=r"guidance_scale 2: .* for 3 to 5"):
        CloudFormulation(**{**READS, "guidance_range": [3.0, 5.0]})
    with pytest.raises(PolyditError, match=r"guidance_range \[5.0, 1.0\]: give the least"):
        CloudFormulation(**{**READS, "guidance_range": [5.0, 1.0]})
    with pytest.raises(PolyditError, match="this network reads no guidance"):
        PointCloudPipeline(DiT3D(**CLOUD), make_scheduler("euler", flow()), READS, flow().config())


def test_teachers_that_do_not_fit_are_refused(plain, reading, tmp_path):
    for made, message in (
        (student(None), "--model.teacher: name the folder"),
        (student(str(tmp_path)), "no pipeline there"),
        (student(reading), "reads guidance already; go on with --model.kind halved"),
        (student(plain, "halved"), "does not read guidance; distil it by --model.kind guided first"),
        (student(reading, "halved", steps=3), "steps 3: the teacher samples in 4 steps, .*; give 2$"),
        (student(reading, "halved", form={**READS, "guidance_range": [1.0, 3.0]}), "guidance_range .* make it equal"),
        (student(plain, form={**READS, "std": 0.5}), "formulation.std 0.5: the teacher's is 0.4; make it equal"),
        (student(plain, objective=Objective()), "--model.objective: is .* make path, prediction and time equal"),
        (student(plain, backbone=DiT3D(**{**STUDENT, "depth": 3})), "lacks .* of the student"),
    ):  # fmt: skip
        with pytest.raises(PolyditError, match=message):
            made.setup("fit")
