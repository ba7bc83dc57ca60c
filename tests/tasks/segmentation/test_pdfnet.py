"""PDFNet's losses against recorded values and closed forms, its data, its pipeline, and a run from config to mask.

tests/data/golden/pdfnet/meta.json says which commit produced the recorded values and how.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import polydit
from polydit.core.backbones.pdfnet import PDFNet, depth_edges
from polydit.core.cli import main
from polydit.core.data.composites import CompositeOptions, Compositor
from polydit.core.errors import PolyditError
from polydit.tasks.segmentation import pdfnet_losses as losses
from polydit.tasks.segmentation import pdfnet_pipeline
from polydit.tasks.segmentation.depth import DepthModel, open_depth
from polydit.tasks.segmentation.depth_data import DepthFolderSamples, DepthSegmentationData
from polydit.tasks.segmentation.depth_scenes import draw_scene
from polydit.tasks.segmentation.pdfnet import PDFNetSegmentation
from polydit.tasks.segmentation.pdfnet_pipeline import PDFNetPipeline, segment

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pdfnet"
TINY = {
    "encoder": "conv",
    "embed_dim": 8,
    "widths": (8, 8, 8, 8),
    "depths": (0, 0, 0, 0),
    "strides": (2, 2, 2, 2),
    "tiles": 2,
}


def tiny(**changes) -> PDFNet:
    torch.manual_seed(0)
    return PDFNet(**{**TINY, **changes})


# -- losses ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    inputs = {
        name: tensor.float() for name, tensor in load_file(GOLDEN / "losses.inputs.safetensors").items()
    }
    return inputs, load_file(GOLDEN / "losses.outputs.safetensors")


def same(found, expected):
    torch.testing.assert_close(found, expected.to(found.dtype), atol=1e-5, rtol=2e-5)


def test_losses_equal_the_released_ones(recorded):
    inputs, expected = recorded
    logits, depth, target = inputs["pred_logits.0"], inputs["depth"], inputs["gt"]
    edges = depth_edges(depth, zero_border=True)
    logits.requires_grad_(True)
    prior = losses.integrity_prior_loss(logits.sigmoid(), depth, target, edges, whole_batch=True)
    same(prior, expected["integrity_prior"])
    same(torch.autograd.grad(prior, logits)[0], expected["integrity_prior.grad_wrt_logits"])
    same(losses.structure_loss(logits, target), expected["structure"])
    same(losses.ssim_loss(logits.sigmoid(), target), expected["ssim"])
    same(losses.silog_loss(inputs["depth_logits.0"].sigmoid(), depth), expected["silog"])
    for case, mask, map_ in (
        ("gt_all_one", torch.ones_like(target), depth),
        ("gt_all_zero", torch.zeros_like(target), depth),
    ):
        value = losses.integrity_prior_loss(logits.sigmoid(), map_, mask, edges, whole_batch=True)
        same(value, expected[f"integrity_prior.{case}"])


def test_sums_over_scales_equal_the_released_ones(recorded):
    inputs, expected = recorded
    depth, target, size = inputs["depth"], inputs["gt"], inputs["gt"].shape[-2:]
    masks = [inputs[f"pred_logits.{i}"] for i in range(6)]
    depths = [inputs[f"depth_logits.{i}"] for i in range(5)]
    edges = depth_edges(depth, zero_border=True)
    whole = losses.over_scales(
        lambda x: losses.structure_loss(x, target) + 0.5 * losses.ssim_loss(x.sigmoid(), target), masks, size
    )
    prior = losses.over_scales(
        lambda x: losses.integrity_prior_loss(x.sigmoid(), depth, target, edges, True), masks, size
    )
    error = losses.over_scales(lambda x: losses.silog_loss(x.sigmoid(), depth), depths, size)
    same(whole, expected["multi.segmentation"])
    same(prior, expected["multi.integrity"])
    same(error, expected["multi.depth"])
    same(whole + prior / 2 + error / 10, expected["total"])


def test_the_module_computes_the_released_total(recorded):
    """With the slips of the released code, which only agree with ours on single samples."""
    inputs, expected = recorded
    module = PDFNetSegmentation(tiny(refine_depth=True, released_quirks=True), side=32)
    found = Namespace(
        sample=inputs["pred_logits.0"],
        sides=[inputs[f"pred_logits.{i}"] for i in range(1, 6)],
        depths=[inputs[f"depth_logits.{i}"] for i in range(5)],
    )
    module.backbone.forward = lambda *_, **__: found
    depth = inputs["depth"]  # what the released loss is given is not normalised; ours is: undo it
    module_depth = (depth - depth.min()) / (depth.max() - depth.min())
    batch = {
        "picture": torch.zeros(2, 3, 48, 48),
        "mask": inputs["gt"],
        "depth": depth,
        "depth_target": depth,
    }
    terms, output = module.losses(batch)
    assert set(terms) == {"objective", "integrity", "depth"}
    same(terms["objective"], expected["multi.segmentation"])
    edges = depth_edges(module_depth, zero_border=True)
    prior = losses.over_scales(
        lambda x: losses.integrity_prior_loss(x.sigmoid(), module_depth, inputs["gt"], edges, True),
        (found.sample, *found.sides),
        depth.shape[-2:],
    )
    same(terms["integrity"], prior / 2)
    assert output.x0.shape == inputs["gt"].shape


@pytest.mark.parametrize("m", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("far", [0.0, 0.3])
def test_integrity_prior_has_its_closed_forms(m, far):
    """One wrong pixel; the object's mean depth is 0.5, and edges of the depth are left out."""
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4, :] = 1
    depth = torch.full((1, 1, 8, 8), 0.5)
    none = torch.zeros_like(depth)
    background, thing = target.clone(), target.clone()
    background[..., 6, 6] = m
    depth[..., 6, 6] += far
    delta = far**2
    value = losses.integrity_prior_loss(background, depth, target, none)
    assert float(value) * 64 == pytest.approx(-np.log(1 - m) * delta * m**2 * (1 - m), abs=1e-5)
    depth = torch.full((1, 1, 8, 8), 0.5)
    thing[..., 2, 2] = m
    value = losses.integrity_prior_loss(thing, depth, target, none)
    assert float(value) * 64 == pytest.approx(-np.log(m) * m * (1 - m), abs=1e-5)


def test_integrity_prior_is_of_each_sample_and_knows_no_border():
    target = (torch.rand(2, 1, 16, 16) > 0.5).float()
    assert losses.integrity_prior_loss(target, torch.rand(2, 1, 16, 16), target) == 0
    flat, found = torch.tensor([0.2, 0.9]).view(2, 1, 1, 1).expand(2, 1, 16, 16), target.clone()
    found[target == 0] = 0.5
    assert losses.integrity_prior_loss(found, flat, target) == pytest.approx(
        0, abs=1e-6
    )  # no depth, no false alarms
    assert losses.integrity_prior_loss(found, flat, target, whole_batch=True) > 1e-3
    assert losses.integrity_prior_loss(found, flat, target, depth_edges(flat, zero_border=True)) > 1e-3
    shifted, logits = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16, requires_grad=True)
    shifted[..., 8:] = 0.4
    left = torch.zeros(2, 1, 16, 16)
    left[..., :4] = 1
    losses.integrity_prior_loss(logits.sigmoid(), shifted, left, torch.zeros_like(left)).backward()
    wrong = logits.grad[..., 4:]
    assert wrong[..., 6:].mean() > 10 * wrong[..., :4].abs().mean()  # those at another depth are pushed down


# -- data --------------------------------------------------------------------------------------------------


def disc(at: int, size: int = 40) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return ((x - at) ** 2 + (y - size // 2) ** 2 < 64).astype(np.uint8) * 255


@pytest.fixture
def dis(tmp_path) -> Path:
    """DIS5K's layout with two folders of depth."""
    rng = np.random.default_rng(0)
    for split, count in (("DIS-TR", 6), ("DIS-VD", 2)):
        for number in range(count):
            mask = disc(12 + 2 * number)
            picture = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8) + mask[..., None] // 2
            stem = f"5#Artifact#{number}"
            for folder, pixels in (
                ("images", picture),
                ("masks", mask),
                ("depth_small", mask // 2 + 20),
                ("depth_large_1024", mask // 2 + 60),
            ):
                path = tmp_path / "DIS5K" / split / folder
                path.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path / f"{stem}.png")
    return tmp_path / "DIS5K"


def test_folders_of_depth_are_read(dis):
    places = [(dis / "DIS-TR" / "images", dis / "DIS-TR" / "masks", None)]
    plain = DepthFolderSamples(places, 32, train=False, seed=0)
    sample = plain[2]
    assert len(plain) == 6
    assert {name: tuple(t.shape) for name, t in sample.items()} == {
        "picture": (3, 32, 32), "mask": (1, 32, 32), "depth": (1, 32, 32), "depth_target": (1, 32, 32),
    }  # fmt: skip
    assert sample["picture"].min() >= -1
    assert float(sample["depth_target"].min() - sample["depth"].min()) == pytest.approx(40 / 255)
    inside = sample["mask"] > 0.9
    assert sample["depth"][inside].mean() > 0.5 > sample["depth"][~inside].mean()
    augmented = DepthFolderSamples(places, 32, train=True, seed=0)
    for index in range(6):
        sample = augmented[index]
        assert torch.equal(sample["depth"], augmented[index]["depth"])
        moved, still = sample["depth"] > 0.4, sample["mask"] > 0.5
        assert (moved & still).sum() > 0.8 * (moved | still).sum()  # all maps move together
    (dis / "DIS-VD" / "depth_small").rename(dis / "small")
    (dis / "DIS-VD" / "depth_large_1024").rename(dis / "large")
    places = [(dis / "DIS-VD" / "images", dis / "DIS-VD" / "masks")]
    with pytest.raises(PolyditError, match="segmentation depth"):
        DepthFolderSamples(places, 32, train=True, seed=0)


@pytest.fixture(scope="module")
def compositor(tmp_path_factory) -> Compositor:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    photo = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    cutout = np.dstack([np.full((40, 40, 3), 200, np.uint8), disc(20)])
    for name, pixels in (("photo", photo), ("cutout", cutout)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return Compositor([folder / "photo.png"], [folder / "cutout.png"], 64, CompositeOptions.plain())


def test_scenes_tell_the_object_by_its_depth_only(compositor):
    for seed in range(4):
        scene = draw_scene(compositor, np.random.default_rng(seed), others=(1, 1))
        again = draw_scene(compositor, np.random.default_rng(seed), others=(1, 1))
        assert np.array_equal(scene.image, again.image)
        assert np.array_equal(scene.depth, again.depth)
        thing, other = scene.mask > 0.9, scene.others > 0.9
        rest = (scene.mask < 0.05) & (scene.others < 0.05)
        depth = scene.true_depth
        assert depth[thing].std() < 0.05 < depth[rest].std()
        rim = np.abs(depth_edges(torch.from_numpy(depth)[None, None])[0, 0].numpy())
        assert rim[(scene.mask > 0.1) & (scene.mask < 0.9)].mean() > 5 * rim[rest].mean()
        if other.any():
            assert rim[(scene.others > 0.1) & rest].sum() == 0
            assert np.abs(scene.image[thing].mean(0) - scene.image[other].mean(0)).max() < 3  # same colour
        assert 0 <= scene.depth.min() <= scene.depth.max() <= 1


# -- pipeline ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> PDFNetPipeline:
    return PDFNetPipeline(tiny().eval(), side=32)


def test_pipeline_takes_any_size_and_range_of_depth(pipe):
    picture = np.random.default_rng(0).integers(0, 255, (50, 71, 3), dtype=np.uint8)
    depth = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    mask = pipe(picture, depth).masks[0]
    assert mask.shape == (50, 71)
    assert mask.min() >= 0
    np.testing.assert_allclose(mask, pipe(picture, 300 + 7 * depth).masks[0], atol=1e-3)
    assert not np.allclose(mask, pipe(picture, depth[::-1]).masks[0], atol=1e-6)
    boxed = pipe(picture, depth, box=(10, 5, 40, 30), min_max=True).masks[0]
    assert boxed[:5].max() == boxed[:, 40:].max() == 0
    assert boxed.max() == 1
    assert pipe(picture[:1, :1], depth).masks[0].shape == (1, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({}, "need the depth"),
        ({"depth": [np.ones((4, 4))] * 2}, "2 maps for 1"),
        ({"depth": np.full((4, 4), np.nan)}, "NaN"),
        ({"depth": np.ones((4, 4)), "detail": "tiles"}, "guided, none"),
    ],
)
def test_pipeline_refuses_in_one_line(pipe, words, says):
    with pytest.raises(PolyditError, match=says):
        pipe(np.zeros((8, 8, 3), np.uint8), **words)


def options(**changes) -> Namespace:
    return Namespace(**{"detail": None, "box": None, "min_max": False, "depth": None, **changes})


def test_predict_finds_the_depth_by_name(pipe, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    maps = tmp_path / "depth_large"
    maps.mkdir()
    Image.fromarray(disc(20)).save(maps / "cat.png")
    generator = torch.Generator()
    found = segment(pipe, picture, Path("in/cat.jpg"), options(depth=maps), generator)
    np.testing.assert_allclose(found.alpha, pipe(picture, disc(20) / 255).masks[0], atol=1e-5)
    assert found.record["depth"] == str(maps)
    with pytest.raises(PolyditError, match="no map called dog"):
        segment(pipe, picture, Path("in/dog.jpg"), options(depth=maps), generator)
    with pytest.raises(PolyditError, match="neither depth maps nor"):
        open_depth(tmp_path)
    with pytest.raises(PolyditError, match="need the depth"):
        segment(pipe, picture, Path("in/cat.jpg"), options(), generator)
    without = PDFNetPipeline(pipe.transformer, side=32, may_lack_depth=True)
    assert segment(without, picture, Path("in/cat.jpg"), options(), generator).record["depth"] == "none"


@pytest.fixture
def depth_network(tmp_path) -> Path:
    """A folder of a tiny depth network."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=28, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8, head_hidden_size=4, head_in_index=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / "net")
    (tmp_path / "net" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 28, "width": 28}})
    )
    return tmp_path / "net"


def depth_command(folder, source, output, *words) -> int:
    command = ["segmentation", "depth", "--model", folder, "--input", source, "--output", output, *words]
    return main(list(map(str, command)))


def test_a_depth_network_of_transformers_is_run(depth_network, tmp_path):
    network = open_depth(tmp_path / "net")
    assert isinstance(network, DepthModel)
    assert (network.side, network.multiple) == (28, 14)
    picture = np.random.default_rng(0).integers(0, 255, (30, 61, 3), dtype=np.uint8)
    depth = network(picture, Path("any.png"))
    assert depth.shape == (30, 61)
    assert np.isfinite(depth).all()
    assert depth.std() > 0
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in" / "a.png")
    assert depth_command(depth_network, tmp_path / "in", tmp_path / "depth") == 0
    with Image.open(tmp_path / "depth" / "a.png") as written:
        assert (written.size, written.mode, written.getextrema()) == ((61, 30), "L", (0, 255))
    (tmp_path / "net" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PolyditError, match="no depth network"):
        open_depth(tmp_path / "net")


def test_depth_goes_on_after_a_bad_picture_and_keeps_what_is_there(depth_network, tmp_path, capsys):
    photos, output = tmp_path / "in", tmp_path / "depth"
    photos.mkdir()
    for name in ("a", "c"):
        Image.fromarray(disc(30)).save(photos / f"{name}.png")
    (photos / "b.png").write_bytes(b"nonsense")
    assert depth_command(depth_network, photos, output) == 2
    assert sorted(path.name for path in output.iterdir()) == ["a.png", "c.png"]
    said = capsys.readouterr().err
    assert "b.png: not a picture that can be read" in said
    assert "2 done" in said
    assert "1 of 3 failed" in said
    Image.fromarray(disc(30)).save(photos / "b.png")
    (output / "a.png").write_bytes(b"mine")
    assert depth_command(depth_network, photos, output) == 0
    assert "1 done" in (said := capsys.readouterr().err)
    assert "2 kept as they were (--overwrite replaces them)" in said
    assert (output / "a.png").read_bytes() == b"mine"
    assert depth_command(depth_network, photos, output, "--overwrite") == 0
    assert (output / "a.png").read_bytes() != b"mine"


def test_depth_never_writes_over_the_pictures_and_no_map_twice(depth_network, tmp_path, capsys):
    photos = tmp_path / "in"
    photos.mkdir()
    Image.fromarray(disc(30)).save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    assert depth_command(depth_network, photos, photos, "--overwrite") == 2
    assert "is the folder of a.png; choose another folder" in capsys.readouterr().err
    assert (photos / "a.png").read_bytes() == before
    Image.fromarray(disc(30)).save(photos / "a.jpg")
    assert depth_command(depth_network, photos, tmp_path / "depth") == 2
    assert "its map would have the name of that of" in capsys.readouterr().err
    assert not (tmp_path / "depth").exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("device", "--device bogus: no such device"),
        ("input", "nowhere: no such file or folder"),
        ("model", "--model nope: no such folder; give that of a depth network"),
        ("weights", "/net: no depth network that transformers can load"),
        ("settings", "/net: preprocessor_config.json is damaged"),
        ("numbers", "/net: preprocessor_config.json is damaged"),
    ],
)
def test_depth_says_what_is_wrong_in_one_line(depth_network, tmp_path, capsys, case, message):
    Image.fromarray(disc(30)).save(tmp_path / "a.png")
    if case == "weights":
        (depth_network / "model.safetensors").write_bytes(b"xx" * 50)
    elif case == "settings":
        (depth_network / "preprocessor_config.json").write_text("{bad")
    elif case == "numbers":
        (depth_network / "preprocessor_config.json").write_text('{"size": {}}')
    model = "nope" if case == "model" else depth_network
    source = tmp_path / ("nowhere" if case == "input" else "a.png")
    words = ["--device", "bogus"] if case == "device" else []
    capsys.readouterr()
    assert depth_command(model, source, tmp_path / "depth", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("polydit: ")]
    assert message in line
    if case in ("weights", "settings", "numbers"):
        assert "--model" in line
        with pytest.raises(PolyditError, match=f"--depth {depth_network}"):
            open_depth(depth_network)


def test_a_picture_without_a_depth_map_leaves_the_others_alone(pipe, tmp_path, capsys, monkeypatch):
    pipe.save_pretrained(tmp_path / "weights")
    for name in ("in", "maps"):
        (tmp_path / name).mkdir()
        Image.fromarray(disc(30)).save(tmp_path / name / "b.png")
    Image.fromarray(disc(30)).save(tmp_path / "in" / "a.png")
    words = ["--weights", tmp_path / "weights", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    words += ["--depth", tmp_path / "maps"]
    assert main(["segmentation", "predict", *map(str, words)]) == 2
    assert "polydit: a.png: --depth" in capsys.readouterr().err
    assert (tmp_path / "out" / "b_alpha.png").exists()
    monkeypatch.setattr(pdfnet_pipeline, "_source", lambda *_: lambda *_: np.full((4, 4), np.nan))
    picture, generator = np.zeros((9, 9, 3), np.uint8), torch.Generator()
    with pytest.raises(PolyditError, match=r"cat.jpg: its depth holds NaN"):
        segment(pipe, picture, Path("cat.jpg"), options(depth="maps"), generator)


# -- module ------------------------------------------------------------------------------------------------


def test_settings_are_checked():
    for words, says in (
        ({"backbone": torch.nn.Linear(1, 1)}, "no PDFNet"),
        ({"backbone": tiny()}, "refine_depth: true"),
        ({"backbone": tiny(), "depth_weight": 0.0, "side": 33}, "multiple of 32"),
    ):
        with pytest.raises(PolyditError, match=says):
            PDFNetSegmentation(**words)


def test_all_that_is_trained_gets_a_gradient_and_depth_can_be_left_out():
    module = PDFNetSegmentation(tiny(refine_depth=True), side=32, drop_depth=1.0)
    mask = (torch.rand(2, 1, 32, 32) > 0.5).float()
    batch = {"picture": torch.rand(2, 3, 32, 32), "mask": mask, "depth": mask, "depth_target": mask}
    seen = []
    module.backbone.register_forward_pre_hook(lambda _, words: seen.append(words[1]))
    sum(module.losses(batch)[0].values()).backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    module.losses(batch, first=0)
    assert seen[0].abs().sum() == 0  # dropped in training
    assert torch.equal(seen[1], mask)  # never in validation


def test_from_a_config_to_a_mask(dis, tmp_path, monkeypatch, capsys):
    """fit, resume, load the pipeline that it leaves, predict: the commands that the README shows."""

    monkeypatch.chdir(tmp_path)
    config = Path(polydit.__file__).parent / "configs/segmentation/pdfnet_small.yaml"
    network = {"embed_dim": 8, "widths": [8] * 4, "depths": [0] * 4, "strides": [2] * 4, "tiles": 2}
    data = {"path": "DIS5K", "layout": "dis5k", "size": 32, "batch_size": 2, "num_workers": 0}
    words = ["segmentation", "fit", "--config", str(config), "--name", "run", "--trainer.accelerator=cpu"]
    words += [f"--model.init_args.backbone.init_args.{name}={value}" for name, value in network.items()]
    words += [f"--data.init_args.{name}={value}" for name, value in data.items()]
    words += ["--model.init_args.side=32", "--trainer.val_check_interval=2"]
    assert main([*words, "--trainer.max_steps=2"]) == 0
    assert main([*words, "--trainer.max_steps=4", "--ckpt_path=last"]) == 0
    picture = next((dis / "DIS-VD" / "images").iterdir())
    saved = ["--weights", "runs/segmentation/run/pipeline", "--input", str(picture), "--output", "out"]
    assert main(["segmentation", "predict", *saved]) == 0
    assert Image.open(tmp_path / "out" / f"{picture.stem}_alpha.png").size == (40, 40)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "none" in json.dumps(
        results
    )  # it was trained without depth now and then, and says that it had none


def test_data_module_names_what_is_missing(tmp_path):
    with pytest.raises(PolyditError, match="no such folder"):
        DepthSegmentationData(str(tmp_path / "nowhere")).setup()
