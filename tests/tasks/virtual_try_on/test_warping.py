"""Copying from the garment: what drawn scenes know of it, the start, the caches, what is learned and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch.utils.data import default_collate

import polydit
from polydit.core.adapters import LoraOptions
from polydit.core.cli import main
from polydit.core.conditioning import KeyValueCache, TokenGroupDiT
from polydit.core.diffusion import Objective, Shifted
from polydit.core.errors import PolyditError
from polydit.tasks.virtual_try_on.data import DrawnPairs
from polydit.tasks.virtual_try_on.distillation import DistilledTryOn
from polydit.tasks.virtual_try_on.model import TokenGroupTryOn
from polydit.tasks.virtual_try_on.synthetic.sources import ProceduralSources
from polydit.tasks.virtual_try_on.warp_model import WarpingTryOn
from polydit.tasks.virtual_try_on.warping import (
    ABSENT,
    WarpingTokenGroupDiT,
    compose,
    own_places,
    warp_losses,
)

CONFIGS = Path(polydit.__file__).parent / "configs/virtual_try_on"
SMALL = {
    "conditions": {"person": "shared", "garment": "beside"}, "input_size": [16, 16], "patch_size": 4, "in_channels": 3,
    "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": None, "position": "rope", "gate_init": 0.5,
}  # fmt: skip
WARP = {"warp_width": 16, "warp_heads": 2}
LAYERS = ["attn.qkv", "mlp.fc1"]


def drawn(size, count, split="train"):
    pairs = DrawnPairs(size, ProceduralSources(), split=split, distinct=count, mask="body")
    return default_collate([pairs[number] for number in range(count)])


def awake(model):
    """Random weights where the initialisation has zeros, so that every path is open."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture
def dit():
    model = awake(WarpingTokenGroupDiT(**SMALL, **WARP))
    torch.nn.init.constant_(model.warp.mixing.bias[::2], 1.5)  # much trust
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    person, garment = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 3:9] = 1
    return {"person": person, "garment": garment, "mask": mask}


def module_of(dit, kind=WarpingTryOn, **options):
    settings = {"height": 16, "width": 16, "keep_known": True, **options}
    return kind(dit, objective=Objective(prediction="x0", loss="l1"), **settings)


def predict(module, batch, training=False, cache=None):
    torch.manual_seed(3)
    x_t, timestep = torch.randn(batch["person"].shape), torch.full((len(batch["person"]),), 700.0)
    shown = module.formulation.conditions(batch, module.space)
    with torch.no_grad():
        return module.formulation.predict(
            module._network[0], x_t, timestep, shown, module.objective, cache=cache, training=training
        )


# -- what the drawn scenes know ------------------------------------------------------------------------------


def test_the_flat_garment_at_the_true_places_is_the_worn_one():
    scenes = drawn((96, 72), 16)
    known = scenes["flow_known"]
    assert known[scenes["worn_mask"] == 0].sum() == 0
    assert known.sum() > 0.75 * scenes["worn_mask"].sum()
    copied = F.grid_sample(scenes["garment"], scenes["flow"].permute(0, 2, 3, 1), align_corners=False)

    def likeness(picture):
        """Correlation of what is finer than light and folds, over what is known."""
        details = []
        for values in (picture, scenes["person"]):
            soft = F.avg_pool2d(values * known, 9, 1, 4) / F.avg_pool2d(known, 9, 1, 4).clamp(min=1e-3)
            details.append(((values - soft) * known).flatten(1))
        return F.cosine_similarity(*details)

    def psnr(picture):
        error = ((picture - scenes["person"]) / 2).square() * known
        return -10 * (error.flatten(1).sum(1) / (3 * known.flatten(1).sum(1))).log10()

    assert (psnr(copied) - psnr(scenes["garment"])).mean() > 7
    assert likeness(copied).mean() > 0.8
    assert likeness(scenes["garment"]).mean() < 0.3
    moved = F.grid_sample(scenes["garment"], scenes["flow"].permute(0, 2, 3, 1) + 4 / 72, align_corners=False)
    assert likeness(moved).mean() < 0.6  # two pixels beside it


def test_places_are_mirrored_with_the_pictures_and_unknown_of_another_garment():
    pairs = DrawnPairs((48, 32), ProceduralSources(), distinct=2, length=4)
    first, mirrored = pairs[1], pairs[3]
    known = first["flow_known"].flip(-1)
    assert torch.equal(mirrored["flow_known"], known)
    turned = first["flow"].flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
    assert torch.equal(mirrored["flow"], turned * known)
    unpaired = DrawnPairs((48, 32), ProceduralSources(), distinct=2, shift=1)[0]
    assert not {"flow", "flow_known"} & unpaired.keys()


# -- the mixture ---------------------------------------------------------------------------------------------


def test_what_is_trusted_is_the_picture_at_the_places_in_the_light():
    torch.manual_seed(0)
    garment, colours = torch.rand(1, 3, 6, 6) - 0.5, torch.rand(1, 3, 6, 6) - 0.5
    maps = torch.zeros(1, 4, 6, 6)
    maps[:, 0] = 2 / 6  # a pixel to the right
    maps[:, 2] = 60.0
    maps[:, 2, 3:] = -60.0
    maps[:, 3] = torch.tensor(0.5).log()
    made = compose(colours, garment, maps)
    expected = (garment[..., :3, 1:] + 1) / 2 - 1
    torch.testing.assert_close(made[:, :3, :3, :5], expected)
    assert torch.equal(made[:, :3, 3:], colours[:, :, 3:])
    torch.testing.assert_close(made[:, 3:5], own_places(colours) + maps[:, :2])


def test_it_starts_as_the_model_without_copies(batch):
    models = []
    for kind, options in ((TokenGroupDiT, {}), (WarpingTokenGroupDiT, WARP)):
        torch.manual_seed(0)
        models.append(kind(**SMALL, **options))
    plain, copying = models
    state = {name: value + 0.1 * torch.randn(value.shape) for name, value in plain.state_dict().items()}
    plain.load_state_dict(state)
    assert {n.split(".")[0] for n in copying.load_state_dict(state, strict=False).missing_keys} == {"warp"}
    assert torch.equal(predict(module_of(plain, TokenGroupTryOn), batch), predict(module_of(copying), batch))
    conditions = {name: batch[name] for name in ("person", "garment")}
    x_t, timestep = torch.randn(2, 3, 16, 16), torch.full((2,), 700.0)
    one, other = (model(x_t, timestep, conditions=conditions).sample for model in (plain, copying))
    assert torch.equal(one, other)


def test_no_garment_no_copy(dit, batch):
    plain = TokenGroupDiT(**SMALL)
    plain.load_state_dict(
        {name: value for name, value in dit.state_dict().items() if not name.startswith("warp.")}
    )
    one, other = module_of(dit), module_of(plain, TokenGroupTryOn)
    assert not torch.allclose(predict(one, batch), predict(other, batch))
    bare = {**batch, "garment": batch["garment"] * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)}
    left, right = predict(one, bare), predict(other, bare)
    assert torch.equal(left[0], right[0])
    assert not torch.allclose(left[1], right[1])
    assert (predict(one, bare, training=True)[:, 5] == ABSENT).flatten(1).all(1).tolist() == [True, False]


def test_a_cached_run_equals_an_uncached_one(dit, batch):
    module, cache = module_of(dit), KeyValueCache()
    for _ in range(3):
        cached = predict(module, batch, cache=cache)
        assert (cached - predict(module, batch)).abs().max() < 1e-5
    assert cache.runs == 3  # person, garment, and where to copy from
    other = {**batch, "garment": batch["garment"].flip(-1)}
    torch.testing.assert_close(predict(module, other, cache=cache), predict(module, other))


def test_each_sample_for_itself(dit, batch):
    person, garment = batch["person"] * (1 - batch["mask"]), batch["garment"]
    alone = torch.cat([dit.maps(person[i : i + 1], garment[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(dit.maps(person, garment), alone, atol=1e-5, rtol=1e-5)


# -- learning ------------------------------------------------------------------------------------------------


def test_places_are_learned_and_hold_for_other_people():
    torch.manual_seed(0)
    settings = {**SMALL, "input_size": [48, 36], "patch_size": 6}
    model = WarpingTokenGroupDiT(**settings, warp_width=32, warp_heads=2)
    module = module_of(model, height=48, width=36, learn="warp", keep_known=False)
    module.prepare()
    assert {n.split(".")[1] for n, p in module.named_parameters() if p.requires_grad} == {"warp"}
    train, held_out = drawn((48, 36), 48), drawn((48, 36), 24, "val")
    optimizer = torch.optim.Adam(model.warp.parameters(), 3e-3)

    def errors():
        with torch.no_grad():
            terms, _ = module.eval().losses(held_out)
        return {name: float(term) / module.warp_weights[name] for name, term in terms.items()}

    before = errors()
    for _ in range(60):
        chosen = torch.randperm(48)[:16]
        terms, _ = module.train().losses({name: value[chosen] for name, value in train.items()})
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    after = errors()
    assert after["flow"] < 0.75 * before["flow"]
    assert after["trust"] < 0.9 * before["trust"]
    assert after["light"] < before["light"]


def test_true_maps_err_by_nothing(batch):
    flow = torch.rand(2, 2, 16, 16) * 2 - 1
    known = torch.ones(2, 1, 16, 16)
    person = F.grid_sample(
        batch["garment"], flow.permute(0, 2, 3, 1), align_corners=False, padding_mode="border"
    )
    told = {**batch, "person": person, "flow": flow, "flow_known": known}
    copies = torch.cat([flow, 50 * known, 0 * known], 1)
    assert all(float(error) < 1e-5 for error in warp_losses(copies, told).values())
    beside = copies + torch.tensor([2 / 16, 0, 0, 0]).view(1, 4, 1, 1)
    assert float(warp_losses(beside, told)["flow"]) == pytest.approx(1, abs=1e-4)  # a pixel
    nothing = copies.clone()
    nothing[:, 2] = ABSENT
    assert all(float(error) == 0 for error in warp_losses(nothing, told).values())


def test_what_learns_is_what_was_asked_for(dit, batch):
    told = {**batch, "flow": torch.zeros(2, 2, 16, 16), "flow_known": torch.ones(2, 1, 16, 16)}
    for learn, losses, warp in (
        ("all", {"objective", "flow", "trust", "light"}, True),
        ("rest", {"objective"}, False),
    ):
        module = module_of(dit, learn=learn)
        module.prepare()
        terms, _ = module.losses(told)
        assert terms.keys() == losses
        dit.zero_grad()
        sum(terms.values()).backward()
        assert (dit.warp.affine.weight.grad is not None) == warp
        assert dit.final_layer.linear.weight.grad is not None
        assert module_of(dit, learn=learn).losses(batch)[0].keys() == {"objective"}
    with pytest.raises(PolyditError, match="does not know where cloth lies"):
        module_of(dit, learn="warp").losses(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn": "shoes"}, "learn: 'shoes' is unknown; choose from all, warp, rest"),
        ({"adapters": {"garment": LoraOptions()}}, "adapters: leave the warp as it is"),
        ({"flow_weight": -1.0}, "flow_weight -1: a weight, 0 or more"),
    ],
)
def test_settings_that_do_not_fit(dit, options, message):
    with pytest.raises(PolyditError, match=message):
        module_of(dit, **options)
    with pytest.raises(PolyditError, match="of a WarpingTokenGroupDiT only"):
        module_of(TokenGroupDiT(**SMALL), learn="rest")
    with pytest.raises(ValueError, match="need the conditions person and garment"):
        WarpingTokenGroupDiT(**{**SMALL, "conditions": {"person": "shared"}})


# -- from weights to weights ---------------------------------------------------------------------------------


def write_config(path, name, **changes):
    settings = yaml.safe_load((CONFIGS / name).read_text())
    made = settings["model"]["init_args"]
    made["backbone"]["init_args"] = {**SMALL, **WARP}
    made |= {"height": 16, "width": 16, "ema": None, **changes}
    for options in made.get("adapters", {}).values():
        options |= {"rank": 2, "targets": LAYERS, "init_from": None}
    sizes = {"height": 16, "width": 16, "corpus": None, "distinct": 4, "held_out": 2}
    settings["data"] = {
        "class_path": "polydit.tasks.virtual_try_on.data.SyntheticTryOn",
        "init_args": {**sizes, "batch_size": 2, "num_workers": 0},
    }
    settings["trainer"] = {
        "max_steps": 2, "accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 1
    }  # fmt: skip
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_from_weights_without_copies_over_all_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    plain = awake(TokenGroupDiT(**SMALL))
    plain.save_pretrained("plain")
    home = tmp_path / "runs/virtual_try_on"
    file = "pipeline/transformer/diffusion_pytorch_model.safetensors"

    def stage(name, config, **changes):
        written = write_config(tmp_path / f"{name}.yaml", config, **changes)
        if name == "lora":
            assert main(["virtual-try-on", "check", "--config", written]) == 0
        words = ["virtual-try-on", "fit", "--config", written, "--name", name, "--pictures", "false"]
        assert main(words) == 0
        return load_file(home / name / file)

    def moved(one, other):
        return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}

    start = plain.state_dict()
    warp = stage("warp", "small_warp.yaml", init_weights="plain")
    assert "plain has none for copying from the garment; that part starts anew" in capsys.readouterr().out
    assert {name for name in warp if not name.startswith("warp.")} == start.keys()
    assert moved(start, warp) == set()
    base = stage("base", "small_base.yaml", init_weights=str(home / "warp/pipeline"))
    assert "starts anew" not in capsys.readouterr().out
    assert moved(warp, base) > {"warp"}
    teacher = stage("teacher", "small.yaml", init_weights=str(home / "base/pipeline"))
    assert moved(base, teacher) == set()
    student = stage("student", "small_distil.yaml", teacher=str(home / "teacher/pipeline"))
    assert moved(base, student) == set()
    stage("lora", "lora.yaml", init_weights="plain")

    pipe = polydit.load(home / "student/pipeline")
    assert type(pipe.transformer) is WarpingTokenGroupDiT
    picture, mask = torch.rand(1, 3, 16, 16) * 2 - 1, torch.ones(1, 1, 16, 16)
    one, two = (
        pipe.generate(
            picture, picture.flip(-1), mask, generator=torch.Generator().manual_seed(5), cache=cache
        )
        for cache in (True, False)
    )
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_weights_of_other_settings_are_told(tmp_path):
    TokenGroupDiT(**{**SMALL, "depth": 1}).save_pretrained(tmp_path / "other")
    with pytest.raises(PolyditError, match=r"has unknown|lacks"):
        module_of(WarpingTokenGroupDiT(**SMALL, **WARP), init_weights=str(tmp_path / "other"))


def test_the_student_of_a_copying_teacher_starts_as_the_teacher(dit, batch, tmp_path):
    objective = Objective(prediction="x0", loss="l1", timesteps=Shifted(shift=2.0))
    teacher = module_of(dit, TokenGroupTryOn, adapters={"garment": LoraOptions(2, targets=LAYERS)})
    teacher.prepare()
    teacher.eval().build_pipeline().save_pretrained(tmp_path / "teacher")
    student = DistilledTryOn(
        WarpingTokenGroupDiT(**SMALL, **WARP),
        str(tmp_path / "teacher"),
        adapters={"target": LoraOptions(2, targets=LAYERS)},
        objective=objective,
        height=16, width=16, keep_known=True, teacher_steps=4, steps=2,
    )  # fmt: skip
    student.setup("fit")
    torch.testing.assert_close(predict(student.eval(), batch), predict(teacher, batch))
    terms, _ = student.train().losses(batch)
    sum(terms.values()).backward()
    assert {n.split(".")[-2] for n, p in student.named_parameters() if p.grad is not None} == {"target"}
