"""PDFNet: equality with the released network on recorded tensors, and what its parts promise.

tests/data/golden/pdfnet/meta.json says which commit produced them and how.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polydit.core.backbones import load_official, save_official
from polydit.core.backbones.pdfnet import ConvEncoder, PDFNet, from_tiles, normalized
from polydit.core.backbones.pdfnet_fusion import boundary_and_integrity, to_tiles
from polydit.core.backbones.swin import SwinEncoder
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pdfnet"
SMALL = {"encoder": "conv", "embed_dim": 8, "widths": (8, 8, 12, 12), "depths": (1, 1, 0, 0), "tiles": 2}


def golden(part):
    meta = json.loads((GOLDEN / "meta.json").read_text())[part]
    files = [load_file(GOLDEN / f"{part}.{kind}.safetensors") for kind in ("weights", "inputs", "outputs")]
    weights, inputs = ({k: v.float() for k, v in file.items()} for file in files[:2])
    tolerance = {"atol": meta["recommended_atol"], "rtol": meta["recommended_rtol"]}
    return load_official("pdfnet", weights, **meta["config"]), weights, inputs, files[2], tolerance


def small(**changes):
    torch.manual_seed(0)
    return PDFNet(**{**SMALL, **changes})


def test_network_equals_the_released_one():
    model, weights, inputs, expected, tolerance = golden("inference")
    with torch.no_grad():
        found = model(inputs["img"], inputs["depth"])
    torch.testing.assert_close(found.sample, expected["prediction_logits"], **tolerance)
    for number, side in enumerate(found.sides, 1):
        torch.testing.assert_close(side, expected[f"side_{number}"], **tolerance)
    back = save_official("pdfnet", model)
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    assert {name.partition(".")[0] for name in back.keys() - weights.keys()} == {"IntegrityPriorLoss"}


def test_fusion_equals_the_released_one():
    block, weights, inputs, expected, tolerance = golden("fse_threshold")
    with torch.no_grad():
        found = block(inputs["img"], inputs["depth"], inputs["patch"], inputs["last_pred"])
        boundary, integrity = boundary_and_integrity(inputs["last_pred"], released_quirks=True)
        patch = inputs["patch"]
        tokens = patch[:, :16].flatten(2).transpose(1, 2)
        unit = block.tiles_to_both(tokens, torch.cat([tokens * 0.5, tokens], 1))
        cells = to_tiles(patch, 8) * torch.arange(1, 129).view(-1, 1, 1, 1)
    for name, tensor in zip(("img", "depth", "patch"), found, strict=True):
        torch.testing.assert_close(tensor, expected[name], **tolerance)
    torch.testing.assert_close(boundary, expected["boundary"], **tolerance)
    torch.testing.assert_close(integrity, expected["integrity"], **tolerance)
    torch.testing.assert_close(unit, expected["coa_PI"], **tolerance)
    torch.testing.assert_close(from_tiles(cells, 8), expected["merged_split_patch"].float())
    assert save_official("pdfnet", block).keys() == weights.keys()


def test_published_sizes():
    with torch.device("meta"):
        whole = PDFNet(refine_depth=True)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in whole.named_children()}
    assert count["hierarchy"] == 87_281_784
    assert whole.hierarchy.absolute_pos_embed.numel() == 401_408
    assert count["depth_decoder"] == 6_799_365
    assert sum(p.numel() for p in whole.parameters()) - 6_799_365 == 97_846_544
    assert sum(count[part] for part in ("fusions", "stream_mix", "detail", "finish", "sides")) == 7_614_086
    names = save_official("pdfnet", whole)
    assert "encoder.layers.2.blocks.17.attn.relative_position_bias_table" in names
    assert "depth_decoder.Decoder.3.1.0.weight" in names
    assert names["decoder.FSE_mix.3.DI.Att.in_proj_weight"].shape == (384, 128)


def test_swin_weights_go_there_and_back():
    torch.manual_seed(0)
    model = PDFNet(
        embed_dim=8, widths=(8, 16, 32, 64), depths=(1, 1, 2, 1), heads=(1, 2, 2, 2), window=3, tiles=2
    )
    weights = save_official("pdfnet", model)
    weights["encoder.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(9, 9)
    again = load_official("pdfnet", weights, emb=8, patch_ratio=2)
    assert again.config.window == 3
    assert again.config.position_size == 56
    picture, depth = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        model.released_quirks = True
        for fusion in model.fusions:
            fusion.released_quirks = True
        assert torch.equal(model.eval()(picture, depth).sample, again(picture, depth).sample)


def test_other_checkpoints_are_refused_in_one_line():
    with pytest.raises(PolyditError, match="is it of PDFNet"):
        load_official("pdfnet", {"encoder.weight": torch.zeros(3)})
    weights = save_official("pdfnet", small())
    with pytest.raises(PolyditError, match="does not fit"):
        load_official(
            "pdfnet", weights, emb=8, patch_ratio=2
        )  # the blocks behind its stages are not official
    with pytest.raises(PolyditError, match="no option 'size'"):
        load_official("pdfnet", weights, size=3)


def test_swin_equals_that_of_transformers():
    """Windows that fit and windows that do not, shifted and not, with absolute positions."""
    from transformers import SwinBackbone, SwinConfig

    depths, heads = (2, 2, 2), (1, 2, 4)
    config = SwinConfig(
        image_size=100, patch_size=4, embed_dim=8, depths=depths, num_heads=heads, window_size=3,
        use_absolute_embeddings=True, out_features=["stage1", "stage2", "stage3"], layer_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = SwinBackbone(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = theirs.state_dict()
    ours = SwinEncoder(3, 8, depths, heads, 3, 25).eval()
    renamed = {}
    for name, tensor in ours.state_dict().items():
        renamed[name] = match(name, tensor, weights)
    ours.load_state_dict(renamed)
    picture = torch.rand(2, 3, 100, 100)
    with torch.no_grad():
        for a, b in zip(ours(picture), theirs(picture).feature_maps, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


def match(name, tensor, weights):
    """The weight of transformers' Swin that has this name in ours."""

    def find(*parts):
        return next(v for k, v in weights.items() if all(re.search(part, k) for part in parts))

    stem, _, kind = name.rpartition(".")
    if name == "absolute_pos_embed":
        return find("position_embeddings").transpose(1, 2).reshape(tensor.shape)
    if stem.startswith("norm"):
        return find(f"norms.stage{int(stem[-1]) + 1}.{kind}")
    if ".attn.qkv" in stem:
        block = re.escape(stem.removesuffix("attn.qkv"))
        return torch.cat([find(block, f"{part}.*{kind}$") for part in (r"\.q", r"\.k", r"\.v")])
    for ours, theirs in {
        "patch_embed.proj": "patch_embeddings.projection",
        "patch_embed.norm": "embeddings.norm",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": r"attention\.(o_proj|output.dense)",
        "attn": "attention.*",
        "mlp.fc1": r"(mlp.fc1|intermediate.dense)",
        "mlp.fc2": r"(mlp.fc2|blocks.\d+.output.dense)",
    }.items():
        stem = re.sub(rf"(^|\.){re.escape(ours)}$", lambda found, new=theirs: found[1] + new, stem)
    return find(rf"{stem}\.?{kind}$")


def test_tiles_come_back_together():
    picture = torch.rand(3, 2, 24, 16)
    assert torch.equal(from_tiles(to_tiles(picture, 4), 4), picture)
    encode = ConvEncoder((4, 4, 4, 4), (1, 1, 1, 1), (0, 0, 0, 0))  # sees one pixel: tiles do not matter
    rgb = torch.rand(2, 3, 16, 16)
    for whole, tiled in zip(encode(rgb), encode(to_tiles(rgb, 4)), strict=True):
        torch.testing.assert_close(from_tiles(tiled, 4), whole)


@pytest.mark.parametrize("quirks", [False, True])
def test_gradient_reaches_the_encoder_through_the_tiles_unless_released(quirks):
    model = small(released_quirks=quirks)
    seen = []
    model.hierarchy.stages[0].register_full_backward_hook(
        lambda module, given, taken: seen.append(taken[0].shape[0])
    )
    model(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)).sample.mean().backward()
    assert seen == ([2] if quirks else [4, 2])  # picture and depth; before them (in time behind) four tiles


def test_samples_of_a_batch_do_not_meet():
    model = small().eval()
    picture, depth = (
        torch.rand(2, 3, 64, 64),
        torch.rand(2, 1, 64, 64) * torch.tensor([1.0, 7.0]).view(2, 1, 1, 1),
    )
    with torch.no_grad():
        both = model(picture, depth).sample
        torch.testing.assert_close(
            both[1:], model(picture[1:], 3 * depth[1:] + 1).sample, atol=1e-5, rtol=1e-4
        )
    assert torch.equal(normalized(torch.full((1, 1, 4, 4), 3.0)), torch.zeros(1, 1, 4, 4))
    assert normalized(depth, per_sample=False)[0].max() < 0.5


def test_depth_and_its_decoder_matter():
    model = small(refine_depth=True)
    picture, depth = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    found = model(picture, depth, refine_depth=True)
    assert found.sample.shape == picture[:, :1].shape
    assert [side.shape[-1] for side in found.sides] == [16, 8, 4, 2, 2]
    assert [side.shape[-1] for side in found.depths] == [32, 8, 4, 2, 1]
    sum(side.sum() for side in (found.sample, *found.sides, *found.depths)).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    with torch.no_grad():
        assert not torch.equal(model.eval()(picture, depth).sample, model(picture, depth.flip(-1)).sample)


def test_checkpointing_changes_nothing():
    model = small(dropout=0.0)
    picture, depth = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)

    def gradients():
        model.zero_grad()
        model(picture, depth).sample.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_saved_folder_gives_the_same_network(tmp_path):
    model = small().eval()
    model.save_pretrained(tmp_path)
    again = PDFNet.from_pretrained(tmp_path).eval()
    picture, depth = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(picture, depth).sample, again(picture, depth).sample)
    assert again.config.depths == list(SMALL["depths"])


@pytest.mark.parametrize(
    ("picture", "depth", "says"), [((64, 60), (64, 60), "multiples of 64"), ((64, 64), (32, 32), "resize it")]
)
def test_sizes_are_checked(picture, depth, says):
    with pytest.raises(PolyditError, match=says):
        small()(torch.rand(1, 3, *picture), torch.rand(1, 1, *depth))


def test_released_networks_take_squares_and_ours_any_shape():
    picture, depth = torch.rand(1, 3, 64, 128), torch.rand(1, 1, 64, 128)
    assert small()(picture, depth).sample.shape == depth.shape
    with pytest.raises(PolyditError, match="128x64: the released PDFNet takes squares only"):
        small(released_quirks=True)(picture, depth)
    with pytest.raises(PolyditError, match="squares only"):
        boundary_and_integrity(depth, released_quirks=True)


def test_kinds_are_checked():
    with pytest.raises(PolyditError, match="swin or conv"):
        PDFNet(encoder="resnet")
    with pytest.raises(PolyditError, match="double"):
        PDFNet(widths=(8, 8, 8, 8))
    with pytest.raises(PolyditError, match="refine_depth: true"):
        small()(torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64), refine_depth=True)


def test_an_adapter_goes_to_the_attention_by_itself():
    from polydit.core.adapters import LoraOptions, inject

    model = small().requires_grad_(False)
    inject(model, LoraOptions(rank=2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 4 * 4 * 3 * 2  # fusions, units, projections, factors
    assert all(".attn." in name for name in trained)
