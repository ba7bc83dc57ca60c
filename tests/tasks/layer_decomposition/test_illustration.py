"""Illustration layers: their code, drawing, losses, pipeline and predict."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from polydit.core.alpha import over
from polydit.core.conditioning import LayerStackDiT
from polydit.core.data.corpus.illustrations import LAYERS, compose
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.core.load import load
from polydit.core.media import OutputWriter, read_layers, write_layers
from polydit.tasks.layer_decomposition.cartoons import cel_shading, draw_cartoon
from polydit.tasks.layer_decomposition.illustration import (
    ROLES,
    LayerCode,
    hints,
    leaky_clamp,
    recompose_code,
    shown,
)
from polydit.tasks.layer_decomposition.illustration_baseline import classical_layers
from polydit.tasks.layer_decomposition.illustration_data import (
    IllustrationData,
    Illustrations,
    illustration_files,
    resized,
    settled,
    two_tone,
    visible,
)
from polydit.tasks.layer_decomposition.illustration_evaluate import (
    compose_layers,
    evaluate_illustrations,
    score,
)
from polydit.tasks.layer_decomposition.illustration_losses import (
    flat_loss,
    iou_loss,
    layer_losses,
    line_loss,
    shading_loss,
)
from polydit.tasks.layer_decomposition.illustration_model import IllustrationLayers
from polydit.tasks.layer_decomposition.illustration_pipeline import (
    IllustrationLayersPipeline,
    as_stack,
    to_paper,
)
from polydit.tasks.layer_decomposition.illustration_predict import predict_illustration
from polydit.tasks.layer_decomposition.predict import PREDICTORS, USES, predict_one


def cartoon(seed: int = 0, side: int = 48) -> np.ndarray:
    return draw_cartoon(np.random.default_rng(seed), side)


def as_tensor(layers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(layers).permute(3, 0, 1, 2)[None]


def backbone(**options) -> LayerStackDiT:
    torch.manual_seed(0)
    settings = {
        "roles": list(ROLES), "composite": False, "condition_group": False, "local_affine": True,
        "input_size": 32, "patch_size": 8, "in_channels": 7, "out_channels": 4, "hidden_size": 24, "depth": 1,
        "num_heads": 1, "position": "rope", "gate_init": 0.5, **options,
    }  # fmt: skip
    net = LayerStackDiT(**settings)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


def module(**options) -> IllustrationLayers:
    return IllustrationLayers(backbone(), Objective(prediction="x0", loss="l1"), iou_weight=0.5, **options)


# -- layers and their code -----------------------------------------------------------------------------------


def test_black_multiplied_and_white_screened_are_black_and_white_laid_over():
    below = torch.rand(3, 8, 8, dtype=torch.float64)
    alpha = torch.rand(1, 8, 8, dtype=torch.float64)
    for value, mode in ((0.0, "multiply"), (1.0, "screen")):
        layer = torch.cat([torch.full_like(below, value), alpha])
        assert (over(layer, below, mode) - over(layer, below)).abs().max() < 1e-6


def test_the_code_comes_back_and_recomposes_exactly():
    layers = cartoon()
    code = LayerCode.encode(as_tensor(layers))
    assert code.abs().max() <= 1
    back = LayerCode.decode(code)[0]
    alpha = as_tensor(layers)[0, 3:]
    assert ((back - as_tensor(layers)[0]).abs() * alpha).max() < 1e-5
    picture = recompose_code(code)[0].permute(1, 2, 0).numpy()
    assert np.abs(picture - compose(tuple(layers))).max() < 1e-6
    stack = as_stack(as_tensor(layers)[0].transpose(0, 1))
    assert (
        np.abs(stack.composite().astype(float) - 255 * picture).max() <= 1.51
    )  # layers are rounded to 8 bits
    assert tuple(layer.blend_mode for layer in stack.layers) == tuple(mode for _, mode in LAYERS)


def test_recomposition_is_differentiable_in_every_alpha():
    code = LayerCode.encode(as_tensor(cartoon(3))).requires_grad_()
    recompose_code(code).sum().backward()
    assert (code.grad[0, 3].abs().amax((1, 2)) > 0).all()


def test_leaky_clamp():
    values = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    out = leaky_clamp(values, 0.1)
    assert out.tolist() == pytest.approx([-1.2, -0.5, 0.5, 1.2])
    out.sum().backward()
    assert values.grad.tolist() == pytest.approx([0.1, 1, 1, 0.1])


# -- drawing -------------------------------------------------------------------------------------------------


def test_cartoons_are_layers_and_a_function_of_their_seed():
    layers = cartoon(1, 64)
    assert layers.shape == (4, 64, 64, 4)
    assert np.array_equal(layers, cartoon(1, 64))
    assert not np.array_equal(layers, cartoon(2, 64))
    means = np.mean([cartoon(seed)[..., 3].mean((1, 2)) for seed in range(12)], axis=0)
    assert (means > 0.005).all()  # every layer is there
    assert layers.min() >= 0
    assert layers.max() <= 1 + 1e-6
    assert not layers[1, ..., :3].any()
    assert (layers[2, ..., :3] == 1).all()


def test_cel_shading_lies_on_the_figure_and_not_on_itself():
    for seed in range(4):
        alpha = np.zeros((64, 64), np.float32)
        alpha[8:56, 8:56] = 1
        shadow, highlight = cel_shading(np.random.default_rng(seed), alpha, np.zeros_like(alpha))
        assert not shadow[alpha == 0].any()
        assert not highlight[alpha == 0].any()
        assert not ((shadow >= 0.02) & (highlight > 0)).any()
        assert max(shadow.max(), highlight.max()) < 0.9


def test_two_tones_and_what_can_be_seen():
    ramp = np.linspace(0, 0.5, 100, dtype=np.float32)[None].repeat(4, 0)
    tone = two_tone(ramp)
    assert not tone[ramp < 0.1].any()
    assert np.unique(tone[ramp > 0.15]).size == 1
    assert not two_tone(ramp * 0.1).any()
    flat = np.ones((1, 3, 4), np.float32)
    flat[0, 0, :3], flat[0, 1, :3] = 0, 0.5
    shadow, highlight = visible(flat, np.ones((1, 3)), np.ones((1, 3)))
    assert (shadow.tolist(), highlight.tolist()) == ([[0, 1, 1]], [[1, 1, 0]])


def framed() -> np.ndarray:
    """White paper; a black frame, whose inside is paper in the file; beside it white colour without an outline."""
    layers = np.zeros((4, 32, 32, 4), np.float32)
    layers[3, 4:20, 4:20, 3] = 1
    layers[3, 6:18, 6:18, 3] = 0
    layers[0, 24:30, 24:30] = 1
    return layers


def test_white_is_paper_if_it_reaches_the_border():
    layers = framed()
    found = settled(layers)
    assert np.array_equal(compose(tuple(found)), compose(tuple(layers)))  # the picture is what it was
    assert found[0, 12, 12].tolist() == [1, 1, 1, 1]
    assert found[0, 27, 27, 3] == 0
    assert found[0, 2, 2, 3] == 0


def test_hints_say_outside_and_thin_dark():
    picture = torch.from_numpy(compose(tuple(framed()))).permute(2, 0, 1)[None].float() * 2 - 1
    outside, ridge = hints(picture, 5)[0]
    assert (outside[2, 2], outside[27, 27], outside[12, 12], outside[4, 4]) == (1, 1, -1, -1)
    assert (ridge[12, 4], ridge[12, 12]) == (1, -1)  # black on white; nothing
    assert hints(picture, 1)[0, 1].max() == -1  # a closing of one pixel fills nothing
    assert shown(picture, 5).shape[1] == 5
    assert torch.equal(shown(picture, 3), picture)
    assert (shown(picture, 0)[:, 3] == 1).all()


def test_resizing_averages_what_is_seen():
    layers = np.zeros((1, 2, 2, 4), np.float32)
    layers[0, 0, 0] = (1, 0, 0, 1)
    layers[0, 0, 1] = (0, 1, 0, 0)  # green that nobody sees
    assert resized(layers, 1)[0, 0, 0].tolist() == pytest.approx([1, 0, 0, 0.25])


# -- data ----------------------------------------------------------------------------------------------------


def folder_of_layers(root: Path, count: int = 24) -> Path:
    for number in range(count):
        layers = cartoon(number, 40)
        writer = OutputWriter(root / f"drawing{number}")
        write_layers(writer, "d", as_stack(as_tensor(layers)[0].transpose(0, 1)))
    return root


def test_folders_of_layers_are_split_and_read(tmp_path):
    root = folder_of_layers(tmp_path)
    train, val = (illustration_files(root, split) for split in ("train", "val"))
    assert len(train) + len(val) == 24
    assert not set(train) & set(val)
    data = Illustrations(train, 32, 10, drawn=0.0, largest=40, seed=1)
    sample = data[3]["layers"]
    assert sample.shape == (4, 4, 32, 32)
    assert torch.equal(sample, Illustrations(train, 32, 10, drawn=0.0, largest=40, seed=1)[3]["layers"])
    with pytest.raises(PolyditError, match="polydit corpus build"):
        illustration_files(tmp_path / "nothing", "train")


def test_the_data_module_draws_without_files():
    data = IllustrationData(side=32, drawn=1.0, batch_size=2, num_workers=0, held_out=2)
    data.setup()
    assert next(iter(data.val_dataloader()))["layers"].shape == (2, 4, 4, 32, 32)
    with pytest.raises(PolyditError, match=r"data\.drawn"):
        IllustrationData(drawn=1.5)


# -- losses --------------------------------------------------------------------------------------------------


def test_true_layers_cost_nothing_and_each_loss_sees_its_own_fault():
    true = LayerCode.encode(as_tensor(cartoon(5)))
    perfect = layer_losses(true, true)
    stray = perfect.pop("line")  # its rim below 0.02 counts as ground
    assert stray.item() < 1e-3
    # Noise of 8-bit edges aside, only varying plain areas cost.
    assert all(value.item() < 1e-6 for value in perfect.values())
    for role in ROLES:
        faulty = true.clone()
        faulty[:, 3, ROLES.index(role)] = -true[:, 3, ROLES.index(role)]
        losses = layer_losses(faulty, true)
        worse = {name for name in ROLES if losses[name].item() > 0.05}
        assert worse == {role}
        assert losses["iou"].item() > 0.05


def test_a_layer_that_is_there_weighs_more_than_one_that_is_not():
    true = torch.zeros(1, 4, 4, 16, 16)
    true[:, 3] = -1.0  # alphas of zero
    true[:, 3, 0] = 1.0  # the flat colours are there

    def cost(role, value):
        faulty = true.clone()
        faulty[:, 3, role] = value
        return layer_losses(faulty, true)["iou"].item()

    whole = iou_loss(torch.ones(1, 16, 16), torch.zeros(1, 16, 16)).item()
    assert cost(0, -1.0) == pytest.approx(whole / 1.6)  # weights 1, .2, .2, .2
    assert cost(2, 1.0) == pytest.approx(0.2 * whole / 1.6)


def test_loss_closed_forms():
    half, whole = torch.full((1, 1, 10, 10), 0.5), torch.ones(1, 1, 10, 10)
    assert iou_loss(half, whole).item() == pytest.approx(1 - 50.2 / 100.2)  # with its floor
    assert iou_loss(0 * half, 0 * half).item() == 0
    flat = torch.zeros(1, 8, 8)
    assert line_loss(flat + 0.5, flat).item() == pytest.approx(1.0)  # L1 and stray; no edges
    assert line_loss(flat + 0.5, flat + 1).item() == pytest.approx(0.5)
    assert shading_loss(flat + 0.5, flat).item() == pytest.approx(1.0)  # L1 and low frequencies
    assert shading_loss(flat - 0.5, flat).item() == pytest.approx(1.5)  # and below zero
    wavy = torch.zeros(1, 4, 4, 4)
    wavy[..., ::2] = 0.3
    plain = torch.zeros(1, 4, 4, 4)
    assert flat_loss(wavy, plain).item() == pytest.approx(0.15 + 0.3)
    assert flat_loss(wavy, wavy).item() == 0


# -- model, pipeline, predict --------------------------------------------------------------------------------


def test_training_reaches_every_weight_and_falls():
    net = module()
    batch = {"layers": torch.cat([as_tensor(cartoon(seed, 32)) for seed in range(2)])}
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    first = last = None
    for _ in range(12):
        torch.manual_seed(0)
        terms, _ = net.losses(batch)
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert set(terms) == {"objective", *ROLES, "recomposition", "iou"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert last < first


def test_the_losses_of_a_velocity_fade_out_at_noise():
    net = IllustrationLayers(backbone(), Objective(prediction="velocity"), iou_weight=0.5)
    batch = {"layers": as_tensor(cartoon(1, 32))}
    output = net.objective(lambda x, t: torch.zeros_like(x), net.target(batch), t=torch.tensor([1.0]))
    assert all(value.item() == 0 for value in net.extra_losses(batch, output).values())


def test_a_backbone_of_other_layers_is_refused():
    with pytest.raises(PolyditError, match="composite false"):
        IllustrationLayers(backbone(composite=True))


def test_pipeline_sizes_and_seeds(tmp_path):
    pipe = module().build_pipeline()
    picture = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    made = pipe(picture, generator=torch.Generator().manual_seed(1), size=64)
    assert made.layers.shape == (1, 4, 4, 37, 50)
    assert made.blend_modes == ("normal", "multiply", "screen", "normal")
    again = pipe(picture, generator=torch.Generator().manual_seed(1), size=64)
    assert torch.equal(made.layers, again.layers)
    smaller = pipe(
        picture, generator=torch.Generator().manual_seed(1), size=32
    )  # seen smaller, answered whole
    assert smaller.layers.shape == made.layers.shape
    pipe.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, IllustrationLayersPipeline)
    same = loaded(picture, generator=torch.Generator().manual_seed(1), size=64).layers
    torch.testing.assert_close(same, made.layers, atol=1e-4, rtol=0)
    clear = np.dstack([picture, np.zeros((37, 50), np.uint8)])
    white = np.full_like(picture, 255)
    a, b = (pipe(p, generator=torch.Generator().manual_seed(1), size=64).layers for p in (clear, white))
    assert torch.equal(a, b)  # transparency is paper
    with pytest.raises(PolyditError, match="--size"):
        pipe(picture, size=8)
    with pytest.raises(PolyditError, match="uint8"):
        pipe(picture[..., 0])


@pytest.mark.parametrize("width", [3, 7, 29])
def test_the_closing_of_the_hints_is_the_one_by_squares(width):
    picture = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1
    luma = (picture * torch.tensor([0.2126, 0.7152, 0.0722]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    grown = F.max_pool2d(luma, width, 1, width // 2)
    closed = -F.max_pool2d(-grown, width, 1, width // 2)
    assert torch.equal(hints(picture, width)[:, 1:], closed - luma - 1)


def test_pictures_of_16_bits_are_as_in_a_file(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert torch.equal(to_paper(Image.open(tmp_path / "ramp.png")), to_paper(tmp_path / "ramp.png"))
    assert to_paper(Image.open(tmp_path / "ramp.png")).mean().abs() < 0.01


def test_a_network_with_hints_runs_at_every_size():
    pipe = IllustrationLayers(backbone(in_channels=9), Objective(prediction="x0")).build_pipeline()
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    for size in (32, 64):
        made = pipe(picture, generator=torch.Generator().manual_seed(0), size=size)
        assert made.layers.shape == (1, 4, 4, 40, 56)
        assert torch.isfinite(made.layers).all()


def test_without_local_maps_the_layers_are_enlarged():
    net = backbone(local_affine=False)
    pipe = IllustrationLayers(net, Objective(prediction="x0")).build_pipeline()
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    assert pipe(picture, generator=torch.Generator().manual_seed(0), size=32).layers.shape == (
        1,
        4,
        4,
        40,
        56,
    )


def test_predict_writes_layers_that_make_the_composite(tmp_path):
    Image.fromarray((255 * compose(tuple(cartoon(2, 40)))).astype(np.uint8)).save(tmp_path / "cat.png")
    pipe = module().build_pipeline()
    options = Namespace(mask=None, steps=None, size=None, export="zip")
    writer = OutputWriter(tmp_path / "out")
    record = predict_illustration(pipe, tmp_path / "cat.png", writer, options, torch.Generator())
    names = {f"cat_{role}.png" for role in ROLES} | {"cat_composite.png", "cat_layers.json", "cat.zip"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(record["files"]) == names
    stack = read_layers(tmp_path / "out" / "cat_layers.json")
    composite = np.array(Image.open(tmp_path / "out" / "cat_composite.png"))
    assert np.array_equal(stack.composite(), composite)
    for option, value in (("mask", Path("x.png")), ("layers", 9), ("prompt", "a cat")):
        with pytest.raises(PolyditError, match=f"--{option}: these weights do not use it"):
            predict_one(pipe, tmp_path / "cat.png", writer, Namespace(**{option: value}), torch.Generator())


def test_every_kind_of_weights_says_which_options_it_uses():
    assert USES.keys() == PREDICTORS.keys()
    assert {name for used in USES.values() for name in used} >= {"mask", "size", "layers", "prompt"}


# -- figures -------------------------------------------------------------------------------------------------


def test_scores_of_true_and_of_missing_layers():
    true = cartoon(7, 48)
    perfect = score(true, true)
    assert perfect["iou"] == pytest.approx(1, abs=1e-6)
    assert (perfect["flat_l1"], perfect["recomposition"], perfect["order_l1"]) == (0, 99, 0)
    missing = true.copy()
    missing[3, ..., 3] = 0
    figures = score(missing, true)
    assert figures["iou_line"] == 0
    assert figures["iou"] < perfect["iou"]
    none = true.copy()
    none[1, ..., 3] = 0
    assert score(true, none)["stray_shadow"] == pytest.approx(true[1, ..., 3].mean())


def test_the_classical_baseline_finds_lines_and_colours():
    layers = np.zeros((4, 64, 64, 4), np.float32)
    layers[0, 10:54, 10:54] = (0.9, 0.3, 0.2, 1)
    layers[3, 8:56, 8:56, 3] = 1
    layers[3, 11:53, 11:53, 3] = 0
    found = classical_layers(compose_layers(layers).astype(np.float32) / 255)
    figures = score(found, layers)
    assert figures["iou_flat"] > 0.85
    assert figures["iou_line"] > 0.8
    assert figures["flat_l1"] < 0.05


def test_evaluation_of_a_folder(tmp_path):
    root = folder_of_layers(tmp_path, 24)
    count = len(illustration_files(root, "val"))
    rows, shown = evaluate_illustrations(module().build_pipeline(), root, 50, 40, sheet=1)
    assert len(rows["network"]) == len(rows["classical"]) == count
    assert len(shown) == 3
    assert all(np.isfinite(row["iou"]) for row in rows["network"])
