"""Direct3D: equality with the released networks on recorded tensors, sizes, and what its parts promise.

tests/data/golden/direct3d/meta.json says which commit produced the tensors and how.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from polydit.core.autoencoders.triplane import (
    PLANES,
    TriplaneVAE,
    apart,
    fourier_features,
    kl_to_normal,
    look_up_planes,
    semi_continuous_labels,
    side_by_side,
)
from polydit.core.backbones import load_official, save_official
from polydit.core.backbones.d3d_dit import D3DDiT
from polydit.core.diffusion.guidance import guide
from polydit.core.errors import PolyditError
from polydit.core.geometry.primitives import Placed, Union, box
from polydit.core.geometry.surfaces import grid_points, surface_of_field

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "direct3d"
TINY_VAE = {
    "resolution": 4, "latent_channels": 3, "plane_channels": 8, "frequencies": 4, "num_heads": 2, "head_dim": 16,
    "num_layers": 1, "block_out_channels": [16, 16], "decoder_layers": 1, "norm_groups": 8, "head_layers": 3,
}  # fmt: skip
TINY = {
    "resolution": 4, "in_channels": 3, "hidden_size": 48, "num_heads": 3, "depth": 2, "semantic_channels": 20,
    "pixel_channels": 28,
}  # fmt: skip


def golden(part):
    meta = json.loads((GOLDEN / "meta.json").read_text())[part]
    weights, inputs, outputs = (
        {
            k: v.float() if v.is_floating_point() else v
            for k, v in load_file(GOLDEN / f"{part}.{kind}.safetensors").items()
        }
        for kind in ("weights", "inputs", "outputs")
    )
    return (
        meta,
        weights,
        inputs,
        outputs,
        {"atol": meta["recommended_atol"], "rtol": meta["recommended_rtol"]},
    )


@pytest.fixture(scope="module")
def vae():
    """The released autoencoder but for its convolutions, which are diffusers' own."""
    meta, weights, inputs, outputs, tolerance = golden("vae")
    empty = TriplaneVAE(
        resolution=4, latent_channels=3, plane_channels=8, frequencies=4, num_heads=2, head_dim=16, num_layers=2,
        block_out_channels=[32, 32], head_layers=3,
    )  # fmt: skip
    decoder = {f"decoder.{name}": value for name, value in empty.decoder.state_dict().items()}
    return (
        load_official("direct3d", {**weights, **decoder}, **meta["config"]),
        weights,
        inputs,
        outputs,
        tolerance,
    )


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    model = D3DDiT(**{**TINY, **changes}).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def call(model, semantic=None, pixel=None, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(2, 3, 4, 12, generator=generator)
    with torch.no_grad():
        return model(
            latent,
            torch.tensor([7.0, 900.0]),
            encoder_hidden_states=semantic,
            pixel_hidden_states=pixel,
            **more,
        ).sample


def test_transformer_equals_the_released_one():
    meta, weights, inputs, expected, tolerance = golden("dit")
    model = load_official("direct3d", weights, **meta["config"])
    taps = {}
    model.blocks[0].register_forward_hook(lambda m, i, out: taps.update(first=out))
    with torch.no_grad():
        out = model(
            inputs["latent"],
            inputs["timestep"],
            encoder_hidden_states=inputs["semantic"],
            pixel_hidden_states=inputs["pixel"],
        ).sample
    torch.testing.assert_close(out, expected["out"], **tolerance)
    torch.testing.assert_close(taps["first"], expected["tap.transformer_blocks.0"], **tolerance)
    back = save_official("direct3d", model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_encoder_and_head_equal_the_released_ones(vae):
    model, weights, inputs, expected, tolerance = vae
    with torch.no_grad():
        mean, log_variance = model.moments(inputs["points"], inputs["normals"])
        features = look_up_planes(expected["triplane"], inputs["query"])
        logits = model.query(expected["triplane"], inputs["query"])
        corners = torch.from_numpy(grid_points(10)).float()[None]
        grid = model.query(expected["triplane"][:1], corners)[0].reshape(11, 11, 11)
    torch.testing.assert_close(mean, expected["encode.mean"], **tolerance)
    torch.testing.assert_close(log_variance, expected["encode.logvar"], **tolerance)
    torch.testing.assert_close(kl_to_normal(mean, log_variance), expected["encode.kl"], **tolerance)
    by_plane = features.unflatten(2, (3, -1)).transpose(1, 2)
    torch.testing.assert_close(by_plane, expected["sampled_features"], **tolerance)
    torch.testing.assert_close(logits, expected["occupancy_logits"], **tolerance)
    torch.testing.assert_close(grid, expected["grid_logits"], **tolerance)
    torch.testing.assert_close(
        fourier_features(inputs["points"][:, :4], 4), expected["fourier_embedding"], **tolerance
    )
    back = save_official("direct3d", model)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_published_sizes():
    with torch.device("meta"):
        codec, transformer = TriplaneVAE(), D3DDiT()
    assert sum(p.numel() for p in codec.parameters()) == 119_275_265
    assert sum(p.numel() for p in codec.encoder.parameters()) == 66_174_720
    assert sum(p.numel() for p in codec.decoder.parameters()) == 53_044_128
    assert sum(p.numel() for p in codec.head.parameters()) == 18_753
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    assert trained == 610_180_544
    assert sum(p.numel() for p in transformer.blocks[0].parameters()) == 21_255_552
    assert codec.latent_shape == (16, 32, 96)


def test_unknown_arguments_are_refused():
    with pytest.raises(PolyditError, match="no argument 'rank'"):
        load_official("direct3d", {}, triplane_res=4, rank=3)
    with pytest.raises(PolyditError, match="no argument 'rank'"):
        load_official("direct3d", {}, rank=3)


def test_the_encoder_does_not_see_the_order_of_points(vae):
    model, _, inputs, *_ = vae
    order = torch.randperm(inputs["points"].shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, _ = model.moments(inputs["points"], inputs["normals"])
        other, _ = model.moments(inputs["points"][:, order], inputs["normals"][:, order])
    torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


@pytest.mark.parametrize("local", [False, True])
def test_local_tokens_look_at_points_near_their_pixel(local):
    torch.manual_seed(0)
    side = 6
    vae = TriplaneVAE(**{**TINY_VAE, "resolution": side}, local_tokens=local)
    points = torch.rand(1, 800, 3) * 2 - 1
    features = torch.cat([fourier_features(points, TINY_VAE["frequencies"]), torch.zeros(1, 800, 3)], dim=-1)
    block = vae.encoder.cross_attn
    query = block.attn.to_q(block.norm1(vae.encoder.tokens))
    key = block.attn.to_k(block.norm1_c(vae.encoder.proj_in(features[0])))
    # Where a token looks, on average:
    seen = (query @ key.T / TINY_VAE["head_dim"] ** 0.5).softmax(-1).detach() @ points[0]
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    high, wide = (grid.flatten() for grid in torch.meshgrid(centres, centres, indexing="ij"))
    for plane, (across, up) in enumerate(PLANES):
        found = seen[plane * side**2 : (plane + 1) * side**2]
        for axis, true in ((across, wide), (up, high)):
            nearness = float(torch.corrcoef(torch.stack([found[:, axis], true]))[0, 1])
            assert (nearness > 0.8) == local, nearness


def test_planes_side_by_side_and_apart_again():
    planes = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    picture = side_by_side(planes)
    assert picture.shape == (2, 4, 5, 18)
    assert torch.equal(picture[:, :, :, 6:12], planes[:, 1])
    assert torch.equal(apart(picture), planes)


def test_a_plane_that_is_a_ramp_gives_the_ramp():
    side = 8
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    ramp = torch.stack(
        [centres.expand(side, side), centres[:, None].expand(side, side)]
    )  # width, then height
    planes = ramp.expand(1, 3, 2, side, side)
    points = (torch.rand(1, 50, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * (1 - 1 / side)
    x, y, z = points.unbind(-1)
    expected = torch.stack([x, y, x, z, z, y], dim=-1)  # planes (x, y), (x, z), (z, y)
    torch.testing.assert_close(look_up_planes(planes, points), expected)


def test_the_released_mesh_comes_out_of_the_recorded_logits(vae):
    """Of the recorded mesh: counts, sums of the vertices' numbers over all faces, moments of the vertices."""
    _, _, _, outputs, _ = vae
    mesh = surface_of_field(outputs["grid_logits"].numpy(), level=-0.15, closed=False, released=True)
    assert mesh.vertices.shape == (1006, 3)
    assert mesh.faces.shape == (1741, 3)
    assert np.sort(mesh.faces, axis=1).sum(0).tolist() == [811_074, 874_062, 927_350]
    np.testing.assert_allclose(mesh.vertices.mean(0), [-0.06684942, -0.13619893, -0.06448546], atol=1e-6)
    np.testing.assert_allclose(mesh.vertices.std(0), [0.55405598, 0.56175500, 0.54152239], atol=1e-6)
    assert mesh.areas.sum() == pytest.approx(19.6032222, rel=1e-6)


def test_labels_fall_across_the_band():
    s = 1 / 512
    distances = torch.tensor([-1.0, -s, -s / 2, 0, s / 2, s, 1.0])
    assert semi_continuous_labels(distances).tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert semi_continuous_labels(distances, 0).tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_soft_labels_keep_a_thin_plate_that_hard_ones_break():
    """A plate that lies between the planes of the grid: soft labels on the grid know of it, hard ones do not."""
    plate = Union([Placed(box(1.4, 0.03, 1.4), np.array([0.0, 0.03, 0.0]))])
    resolution = 32  # cells of 0.0625, twice the plate's thickness
    distance = torch.from_numpy(plate.distance(grid_points(resolution)))
    shape = (resolution + 1,) * 3
    hard, soft = (semi_continuous_labels(distance, band).reshape(shape).numpy() for band in (0.0, 1 / 16))
    assert surface_of_field(hard, level=0.3).is_empty
    mesh = surface_of_field(soft, level=0.3)
    assert mesh.is_watertight
    assert mesh.components().max() == 0
    np.testing.assert_allclose(mesh.bounds[:, [0, 2]], [[-0.7, -0.7], [0.7, 0.7]], atol=0.04)
    np.testing.assert_allclose(mesh.bounds.mean(0)[1], 0.03, atol=0.01)


def test_each_condition_reaches_the_output_and_order_of_its_tokens_does_not_matter():
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    semantic = torch.randn(2, 5, 20, generator=generator)
    pixel = torch.randn(2, 9, 28, generator=generator)
    both = call(model, semantic, pixel)
    assert not torch.allclose(both, call(model, torch.zeros_like(semantic), pixel), atol=0.01)
    assert not torch.allclose(both, call(model, semantic, torch.zeros_like(pixel)), atol=0.01)
    torch.testing.assert_close(call(model, semantic, pixel.flip(1)), both, atol=1e-4, rtol=1e-4)
    # All but the first: that one enters with the time.
    moved = torch.cat([semantic[:, :1], semantic[:, 1:].flip(1)], 1)
    torch.testing.assert_close(call(model, moved, pixel), both, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(call(model, semantic.flip(1), pixel), both, atol=0.01)


def test_planes_are_told_apart_by_their_place():
    model = tiny()
    latent = torch.randn(1, 3, 4, 12)
    with torch.no_grad():
        one = model(latent, torch.tensor([5.0])).sample
        rolled = model(latent.roll(4, dims=3), torch.tensor([5.0])).sample
    assert not torch.allclose(rolled.roll(-4, dims=3), one, atol=0.01)


def test_without_a_picture_guidance_changes_nothing():
    model = tiny()
    nothing = torch.zeros(2, 5, 20), torch.zeros(2, 9, 28)
    empty = call(model, *nothing)
    for scale in (0.0, 1.0, 4.0):
        torch.testing.assert_close(guide(call(model, *nothing), empty, scale), empty)


def test_a_fresh_transformer_is_the_identity_in_its_blocks_and_predicts_zero():
    model = D3DDiT(**TINY)
    assert call(model, torch.randn(2, 5, 20), torch.randn(2, 9, 28)).abs().max() == 0
    x = torch.randn(2, 12, 48)
    block = model.blocks[0]
    conditioning = model.block_conditioning(torch.randn(2, 48))
    assert torch.equal(block(x, conditioning, pixel_tokens=torch.randn(2, 9, 48)), x)


def test_saved_models_come_back(tmp_path):
    model = tiny(num_classes=3)
    model.save_pretrained(tmp_path / "dit")
    again = D3DDiT.from_pretrained(tmp_path / "dit").eval()
    labels = {"class_labels": torch.tensor([0, 3])}
    torch.testing.assert_close(call(again, **labels), call(model, **labels))
    with pytest.raises(ValueError, match="num_classes is none"):
        call(model)
    codec = TriplaneVAE(**TINY_VAE, scaling_factor=2.0, shift_factor=0.1).eval()
    codec.save_pretrained(tmp_path / "vae")
    same = TriplaneVAE.from_pretrained(tmp_path / "vae").eval()
    points = torch.rand(1, 30, 3) * 2 - 1
    normals = torch.nn.functional.normalize(torch.randn(1, 30, 3), dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(codec(points, normals, points), same(points, normals, points))
        mean, _ = codec.moments(points, normals)
        torch.testing.assert_close(codec.encode(points, normals), (mean - 0.1) * 2)
        torch.testing.assert_close(
            codec.decode(codec.encode(points, normals)), codec.planes(mean), atol=1e-5, rtol=1e-5
        )
        drawn = codec.encode(points, normals, torch.Generator().manual_seed(0))
    assert not torch.allclose(drawn, codec.encode(points, normals))
    assert codec.planes(mean).shape == (1, 3, 8, 8, 8)


def test_gradient_checkpointing_changes_no_gradient():
    points = torch.rand(1, 30, 3) * 2 - 1
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        codec = TriplaneVAE(**TINY_VAE)
        if recompute:
            codec.enable_gradient_checkpointing()
        codec(points, points, points).sum().backward()
        gradients.append(codec.from_latents.weight.grad)
    torch.testing.assert_close(*gradients)
