"""DiT-3D as a task: what is trained, what is refused, and what the pipeline makes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import polydit
from polydit.core.adapters import LoraOptions
from polydit.core.backbones import DiT, save_official
from polydit.core.backbones.dit_3d import DiT3D
from polydit.core.diffusion import DiscretePath, Objective, make_scheduler
from polydit.core.errors import PolyditError
from polydit.core.metrics.point_sets import distance_matrix, minimum_matching_distance
from polydit.tasks.shape_3d.cloud_formulation import CloudFormulation
from polydit.tasks.shape_3d.cloud_model import PointClouds

from .conftest import CLOUD, scattered

FORM = CloudFormulation(categories=["chair", "table"], points=64)


def batch(count=4, points=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "points": torch.randn(count, 3, points, generator=generator),
        "label": torch.arange(count) % 2,
    }


def test_clouds_are_normalised_and_restored():
    form = CloudFormulation(mean=[1.0, 2.0, 3.0], std=0.5)
    points = torch.randn(2, 3, 10)
    normal = form.normalise(points)
    torch.testing.assert_close(normal[:, 1], (points[:, 1] - 2) / 0.5)
    torch.testing.assert_close(form.restore(normal), points)
    with pytest.raises(PolyditError, match="once"):
        CloudFormulation(categories=["a", "a"])
    with pytest.raises(PolyditError, match="std"):
        CloudFormulation(std=0.0)


def test_the_module_predicts_noise_on_the_published_steps():
    module = PointClouds(DiT3D(**CLOUD), formulation=FORM)
    assert isinstance(module.objective.path, DiscretePath)
    assert module.objective.prediction == "epsilon"
    terms, output = module.losses(batch())
    # A fresh network predicts zero, so the loss is the noise's mean square.
    assert float(terms["objective"].detach()) == pytest.approx(1, abs=0.25)
    assert output.prediction.shape == (4, 3, 32)
    assert module.sampler == "ddpm"


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(PolyditError, match="need a DiT3D"):
        PointClouds(DiT(input_size=8, hidden_size=16, depth=1, num_heads=2), formulation=FORM)
    with pytest.raises(PolyditError, match="num_classes 2: there are 1 categories"):
        PointClouds(DiT3D(**CLOUD))
    with pytest.raises(PolyditError, match="needs trained weights"):
        PointClouds(DiT3D(**CLOUD), formulation=FORM, tune="difffit").setup("fit")
    with pytest.raises(PolyditError, match="no such file"):
        PointClouds(DiT3D(**CLOUD), formulation=FORM, blocks_from=str(tmp_path / "gone.safetensors"))


def test_data_that_does_not_fit_the_formulation_is_refused():
    class Data:
        categories = ["chair", "table"]

        def statistics(self):
            return [0.0, 0.0, 0.0], 0.3

    class Trainer:
        datamodule = Data()

    module = PointClouds(DiT3D(**CLOUD), formulation=FORM)
    module._trainer = Trainer()
    with pytest.raises(
        PolyditError, match=r"mean \[0.000, 0.000, 0.000\] and standard deviation 0.300; set mean and std"
    ):
        module.setup("fit")
    Data.categories = ["table", "chair"]
    with pytest.raises(PolyditError, match="make them equal"):
        module.setup("fit")


@pytest.fixture
def flat_weights(tmp_path):
    """A file of a DiT for pictures with the shape of the tiny model."""
    flat = scattered(DiT(input_size=8, patch_size=2, hidden_size=24, depth=2, num_heads=2, num_classes=3), 5)
    save_file(
        {k: v.contiguous() for k, v in save_official("dit", flat).items()}, tmp_path / "flat.safetensors"
    )
    return flat, str(tmp_path / "flat.safetensors")


def test_blocks_of_a_model_of_pictures_are_a_start(flat_weights, tmp_path):
    flat, file = flat_weights
    module = PointClouds(DiT3D(**CLOUD), formulation=FORM, blocks_from=file)
    own = module.backbone.state_dict()
    assert all(torch.equal(own[n], v) for n, v in flat.state_dict().items() if n.startswith("blocks."))
    with pytest.raises(PolyditError, match=r"blocks_from .* same size"):
        PointClouds(DiT3D(**{**CLOUD, "depth": 3}), formulation=FORM, blocks_from=file)


def steps(module, count, lr, data=None):
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr)
    torch.manual_seed(1)
    history = []
    for number in range(count):
        terms, _ = module.losses(data(number) if data else batch(seed=number))
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def test_difffit_moves_its_share_only_and_the_pipeline_has_it_merged(flat_weights):
    _, file = flat_weights
    module = PointClouds(scattered(DiT3D(**CLOUD)), formulation=FORM, blocks_from=file, tune="difffit")
    before = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
    steps(module, 3, 0.05)
    moved = {name for name, p in module.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.endswith(".bias") or name == "label_embed.table.weight" for name in moved)
    assert any((scale != 1).any() for scale in module.difffit.scales.values())
    pipe = module.build_pipeline()
    data = batch()
    with torch.no_grad():
        own = module.backbone.eval()(data["points"], torch.tensor([5.0] * 4), data["label"]).sample
        merged = pipe.transformer.eval()(data["points"], torch.tensor([5.0] * 4), data["label"]).sample
    torch.testing.assert_close(merged, own, atol=1e-4, rtol=1e-4)
    assert module.saved_names() >= {f"difffit.scales.{key}" for key in module.difffit.scales}


def test_lora_trains_and_the_base_stays(tmp_path):
    base = scattered(DiT3D(**CLOUD))
    base.save_pretrained(tmp_path / "base")
    module = PointClouds(
        DiT3D(**CLOUD), formulation=FORM, adapter=LoraOptions(rank=2), init_weights=str(tmp_path / "base")
    )
    module.prepare()
    trained = [name for name, p in module.backbone.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    steps(module, 2, 0.01)


def ellipsoids(number, count=16, points=64):
    """Surfaces of ellipsoids, flat ones of class 0 and tall ones of class 1."""
    generator = torch.Generator().manual_seed(number)
    places = nn.functional.normalize(torch.randn(count, 3, points, generator=generator), dim=1)
    label = torch.arange(count) % 2
    radii = torch.rand(count, 3, 1, generator=generator) * 0.3 + 0.9
    radii[:, 1, 0] *= torch.where(label == 0, 0.3, 1.7)
    return {"points": places * radii, "label": label}


def test_it_learns_shapes_and_their_category():
    """A minute of the method's sheet in a few seconds: below the loss of noise, and nearer to shapes than noise is."""
    torch.manual_seed(0)
    form = CloudFormulation(categories=["flat", "tall"], points=64, std=1.0, steps=12)
    backbone = DiT3D(
        input_size=8, patch_size=2, hidden_size=48, depth=2, num_heads=2, num_classes=2, window_size=2,
        norm="rms", qk_norm="rms", gate_init=0.5, class_dropout_prob=0.1,
    )  # fmt: skip
    module = PointClouds(backbone, Objective(), form)
    history = steps(module, 120, 4e-3, ellipsoids)
    assert np.mean(history[-20:]) < 0.85 * np.mean(history[:5])
    pipe = module.eval().build_pipeline()
    generator = torch.Generator().manual_seed(0)
    made = {name: pipe(name, num=8, generator=generator).points for name in form.categories}
    true = ellipsoids(999, 32)
    clouds = [cloud.T.numpy() for cloud in true["points"]]
    own = [clouds[i] for i in range(32) if true["label"][i] == 1]
    noise = list(np.random.default_rng(0).normal(size=(8, 64, 3)))
    tall, flat, drawn = (
        minimum_matching_distance(distance_matrix(own, some)) for some in (made["tall"], made["flat"], noise)
    )
    assert tall < 0.8 * drawn
    assert tall < flat  # the label says which


# -- the pipeline ----------------------------------------------------------------------------------------------


def test_a_seed_means_the_same_and_batches_do_not_matter(cloud_pipe):
    made = [
        cloud_pipe("chair", num=3, batch_size=size, generator=torch.Generator().manual_seed(7)).points
        for size in (1, 3)
    ]
    for one, other in zip(*made, strict=True):
        assert one.shape == (64, 3)
        np.testing.assert_allclose(one, other, atol=1e-4)
    other = cloud_pipe("table", num=1, generator=torch.Generator().manual_seed(7)).points[0]
    assert abs(other - made[0][0]).max() > 1e-3


def test_number_of_points_guidance_and_trajectory(cloud_pipe):
    def make(**options):
        return cloud_pipe("chair", generator=torch.Generator().manual_seed(1), **options)

    assert make(num_points=100).points[0].shape == (100, 3)
    plain, guided = make(guidance_scale=1.0).points[0], make(guidance_scale=4.0).points[0]
    assert abs(plain - guided).max() > 1e-3
    seen = []
    made = make(trajectory=True, steps=4, progress=lambda done, total: seen.append((done, total)))
    assert made.trajectory[0].shape == (4, 64, 3)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_allclose(made.trajectory[0][-1], made.points[0], atol=1e-3)
    noise = torch.zeros(1, 3, 64)
    assert make(noise=noise).points[0].std(0).max() < 1  # the noise that was given, not drawn


def test_what_the_pipeline_refuses(cloud_pipe):
    with pytest.raises(
        PolyditError, match=r"--category chiar: .* \(did you mean chair\?\); they know chair, table"
    ):
        cloud_pipe("chiar")
    with pytest.raises(PolyditError, match="--num 0"):
        cloud_pipe("chair", num=0)
    with pytest.raises(PolyditError, match="--points 3"):
        cloud_pipe("chair", num_points=3)
    cloud_pipe.transformer.register_to_config(class_dropout_prob=0.0)
    with pytest.raises(PolyditError, match="without an empty category"):
        cloud_pipe("chair", guidance_scale=2.0)
    with torch.no_grad():
        cloud_pipe.transformer.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(PolyditError, match="not finite"):
        cloud_pipe("chair", guidance_scale=1.0)


def test_a_saved_pipeline_comes_back(cloud_pipe, tmp_path):
    cloud_pipe.save_pretrained(tmp_path)
    again = polydit.load(tmp_path, task="shape-3d")
    assert again.categories == ["chair", "table"]
    one, other = (
        pipe("table", generator=torch.Generator().manual_seed(3)).points[0] for pipe in (cloud_pipe, again)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_noise_schedule_of_planes():
    path = DiscretePath("warm", 1e-5, 0.008)
    betas = path.betas
    torch.testing.assert_close(betas[:100], torch.linspace(1e-5, 0.008, 100, dtype=torch.float64))
    assert (betas[100:] == 0.008).all()
    scheduler = make_scheduler("ddpm", Objective(path, "epsilon"))
    torch.testing.assert_close(scheduler.betas.double(), betas, atol=1e-8, rtol=1e-5)
    assert copy.deepcopy(path) == path
