"""General stacks in pixel space: data, training, pipeline, and the commands."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from layer_scenes import wake

import polydit
from polydit.core.alpha import composite
from polydit.core.cli import main
from polydit.core.conditioning import LayerStackDiT, Position
from polydit.core.diffusion import Objective, Terminal
from polydit.core.errors import PolyditError
from polydit.core.media import LayerStack, OutputWriter, PictureLayer, read_layers, write_layers
from polydit.tasks.layer_decomposition.composed_stacks import (
    ComposedStackData,
    ComposedStacks,
    compositor_of,
    foot,
    visibility,
)
from polydit.tasks.layer_decomposition.illustration import LayerCode
from polydit.tasks.layer_decomposition.pixel_stack_evaluate import compose, score, trivial_stacks
from polydit.tasks.layer_decomposition.pixel_stack_model import PixelStackTraining, recompose_stack
from polydit.tasks.layer_decomposition.pixel_stack_pipeline import PixelStackPipeline
from polydit.tasks.layer_decomposition.stack_data import Stacks

CONFIG = Path(polydit.__file__).parent / "configs/layer_decomposition/layer_stack_small.yaml"
CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true")


def backbone(**options) -> LayerStackDiT:
    torch.manual_seed(0)
    return LayerStackDiT(
        **{
            "composite": False, "local_affine": True, "input_size": 32, "patch_size": 8, "in_channels": 7,
            "out_channels": 4, "hidden_size": 24, "depth": 2, "num_heads": 1, "position": "rope", "norm": "none",
            "qk_norm": "rms", "modulation": "adaln_single", "gate_init": 0.5, **options,
        },
    )  # fmt: skip


def module(net: LayerStackDiT | None = None, **options) -> PixelStackTraining:
    one_step = Objective(prediction="x0", timesteps=Terminal())
    return PixelStackTraining(wake(backbone()) if net is None else net, one_step, ema=None, **options)


def squares(numbers: range, side: int = 16) -> torch.Tensor:
    """Two squares of any light colour on a plain dark ground, the lower one above: (B, 4, 3, side, side)."""
    stacks = []
    for number in numbers:
        rng = np.random.default_rng(number)
        layers = np.zeros((3, side, side, 4), np.float32)
        layers[..., :3] = rng.uniform(0, 0.4, (3, 1, 1, 3))
        layers[1:, ..., :3] += 0.6
        layers[0, ..., 3] = 1
        for layer, top in zip(layers[1:], (0, side // 2), strict=True):
            y, x = top + int(rng.integers(3)), int(rng.integers(side // 2))
            layer[y : y + 6, x : x + 6, 3] = 1
        stacks.append(layers)
    return torch.from_numpy(np.stack(stacks)).permute(0, 4, 1, 2, 3).contiguous()


# -- data ----------------------------------------------------------------------------------------------------


def test_what_is_seen_of_each_layer():
    alphas = torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1).expand(3, 2, 2)
    assert visibility(alphas)[:, 0, 0].tolist() == [0.375, 0.75, 1.0]
    layer = torch.zeros(4, 8, 8)
    assert foot(layer) == -1
    layer[3, 2:5] = 1
    assert foot(layer) == 4


def test_stacks_are_composed_in_order_and_repeat(corpus: Path):
    stacks = ComposedStacks(compositor_of(corpus, "train", 48), 100, (2, 4), bank=12, seed=3)
    for index in range(6):
        layers = stacks.sample(index, 4)["layers"]
        assert torch.equal(layers, stacks.sample(index, 4)["layers"])
        assert layers.shape == (4, 4, 48, 48)
        assert (layers[3, 0] == 1).all()
        feet = [foot(layer) for layer in layers[:, 1:].unbind(1)]
        assert feet == sorted(feet)
    batches = [stacks.__getitems__(list(range(first, first + 3))) for first in range(0, 30, 3)]
    counts = [{sample["layers"].shape[1] for sample in batch} for batch in batches]
    assert all(len(count) == 1 for count in counts)
    assert set.union(*counts) == {2, 3, 4}


def test_the_data_module_and_what_it_refuses(corpus: Path):
    data = ComposedStackData(
        str(corpus), side=32, layers=(3, 3), batch_size=2, bank=4, held_out=3, num_workers=0
    )
    data.setup()
    assert next(iter(data.val_dataloader()))["layers"].shape == (2, 4, 3, 32, 32)
    for options, message in (
        ({"layers": (3, 2)}, r"data\.layers \[3, 2\]"),
        ({"side": 8}, r"data\.side 8"),
        ({"bank": 0}, r"data\.bank 0"),
    ):
        with pytest.raises(PolyditError, match=message):
            ComposedStackData(str(corpus), **options)
    with pytest.raises(PolyditError, match="polydit corpus build"):
        ComposedStackData(str(corpus / "nothing")).setup()


# -- the model -----------------------------------------------------------------------------------------------


def test_the_small_config_has_the_positions_of_the_scheme():
    options = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["backbone"]["init_args"]
    net = LayerStackDiT(**options)
    assert sum(parameter.numel() for parameter in net.parameters()) == 523_200
    picture, t = torch.zeros(1, 3, 64, 64), torch.ones(1)
    for count in (1, 3, 9):  # the weights do not know how many
        groups = net.groups(torch.zeros(1, 4, count, 64, 64), t, picture)
        assert [group.position.group for group in groups] == [*range(1, count + 1), -1]
    with_composite = LayerStackDiT(**{**options, "composite": True})
    groups = with_composite.groups(torch.zeros(1, 4, 3, 64, 64), t, picture)
    assert [group.position.group for group in groups] == [0, 1, 2, -1]


def without_places(net: LayerStackDiT) -> LayerStackDiT:
    """All layers on one place of the group axis."""
    made = net.groups

    def groups(*args, **options):
        found = made(*args, **options)
        return [
            group if group.name == "condition" else replace(group, position=Position(1)) for group in found
        ]

    net.groups = groups
    return net


@torch.no_grad()
def test_layers_differ_by_their_positions_alone():
    net = wake(backbone(), amount=0.3).eval()
    x, t, picture = torch.zeros(2, 4, 3, 32, 32), torch.full((2,), 1000.0), torch.rand(2, 3, 32, 32)
    apart = net(x, t, picture).sample
    assert (apart[:, :, 1:] - apart[:, :, :1]).abs().amax((0, 1, 3, 4)).min() > 1e-2
    same = without_places(net)(x, t, picture).sample
    torch.testing.assert_close(same, same[:, :, :1].expand_as(same), atol=1e-4, rtol=0)


def test_targets_are_codes_and_their_picture_is_the_composite():
    layers = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers[:, 3, 1, :8] = 0
    batch = {"layers": layers}
    net = module()
    code = net.target(batch)
    assert not code[:, :3, 1, :8].any()  # colours that nobody sees
    true = composite(list(layers.unbind(2)), backdrop=torch.ones(2, 3, 32, 32))
    torch.testing.assert_close(recompose_stack(code), true, atol=1e-5, rtol=0)
    torch.testing.assert_close((net.condition(batch)["picture"] + 1) / 2, true, atol=1e-5, rtol=0)
    back = LayerCode.decode_plain(code)
    assert ((back - layers).abs() * layers[:, 3:]).max() < 1e-3  # an alpha of a thousandth is none
    whole = module(wake(backbone(composite=True)))
    assert torch.equal(whole.target(batch)[:, :, 1:], code)
    torch.testing.assert_close(whole.target(batch)[:, :3, 0], 2 * true - 1, atol=1e-5, rtol=0)
    assert whole.element_weight(batch).shape == (2, 1, 4, 32, 32)


def test_hidden_parts_have_a_weight_of_their_own_and_the_truth_costs_nothing():
    layers = squares(range(2), 32)
    batch = {"layers": layers}
    net = module(hidden_weight=0.25)
    weight = net.element_weight(batch)
    above = layers[:, 3, 1:].amax(1)
    assert (weight[:, 0, 0][above == 1] == 0.25).all()
    assert (weight[:, 0, 0][above == 0] == 1).all()
    assert (weight[:, 0, 2] == 1).all()
    terms, output = net.losses(batch)
    assert set(terms) == {"objective", "iou", "recomposition"}
    assert all(term > 0 for term in terms.values())
    output.x0 = net.target(batch)
    assert all(term < 1e-5 for term in net.extra_losses(batch, output).values())
    assert not module(iou_weight=0, recomposition_weight=0).extra_losses(batch, output)


def learned(places: bool) -> dict[str, float]:
    """Figures on squares that were not trained on, after some steps with or without places of the layers."""
    net = backbone(input_size=16, patch_size=4, hidden_size=32, num_heads=2)
    model = module(net if places else without_places(net))
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(60):
        terms, _ = model.losses({"layers": squares(range(16 * step, 16 * step + 16))})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    pipe = model.build_pipeline()
    rows = []
    for layers in squares(range(10_000, 10_024)).transpose(1, 2):
        made = pipe(2 * composite(list(layers), backdrop=torch.ones(3, 16, 16)) - 1, layers=3, size=32)
        rows.append(score(made.layers[0], layers))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def test_positions_are_what_the_order_is_learned_by():
    with_places, without = learned(True), learned(False)
    assert with_places["in_order"] > 0.8
    assert without["in_order"] == 0  # all layers are alike
    assert with_places["object_iou"] > without["object_iou"] + 0.2


def test_folders_of_layers_train_it_too(tmp_path: Path):
    stack = squares(range(1), 32)[0].transpose(0, 1)
    parts = [
        PictureLayer(f"layer {n}", (layer * 255).byte().permute(1, 2, 0).numpy())
        for n, layer in enumerate(stack)
    ]
    write_layers(OutputWriter(tmp_path), "x", LayerStack(32, 32, parts))
    crop = Stacks([tmp_path / "x_layers.json"], side=32)[0]["layers"][None]
    terms, output = module().losses({"layers": crop})
    assert output.x0.shape == (1, 4, 3, 32, 32)
    assert all(torch.isfinite(term) for term in terms.values())


def test_backbones_that_do_not_fit_are_refused():
    for options in ({"roles": ["a", "b"]}, {"in_channels": 8, "out_channels": 5}, {"in_channels": 9}):
        with pytest.raises(PolyditError, match=r"model\.backbone: give a LayerStackDiT without roles"):
            module(backbone(**options))
    with pytest.raises(PolyditError, match=r"model\.autoencoder: this model works on pixels"):
        module(autoencoder=torch.nn.Identity())


# -- the pipeline --------------------------------------------------------------------------------------------


def test_a_pipeline_of_any_size_and_number_is_saved_and_loaded(tmp_path: Path):
    pipe = module().build_pipeline()
    assert pipe.config.size == 32
    picture = np.random.default_rng(0).integers(0, 256, (37, 90, 3), dtype=np.uint8)
    for count in (1, 3, 7):  # seven were never seen
        made = pipe(picture, layers=count, generator=torch.Generator().manual_seed(1)).layers
        assert made.shape == (1, count, 4, 37, 90)
        assert 0 <= made.min() <= made.max() <= 1
    pipe.save_pretrained(tmp_path)
    loaded = polydit.load(tmp_path)
    assert isinstance(loaded, PixelStackPipeline)
    again = loaded(picture, layers=7, generator=torch.Generator().manual_seed(1)).layers
    torch.testing.assert_close(again, made, atol=1e-4, rtol=0)
    wrong = {"layers": "--layers 0", "size": "--size 0", "num_inference_steps": "--steps 0"}
    for option, message in wrong.items():
        with pytest.raises(PolyditError, match=message):
            pipe(picture, **{option: 0})


def test_at_the_size_that_it_sees_the_pipeline_gives_what_the_module_predicts():
    for net in (
        wake(backbone()),
        wake(backbone(composite=True)),
        wake(backbone(in_channels=4, local_affine=False)),
    ):
        model = module(net)
        batch = {"layers": squares(range(1), 32)}
        picture = model.condition(batch)["picture"]
        noise = torch.randn(model.target(batch).shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            code = model.denoise(noise, torch.tensor([1000.0]), {"picture": picture})
        expected = LayerCode.decode_plain(code[:, :, -3:].clamp(-1, 1))
        made = model.build_pipeline()(picture, layers=3, generator=torch.Generator().manual_seed(2)).layers
        torch.testing.assert_close(made.transpose(1, 2), expected, atol=1e-4, rtol=0)


def test_without_local_maps_layers_are_enlarged():
    pipe = module(wake(backbone(local_affine=False))).build_pipeline()
    assert pipe(np.zeros((50, 70, 3), np.uint8), layers=2).layers.shape == (1, 2, 4, 50, 70)


# -- figures -------------------------------------------------------------------------------------------------


def test_the_truth_gets_full_marks_and_trivial_stacks_do_not():
    true = squares(range(3), 32)[2].transpose(0, 1).contiguous()
    perfect = score(true, true)
    assert perfect["order_iou"] == pytest.approx(1, abs=1e-6)
    assert perfect["object_iou"] == pytest.approx(1, abs=1e-6)
    assert (perfect["order_l1"], perfect["in_order"], perfect["hidden"], perfect["recomposition"]) == (
        0,
        1,
        99,
        99,
    )
    assert score(true[[0, 2, 1]], true)["in_order"] == 0
    for stack in trivial_stacks(compose(true), 3).values():
        figures = score(stack, true)
        assert figures["object_iou"] < 0.1
        assert (figures["in_order"], figures["recomposition"]) == (0, 99)


# -- commands ------------------------------------------------------------------------------------------------


def test_the_small_config_is_trained_and_used_by_the_commands(
    corpus: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["layer-decomposition", "fit", "--config", "layer_stack_small.yaml", "--name", "one", *CPU]
    data = {"path": corpus, "batch_size": 2, "bank": 4, "held_out": 2, "num_workers": 0}
    words += [f"--data.init_args.{name}={value}" for name, value in data.items()]
    assert main([*words, "--trainer.max_steps=1"]) in (0, None)
    saved = ["--weights", "runs/layer_decomposition/one/pipeline", "--device", "cpu"]

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save("p.png")
    predict = ["layer-decomposition", "predict", *saved, "--input", "p.png", "--output"]
    assert main([*predict, "out", "--layers", "3", "--export", "ora"]) == 0
    names = {f"p_layer-{number}.png" for number in (1, 2, 3)} | {"p_composite.png", "p_layers.json", "p.ora"}
    assert names <= {file.name for file in Path("out").iterdir()}
    stack = read_layers("out/p_layers.json")
    assert (stack.width, stack.height, len(stack.layers)) == (70, 50, 3)
    assert np.array_equal(stack.composite(), np.array(Image.open("out/p_composite.png")))

    capsys.readouterr()
    evaluate = [
        "layer-decomposition",
        "evaluate",
        *saved,
        "--input",
        str(corpus),
        "--count",
        "3",
        "--side",
        "48",
    ]
    assert main([*evaluate, "--output", "figures.json", "--sheet", "sheet.png"]) == 0
    assert "in the right order" in capsys.readouterr().out
    assert Path("figures.json").is_file()
    assert Path("sheet.png").is_file()

    for wrong, message in (
        (["--layers", "0"], "--layers"),
        (["--mask", "p.png"], "--mask: these weights do not use it (PixelStackPipeline)"),
        (["--prompt", "a cat"], "--prompt: these weights do not use it (PixelStackPipeline)"),
    ):
        assert main([*predict, "wrong", *wrong]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
    assert main(["segmentation", "predict", *saved, "--input", "p.png", "--output", "wrong"]) == 2
    assert "layer-decomposition" in capsys.readouterr().err
