"""The second stage: teacher and student on one backbone, what is trained and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import polydit
from polydit.core.adapters import LoraOptions
from polydit.core.cli import main
from polydit.core.conditioning import TokenGroupDiT
from polydit.core.diffusion import Objective, Shifted
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoints import read_checkpoint
from polydit.tasks.virtual_try_on.distillation import DistilledTryOn
from polydit.tasks.virtual_try_on.model import TokenGroupTryOn

CONFIGS = Path(polydit.__file__).parent / "configs/virtual_try_on"
SMALL = {
    "conditions": {"person": "shared", "garment": "beside"}, "input_size": [16, 16], "patch_size": 4, "in_channels": 3,
    "hidden_size": 16, "depth": 3, "num_heads": 2, "num_classes": None, "position": "rope", "gate_init": 0.5,
}  # fmt: skip
LAYERS = ["attn.qkv", "mlp.fc1"]


def objective():
    return Objective(prediction="x0", loss="l1", timesteps=Shifted(shift=2.0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A pipeline with a LoRA for the garment, all weights random."""
    torch.manual_seed(0)
    model = TokenGroupDiT(**SMALL)
    module = TokenGroupTryOn(
        model,
        objective(),
        adapters={"garment": LoraOptions(2, targets=LAYERS)},
        height=16,
        width=16,
        keep_known=True,
    )
    module.prepare()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("teacher") / "pipeline"
    module.eval().build_pipeline().save_pretrained(folder)
    return folder


def student_of(teacher, **options):
    torch.manual_seed(7)
    adapters = {name: LoraOptions(2, targets=LAYERS) for name in ("target", "garment")}
    settings = {"height": 16, "width": 16, "keep_known": True, "teacher_steps": 4, "steps": 2, **options}
    return DistilledTryOn(
        TokenGroupDiT(**SMALL), str(teacher), adapters=adapters, objective=objective(), **settings
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    person, garment = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 3:9] = 1
    return {"person": person, "garment": garment, "mask": mask}


def test_the_student_starts_as_the_teacher(teacher, batch):
    module = student_of(teacher)
    module.setup("fit")
    module.eval()
    condition = module.condition(batch)
    x_t, timestep = torch.randn(2, 3, 16, 16), torch.full((2,), 800.0)
    taught = module.teach(condition)(x_t, timestep)
    torch.testing.assert_close(module.denoise(x_t, timestep, condition), taught)
    plain = module.ask(x_t, timestep, condition, {})
    assert not torch.allclose(plain, taught)
    # it is what the folder answers
    pipe = polydit.load(teacher)
    with torch.no_grad():
        torch.testing.assert_close(pipe.predictor(condition["conditions"])(x_t, timestep), taught)


def test_only_the_students_loras_learn_and_are_kept(teacher, batch):
    module = student_of(teacher)
    module.setup("fit")
    terms, output = module.train().losses(batch)
    assert terms.keys() == {"trajectory"}
    assert module.backbone.training  # back from the teacher's turn
    sum(terms.values()).backward()
    with_gradient = {name for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all(name.split(".")[-2] in ("target", "garment") for name in with_gradient)
    assert not any("teacher_" in name for name in module.saved_names())
    assert output.x0.shape == batch["person"].shape


def test_one_step_of_the_student_is_compared_with_the_teachers_steps(teacher, batch):
    """With as many steps as the teacher, the untrained student is where it shall be."""
    same, fewer = student_of(teacher, teacher_steps=2), student_of(teacher, teacher_steps=8)
    errors = []
    for module in (same, fewer):
        module.setup("fit")
        torch.manual_seed(0)
        with torch.no_grad():
            errors.append(float(module.eval().losses(batch)[0]["trajectory"]))
    assert errors[0] < 1e-9
    assert errors[1] > 1e-7


def test_the_adversarial_form(teacher, batch):
    module = student_of(teacher, kind="adversarial", sites=["blocks.0", "blocks.2"], objective_weight=0.1)
    module.setup("fit")
    terms, _ = module.train().losses(batch)
    assert terms.keys() == {"trajectory", "objective", "adversarial", "discriminator"}
    sum(terms.values()).backward()
    moved = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert moved == {"backbone", "discriminator"}
    assert not any("teacher_" in n for n, p in module.named_parameters() if p.grad is not None)
    features = module.features(torch.randn(2, 3, 16, 16), torch.full((2,), 0.5), module.condition(batch))
    assert [tuple(f.shape) for f in features] == [(2, 16, 16)] * 2


def test_a_run_of_each_kind(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((CONFIGS / "small_distil.yaml").read_text())
    made = settings["model"]["init_args"]
    made["backbone"] = {"class_path": "polydit.core.conditioning.TokenGroupDiT", "init_args": dict(SMALL)}
    made |= {"height": 16, "width": 16, "teacher": str(teacher), "ema": None}
    for options in made["adapters"].values():
        options["rank"] = 2
    data = {
        "height": 16,
        "width": 16,
        "corpus": None,
        "distinct": 4,
        "held_out": 2,
        "batch_size": 2,
        "num_workers": 0,
    }
    settings["data"]["init_args"] = data
    settings["trainer"] = {
        "max_steps": 1, "accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 0
    }  # fmt: skip
    for kind in ("trajectory", "adversarial"):
        made["kind"] = kind
        (tmp_path / "student.yaml").write_text(yaml.safe_dump(settings))
        words = ["virtual-try-on", "fit", "--config", "student.yaml", "--name", kind, "--pictures", "false"]
        assert main(words) == 0
        folder = tmp_path / "runs/virtual_try_on" / kind
        pipe = polydit.load(folder / "pipeline")
        assert pipe.config.steps == 8
        assert {f.stem for f in (folder / "pipeline/adapters").iterdir()} == {"target", "person", "garment"}
        state = read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
        assert not any("teacher_" in name for name in state)
        name = "transformer/diffusion_pytorch_model.safetensors"
        base, mine = load_file(teacher / name), load_file(folder / "pipeline" / name)
        assert all(torch.equal(base[key], value) for key, value in mine.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_steps": 30, "steps": 8}, "no multiple of student_steps 8"),
        ({"kind": "guess"}, "kind: 'guess' is unknown; choose from trajectory, adversarial"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(PolyditError, match=message):
        student_of("nowhere", **options)


def test_a_teacher_must_be_there(tmp_path):
    with pytest.raises(PolyditError, match="no pipeline there; give the folder of a trained one"):
        student_of(tmp_path).setup("fit")
    module = student_of(tmp_path)
    module.teacher = None
    with pytest.raises(PolyditError, match=r"--model\.teacher: name the folder"):
        module.setup("fit")


def test_a_student_is_trained_by_its_loras_only(teacher):
    module = student_of(teacher)
    assert module.switch_adapters(True) == "--model.adapters.target.rank 2 --model.adapters.garment.rank 2"
    assert module.switch_adapters(False) is None
