"""DiT-3D: equality with the released network on recorded tensors, published sizes, and windows that are windows.

tests/data/golden/dit_3d/meta.json says which commit produced the tensors and how.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from polydit.core.attention.masks import window_mask
from polydit.core.backbones import load_official, make_dit, save_official
from polydit.core.backbones.dit_3d import DiT3D, load_blocks_from_2d, make_dit_3d
from polydit.core.backbones.voxels import devoxelize, voxel_coordinates, voxelize
from polydit.core.diffusion.guidance import guide
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "dit_3d"
TINY = {"input_size": 8, "patch_size": 2, "hidden_size": 36, "depth": 2, "num_heads": 3, "num_classes": 2}


@pytest.fixture(scope="module")
def golden():
    meta = json.loads((GOLDEN / "meta.json").read_text())
    weights, inputs, outputs = (
        load_file(GOLDEN / f"{kind}.safetensors") for kind in ("weights", "inputs", "outputs")
    )
    weights = {name: value.float() for name, value in weights.items()}
    return meta, weights, inputs, outputs


def released(golden, **more):
    meta, weights, *_ = golden
    return load_official("dit_3d", weights, **{**meta["config"], **more})


def trained(seed=0, **changes):
    """A tiny model whose zero-initialised layers are random too, so that everything reaches the output."""
    torch.manual_seed(seed)
    model = DiT3D(**{**TINY, **changes}).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def cloud(batch=2, points=60, seed=1):
    return torch.randn(batch, 3, points, generator=torch.Generator().manual_seed(seed))


def test_network_equals_the_released_one(golden):
    meta, weights, inputs, expected = golden
    tolerance = {"atol": meta["recommended_atol"], "rtol": meta["recommended_rtol"]}
    points, t, labels = inputs["points"].float(), inputs["timestep"], inputs["label"]
    model = released(golden)
    with torch.no_grad():
        torch.testing.assert_close(model(points, t, labels).sample, expected["out"], **tolerance)
        windowed = released(golden, window_size=meta["window_size_intended"], window_block_indexes=(0,))
        found = windowed(points, t, labels).sample
    torch.testing.assert_close(found, expected["intended_window_block0.out"], **tolerance)
    assert not torch.allclose(found, expected["out"], atol=0.01)
    back = save_official("dit_3d", model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_voxels_equal_the_released_ones(golden):
    meta, _, inputs, expected = golden
    size = meta["config"]["input_size"]
    coordinates = voxel_coordinates(inputs["points"], size)
    torch.testing.assert_close(coordinates, expected["voxel_coords"], atol=1e-6, rtol=0)
    voxels = voxelize(inputs["points"], coordinates, size)
    torch.testing.assert_close(voxels, expected["voxels"], atol=1e-7, rtol=0)
    torch.testing.assert_close(
        devoxelize(voxels, coordinates), expected["devoxelized_voxels"], atol=1e-6, rtol=0
    )


def test_a_checkpoint_with_the_prefix_of_training_is_read_and_strangers_are_refused(golden):
    meta, weights, inputs, expected = golden
    prefixed = {f"model.module.{name}": value for name, value in weights.items()}
    model = load_official("dit_3d", prefixed, **meta["config"])
    with torch.no_grad():
        out = model(inputs["points"].float(), inputs["timestep"], inputs["label"]).sample
    torch.testing.assert_close(out, expected["out"], atol=5e-4, rtol=1e-4)
    with pytest.raises(PolyditError, match="no argument 'heads'"):
        released(golden, heads=3)
    with pytest.raises(PolyditError, match="use_rel_pos"):
        released(golden, use_rel_pos=True)


def test_devoxelizing_is_grid_sample():
    voxels = torch.randn(2, 5, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    coordinates = torch.rand(2, 3, 200, generator=torch.Generator().manual_seed(1)) * 8
    coordinates[..., 0] = 8  # the very corner
    places = (coordinates * 2 / 8 - 1).flip(1).transpose(1, 2)[:, :, None, None]  # x is the last axis there
    expected = F.grid_sample(voxels, places, align_corners=True)[..., 0, 0]
    torch.testing.assert_close(devoxelize(voxels, coordinates), expected, atol=1e-6, rtol=0)


def test_voxels_hold_means_and_nothing_where_there_are_no_points():
    points = torch.tensor([[[0.0, 0.0, 4.0], [0.0, 0.0, 4.0], [0.0, 0.0, 4.0]]])
    coordinates = torch.tensor([[[1.2, 0.9, 3.0], [1.0, 1.0, 3.0], [1.0, 1.0, 3.0]]])
    voxels = voxelize(torch.cat([points, torch.tensor([[[2.0, 4.0, 7.0]]])], 1), coordinates, 4)
    assert voxels[0, :, 1, 1, 1].tolist() == [0, 0, 0, 3]
    assert voxels[0, :, 3, 3, 3].tolist() == [4, 4, 4, 7]
    assert int((voxels[0, 3] != 0).sum()) == 2
    still = voxel_coordinates(torch.ones(1, 3, 5), 8)  # all points in one place
    assert torch.isfinite(still).all()


def test_points_have_no_order_and_a_fresh_model_predicts_zero():
    model, points = trained(), cloud()
    t, labels = torch.tensor([3.0, 700.0]), torch.tensor([0, 1])
    order = torch.randperm(points.shape[2], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        out = model(points, t, labels).sample
        torch.testing.assert_close(
            model(points[..., order], t, labels).sample, out[..., order], atol=2e-5, rtol=0
        )
        assert DiT3D(**TINY)(points, t, labels).sample.abs().max() == 0
    more = cloud(points=17)  # any number of points
    assert model(more, t, labels).sample.shape == more.shape


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [
        ("DiT-3D-S/4", 32_807_232, 32_610_624),
        ("DiT-3D-S/2", 34_054_296, 32_481_432),
        ("DiT-3D-S/8", 33_668_736, 33_644_160),
        ("DiT-3D-B/4", 130_200_000, 129_806_784),
        ("DiT-3D-L/4", 579_040_320, 578_450_496),
        ("DiT-3D-XL/4", 674_660_928, 674_071_104),
    ],
)
def test_published_sizes(name, total, trainable):
    with torch.device("meta"):
        parameters = list(make_dit_3d(name).parameters())
    assert sum(p.numel() for p in parameters) == total
    assert sum(p.numel() for p in parameters if p.requires_grad) == trainable


def test_a_window_block_is_block_diagonal_attention():
    model = trained(window_size=2, window_blocks=[0])
    block, grid = model.blocks[0], (4, 4, 4)
    x = torch.randn(2, 64, 36, generator=torch.Generator().manual_seed(3))
    c = torch.randn(2, 36, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        windowed = block(x, c, grids=(grid,))
        block.window_size = None
        dense = block(x, c, attention_mask=window_mask(grid, (2, 2, 2)), grids=(grid,))
        everywhere = block(x, c, grids=(grid,))
        block.window_size = (4, 4, 4)
        one = block(x, c, grids=(grid,))
    torch.testing.assert_close(windowed, dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one, everywhere, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(windowed, everywhere, atol=0.01)


def test_a_token_reaches_its_window_and_no_other_sample():
    block = trained(window_size=2).blocks[0]
    x = torch.randn(2, 64, 36, requires_grad=True)
    block(x, torch.randn(2, 36), grids=((4, 4, 4),))[0, 0].sum().backward()
    reached = x.grad.abs().sum(-1) > 0
    assert int(reached[0].sum()) == 8
    assert int(reached[1].sum()) == 0
    assert torch.equal(reached[0], window_mask((4, 4, 4), (2, 2, 2))[0])


def test_every_third_block_has_windows_unless_told():
    def windowed(**options):
        model = DiT3D(**{**TINY, "depth": 7, **options})
        return [i for i, block in enumerate(model.blocks) if block.window_size is not None]

    assert windowed(window_size=2) == [0, 3, 6]
    assert windowed() == []
    assert windowed(window_size=2, window_blocks=[1, 2]) == [1, 2]
    with pytest.raises(ValueError, match=r"blocks 0 to 6"):
        windowed(window_size=2, window_blocks=[7])


def test_the_released_windows_are_none_and_mix_samples():
    """What the released file does where its windows are switched on, which its launcher never does."""
    model = trained(window_size=2, window_blocks=[0], released_windows=True, depth=1)
    block, grid = model.blocks[0], (4, 4, 4)
    x = torch.randn(8, 64, 36, requires_grad=True)
    block(x, torch.randn(8, 36), grids=(grid,))[0].sum().backward()
    assert int((x.grad.abs().sum((1, 2)) > 0).sum()) > 1  # sample 0 depends on others
    with pytest.raises(ValueError, match="multiple of their number, 8"):
        block(x[:2], torch.randn(2, 36), grids=(grid,))


def test_windows_save_pairs():
    """262,144 pairs of tokens against 32,768 for 32 voxels in patches of 4 and windows of 4."""
    assert int(window_mask((8, 8, 8), (4, 4, 4)).sum()) == 32_768


def test_blocks_come_from_a_model_of_pictures():
    flat = make_dit("DiT-S/2", depth=2, hidden_size=36, num_heads=3, input_size=8)
    for parameter in flat.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    solid = DiT3D(**TINY)
    before = {name: value.clone() for name, value in solid.state_dict().items()}
    taken = load_blocks_from_2d(solid, save_official("dit", flat))
    assert taken == [name for name in before if name.startswith("blocks.")]
    assert all(torch.equal(solid.state_dict()[name], flat.state_dict()[name]) for name in taken)
    kept = before.keys() - set(taken)
    assert all(torch.equal(solid.state_dict()[name], before[name]) for name in kept)
    assert solid(cloud(), torch.tensor([1, 2]), torch.tensor([0, 1])).sample.abs().max() == 0
    with pytest.raises(ValueError, match="same size"):
        load_blocks_from_2d(DiT3D(**{**TINY, "depth": 3}), flat.state_dict())


def test_guidance_is_the_released_one(golden):
    _, _, inputs, expected = golden
    half = inputs["points"][:1].float()
    model = released(golden)
    with torch.no_grad():
        both = model(torch.cat([half, half]), inputs["timestep"][:1].repeat(2), torch.tensor([0, 3])).sample
    found = guide(both[:1], both[1:], 3.0, channels=3)
    torch.testing.assert_close(found, expected["cfg3.out"][:1], atol=5e-4, rtol=1e-4)


def test_a_saved_model_comes_back(tmp_path):
    model = trained(window_size=2)
    model.save_pretrained(tmp_path)
    again = DiT3D.from_pretrained(tmp_path)
    points, t, labels = cloud(), torch.tensor([1, 2]), torch.tensor([0, 1])
    with torch.no_grad():
        assert torch.equal(again.eval()(points, t, labels).sample, model(points, t, labels).sample)
    assert [block.window_size for block in again.blocks] == [(2, 2, 2), None]
