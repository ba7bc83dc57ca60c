"""Direct3D as a task: pictures, the autoencoder's training, the transformer's conditions, and the pipeline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import polydit
from polydit.core.autoencoders.triplane import TriplaneVAE
from polydit.core.backbones.d3d_dit import D3DDiT
from polydit.core.diffusion import DiscretePath, Objective
from polydit.core.errors import PolyditError
from polydit.core.geometry.primitives import Placed, Union, box
from polydit.core.geometry.surfaces import grid_points, query_cells, surface_of_field, surface_of_query
from polydit.tasks.shape_3d.conditions import PictureEncoder, TransformersEncoder, token_shapes
from polydit.tasks.shape_3d.pictures import object_mask, prepare_picture
from polydit.tasks.shape_3d.procedural import make_shape
from polydit.tasks.shape_3d.triplane_formulation import TriplaneFormulation
from polydit.tasks.shape_3d.triplane_model import TriplaneCodec, TriplaneShapes, open_vae
from polydit.tasks.shape_3d.triplane_pipeline import TriplanePipeline

from .conftest import DIT, ENCODER, VAE, scattered

FORM = TriplaneFormulation(categories=["chair", "table"], size=32)


def square(alpha=True, ground=(255, 255, 255)):
    """A red block of 20 x 10 pixels, off the middle of 64 x 64."""
    pixels = np.zeros((64, 64, 4 if alpha else 3), np.uint8)
    pixels[..., :3] = ground
    pixels[10:20, 30:50, :3] = (200, 30, 30)
    if alpha:
        pixels[10:20, 30:50, 3] = 255
    return pixels


# -- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [square(), square(alpha=False), square(alpha=False, ground=(40, 90, 60))])
def test_the_object_is_cut_out_centred_and_on_white(pixels):
    picture = prepare_picture(pixels, 54)
    assert picture.shape == (4, 54, 54)
    alpha = picture[3] > 0.5
    # 20 pixels of a square of 22: a margin of one on each side, twice as wide as high.
    rows, columns = alpha.any(1).nonzero().flatten(), alpha.any(0).nonzero().flatten()
    assert len(columns) == pytest.approx(54 * 20 / 22, abs=2)
    assert len(rows) == pytest.approx(54 * 10 / 22, abs=2)
    assert float(rows.float().mean()) == pytest.approx(26.5, abs=1.5)
    torch.testing.assert_close(picture[:3, 2, 27], torch.ones(3), atol=0.02, rtol=0)
    middle = torch.tensor([200, 30, 30]) / 127.5 - 1
    torch.testing.assert_close(picture[:3, 27, 27], middle, atol=0.02, rtol=0)


def test_the_place_and_size_of_the_object_do_not_matter():
    large = np.array(Image.fromarray(square()).resize((256, 256), Image.Resampling.NEAREST))
    moved = np.roll(large, 40, axis=0)
    one, other = prepare_picture(square(), 48), prepare_picture(moved, 48)
    assert (one - other).abs().mean() < 0.06


def test_pictures_without_an_object_are_refused():
    with pytest.raises(PolyditError, match=r"wall\.png: shows no object"):
        object_mask(np.full((32, 32, 3), 200, np.uint8), "wall.png")
    with pytest.raises(PolyditError, match="shows no object"):
        object_mask(np.zeros((32, 32, 4), np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    with pytest.raises(PolyditError, match=r"background is not plain.*polydit segmentation predict"):
        object_mask(noise)


def test_tokens_of_a_picture():
    encoder = scattered(PictureEncoder(**ENCODER))
    picture = torch.stack([prepare_picture(square(), 32)] * 2)
    semantic, pixel = encoder(picture)
    assert semantic.shape == (2, 17, 12)
    assert pixel.shape == (2, 64, 12)
    empty = token_shapes(encoder, 32, torch.device("cpu"))
    assert [tuple(t.shape) for t in empty] == [(1, 17, 12), (1, 64, 12)]
    assert all((t == 0).all() for t in empty)
    moved = encoder(picture.roll(6, dims=-1))[1]
    assert (moved - pixel).abs().max() > 0.003


def test_networks_of_the_user_see_the_picture_and_stay_frozen(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    shape = {
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 16,
    }
    CLIPVisionModel(CLIPVisionConfig(**shape, intermediate_size=24)).save_pretrained(tmp_path / "clip")
    Dinov2Model(Dinov2Config(**shape, mlp_ratio=2)).save_pretrained(tmp_path / "dino")
    encoder = TransformersEncoder.from_folders(str(tmp_path / "clip"), str(tmp_path / "dino"))
    assert encoder.sizes == (16, 16)
    assert not any(p.requires_grad for p in encoder.parameters())
    picture = prepare_picture(square(), 32)[None]
    semantic, pixel = encoder(picture)
    assert semantic.shape == pixel.shape == (1, 5, 12)  # four patches, and the class
    assert not torch.allclose(encoder(-picture)[0], semantic)
    with pytest.raises(PolyditError, match="no such folder"):
        TransformersEncoder.from_folders(str(tmp_path / "clip"), str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolyditError, match="no vision network"):
        TransformersEncoder.from_folders(str(tmp_path / "empty"), str(tmp_path / "dino"))


# -- training ------------------------------------------------------------------------------------------------


def solids(seed, count=4, points=128, queries=256):
    """Lamps and tables with points, and distances at queries."""
    generator = np.random.default_rng(seed)
    found = {"points": [], "normals": [], "queries": [], "distances": []}
    for number in range(count):
        shape = make_shape(("lamp", "table")[number % 2], number // 2)
        surface, normals = shape.sample(points, generator)
        near = (
            surface[generator.integers(points, size=queries // 2)]
            + generator.normal(size=(queries // 2, 3)) * 0.05
        )
        asked = np.concatenate([generator.uniform(-1, 1, (queries // 2, 3)), near])
        for name, value in zip(found, (surface, normals, asked, shape.distance(asked)), strict=True):
            found[name].append(value)
    batch = {name: torch.from_numpy(np.stack(value)).float() for name, value in found.items()}
    return {**batch, "label": torch.arange(count) % 2, "picture": torch.rand(count, 4, 32, 32)}


def test_the_autoencoder_learns_solids():
    torch.manual_seed(0)
    module = TriplaneCodec(TriplaneVAE(**VAE), band=1 / 32, kl_weight=1e-4)
    optimizer = torch.optim.Adam(module.parameters(), lr=4e-3)
    module.train()
    data = [solids(seed) for seed in range(4)]
    for number in range(100):
        terms, _ = module.losses(data[number % 4])
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        held = solids(99)
        _, logits = module.losses(held)
        inside, true = logits > 0, held["distances"] < 0
        iou = ((inside & true).sum() / (inside | true).sum()).item()
        everything = (true.sum() / true.numel()).item()  # of a network that says "inside" everywhere
    assert iou > everything + 0.15
    scale, shift = module.backbone.scaling.tolist()
    mean, _ = module.backbone.moments(held["points"], held["normals"])
    assert (scale, shift) != (1.0, 0.0)
    assert 0.3 < float(((mean - shift) * scale).std()) < 3  # latents come in the units of noise
    pipe = module.build_pipeline()
    with pytest.raises(PolyditError, match="an autoencoder alone"):
        pipe(category="chair")
    assert isinstance(pipe, TriplanePipeline)


@pytest.mark.parametrize("band", [0.0, 1 / 16, 0.2])
def test_labels_of_the_loss_fall_across_the_band(band):
    """Of a head that answers the same everywhere, against the closed form: softplus(c) - c * label."""
    vae = TriplaneVAE(**VAE).eval()
    answer = 0.7
    with torch.no_grad():
        vae.head.net[-1].weight.zero_()
        vae.head.net[-1].bias.fill_(answer)
    module = TriplaneCodec(vae, band=band, near_weight=2.0, kl_weight=0.0).eval()
    batch = solids(0, count=2)
    distances = batch["distances"].numpy()
    labels = np.clip(0.5 - distances / (2 * band), 0, 1) if band else (distances < 0).astype(float)
    losses = np.log1p(np.exp(answer)) - answer * labels
    terms, _ = module.losses(batch)
    half = distances.shape[1] // 2
    assert float(terms["objective"].detach()) == pytest.approx(losses[:, :half].mean(), rel=1e-5)
    assert float(terms["near"].detach()) == pytest.approx(2 * losses[:, half:].mean(), rel=1e-5)


def fitted_plate(plate, band, resolution):
    """Logits at the corners of a grid, of a tiny autoencoder that was trained on nothing but a plate."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    module = TriplaneCodec(TriplaneVAE(**VAE), band=band, kl_weight=0.0).eval()
    optimizer = torch.optim.Adam(module.parameters())
    count, rate = 200, 6e-3
    for number in range(count):
        surface, normals = plate.sample(128, draw)
        near = plate.sample(512, draw)[0] + draw.normal(size=(512, 3)) * 0.05
        asked = np.concatenate([draw.uniform(-1, 1, (512, 3)), near])
        values = {"points": surface, "normals": normals, "queries": asked, "distances": plate.distance(asked)}
        terms, _ = module.losses({name: torch.from_numpy(v).float()[None] for name, v in values.items()})
        optimizer.param_groups[0]["lr"] = rate * (1 - number / count)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    cloud = [torch.from_numpy(value).float()[None] for value in plate.sample(128, draw)]
    with torch.no_grad():
        planes = module.backbone.planes(module.backbone.moments(*cloud)[0])
        places = torch.from_numpy(grid_points(resolution)).float()[None]
        return module.backbone.query(planes, places)[0].numpy().reshape((resolution + 1,) * 3)


def test_training_with_a_band_keeps_a_plate_thinner_than_a_cell_and_hard_labels_lose_it():
    resolution, level = 32, float(np.log(0.3 / 0.7))
    # 0.03 thick, in the middle between corners that are 0.0625 apart.
    plate = Union([Placed(box(1.4, 0.03, 1.4), np.array([0.0, 1 / resolution, 0.0]))])
    corners = grid_points(resolution)
    assert plate.distance(corners).min() > 0.016  # no corner is inside
    on_plate = (abs(corners.reshape(*[resolution + 1] * 3, 3)[:, 0][..., [0, 2]]) < 0.65).all(-1)
    soft, hard = (fitted_plate(plate, band, resolution) for band in (2 / resolution, 0.0))
    assert (soft.max(1) > level)[on_plate].mean() > 0.95
    assert (hard.max(1) > level)[on_plate].mean() < 0.05
    mesh = surface_of_field(soft, level)
    np.testing.assert_allclose(mesh.bounds[:, 1], [-0.01, 0.07], atol=0.02)
    assert surface_of_field(hard, level).volume < 0.05 * mesh.volume


def test_the_latents_scale_is_saved_with_the_weights(tmp_path):
    vae = TriplaneVAE(**VAE)
    vae.scaling.copy_(torch.tensor([2.0, 0.25]))
    TriplanePipeline(vae=vae).save_pretrained(tmp_path)
    assert open_vae(str(tmp_path)).scaling.tolist() == [2.0, 0.25]
    assert open_vae(str(tmp_path / "vae")).scaling.tolist() == [2.0, 0.25]
    with pytest.raises(PolyditError, match="no autoencoder there"):
        open_vae(str(tmp_path / "gone"))


@pytest.fixture
def shapes(tmp_path):
    TriplanePipeline(vae=scattered(TriplaneVAE(**VAE))).save_pretrained(tmp_path / "vae")
    return TriplaneShapes(
        scattered(D3DDiT(**DIT), 1),
        vae=str(tmp_path / "vae"),
        encoder=PictureEncoder(**ENCODER),
        objective=Objective(),
        formulation=FORM,
        drop=0.2,
        by_category=0.4,
    )


def test_each_sample_is_told_a_picture_its_category_or_nothing(shapes):
    torch.manual_seed(0)
    shapes.train()
    batch = solids(0, 4)
    many = {"label": batch["label"].repeat(100), "picture": batch["picture"].repeat(100, 1, 1, 1)}
    told = shapes.condition(many)
    seen = (told["pixel_hidden_states"] != 0).flatten(1).any(1)
    assert torch.equal(seen, (told["encoder_hidden_states"] != 0).flatten(1).any(1))
    labelled = told["class_labels"] < 2
    assert not (seen & labelled).any()
    shares = [float(part.float().mean()) for part in (seen, labelled, ~seen & ~labelled)]
    np.testing.assert_allclose(shares, [0.4, 0.4, 0.2], atol=0.08)
    shapes.eval()
    told = shapes.condition(batch)
    assert (told["class_labels"] == 2).all()  # judged by the picture
    assert (told["pixel_hidden_states"] != 0).flatten(1).any(1).all()


def test_transformer_and_encoder_are_trained_and_the_autoencoder_is_not(shapes):
    terms, output = shapes.train().losses(solids(0))
    assert output.x0.shape == (4, 3, 4, 12)
    terms["objective"].backward()
    assert shapes.encoder.to_pixel.weight.grad.abs().sum() > 0
    assert shapes.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in shapes.vae.parameters())
    saved = shapes.saved_names()
    assert any(name.startswith("encoder.") for name in saved)
    assert not any("vae" in name for name in saved)


def test_settings_that_contradict_each_other_are_refused(tmp_path, shapes):
    with pytest.raises(PolyditError, match="trains a TriplaneVAE"):
        TriplaneCodec(torch.nn.Linear(2, 2))
    with pytest.raises(PolyditError, match="trains a D3DDiT"):
        TriplaneShapes(torch.nn.Linear(2, 2))
    with pytest.raises(PolyditError, match="there are 0 categories"):
        TriplaneShapes(D3DDiT(**DIT), encoder=PictureEncoder(**ENCODER))
    with pytest.raises(PolyditError, match=r"--model\.encoder: is missing"):
        TriplaneShapes(D3DDiT(**DIT), formulation=FORM)
    with pytest.raises(PolyditError, match=r"--model\.vae: name the folder"):
        _ = TriplaneShapes(D3DDiT(**DIT), encoder=PictureEncoder(**ENCODER), formulation=FORM).vae
    other = TriplaneShapes(
        D3DDiT(**{**DIT, "resolution": 8}), shapes.vae_folder, PictureEncoder(**ENCODER), formulation=FORM
    )
    with pytest.raises(PolyditError, match="planes of 8, the autoencoder for 3 and 4"):
        _ = other.vae
    assert isinstance(other.objective.path, DiscretePath)


# -- the pipeline --------------------------------------------------------------------------------------------


def latents(pipe, **options):
    return pipe(generator=torch.Generator().manual_seed(1), resolution=16, **options).latents


def test_a_picture_and_a_category_reach_the_latents(triplane_pipe):
    chair = latents(triplane_pipe, category="chair", num=2)
    assert chair.shape == (2, 3, 4, 12)
    assert not torch.allclose(chair[0], chair[1])
    one = latents(triplane_pipe, image=square())
    other = latents(triplane_pipe, image=square().transpose(1, 0, 2))
    assert (one - other).abs().max() > 1e-4
    assert (one - latents(triplane_pipe, category="table")).abs().max() > 1e-3
    unguided = latents(triplane_pipe, image=square(), guidance_scale=1.0)
    assert (one - unguided).abs().max() > 1e-3
    assert torch.equal(one, latents(triplane_pipe, image=square()))


def test_pictures_may_have_a_guidance_of_their_own(triplane_pipe):
    chair, one = (
        latents(triplane_pipe, category="chair"),
        latents(triplane_pipe, image=square(), guidance_scale=3.0),
    )
    triplane_pipe.formulation = replace(triplane_pipe.formulation, picture_guidance=3.0)
    assert torch.equal(latents(triplane_pipe, image=square()), one)
    assert torch.equal(latents(triplane_pipe, category="chair"), chair)
    assert not torch.equal(latents(triplane_pipe, image=square(), guidance_scale=1.0), one)


def test_what_the_pipeline_refuses(triplane_pipe):
    with pytest.raises(PolyditError, match="give one of them"):
        triplane_pipe()
    with pytest.raises(PolyditError, match="give one of them"):
        triplane_pipe(image=square(), category="chair")
    with pytest.raises(PolyditError, match="they know chair, table"):
        triplane_pipe(category="sofa")
    triplane_pipe.register_modules(encoder=None)
    with pytest.raises(PolyditError, match="of a category only"):
        triplane_pipe(image=square())


def test_meshes_of_a_known_field(triplane_pipe):
    """The head is replaced by a ball: what comes out is the ball, in its place."""

    def query(planes, points):
        return 40 * (0.6 - (points - points.new_tensor([0.2, 0, 0])).norm(dim=-1))

    triplane_pipe.vae.query = query
    mesh = triplane_pipe.mesh(torch.zeros(1, 3, 4, 12), resolution=48)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)
    fine = triplane_pipe.mesh(torch.zeros(1, 3, 4, 12), resolution=100)
    assert fine.is_watertight
    assert fine.euler_number == 2
    assert fine.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.004)
    smaller = triplane_pipe.mesh(torch.zeros(1, 3, 4, 12), resolution=48, level=8.0)
    assert smaller.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.02)
    assert triplane_pipe.mesh(torch.zeros(1, 3, 4, 12), resolution=16, level=1e3).is_empty


def test_slabs_and_a_coarse_grid_change_nothing_and_ask_less():
    asked = []

    def query(points):
        asked.append(len(points))
        return 0.6 - np.linalg.norm(points * [1, 2, 1], axis=1)

    whole = surface_of_query(query, 60, coarse=64)
    count = sum(asked)
    asked.clear()
    parts = surface_of_query(query, 60, coarse=20, slab=9)
    assert sum(asked) < 0.6 * count
    assert max(asked) < 0.3 * count
    assert parts.is_watertight
    assert len(parts.faces) == len(whole.faces)
    assert parts.volume == pytest.approx(whole.volume, rel=1e-4)
    assert [query_cells(n) for n in (48, 64, 65, 100, 500)] == [48, 64, 66, 100, 504]
    touching = surface_of_query(lambda p: np.ones(len(p)), 48, coarse=16)
    assert touching.is_watertight
    assert touching.volume == pytest.approx(8)


def test_a_saved_pipeline_comes_back(triplane_pipe, tmp_path):
    triplane_pipe.save_pretrained(tmp_path)
    again = polydit.load(tmp_path, task="shape-3d")
    assert again.categories == ["chair", "table"]
    torch.testing.assert_close(latents(again, image=square()), latents(triplane_pipe, image=square()))
    points, normals = make_shape("lamp", 0).sample(64, np.random.default_rng(0))
    assert again.reconstruct(points, normals, resolution=16) is not None
