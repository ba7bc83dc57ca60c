"""CatVTON's layout: halves, masks, widened channels, what learns, and a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import polydit
from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.tasks.virtual_try_on.concatenation import ConcatenationFormulation, ConcatenationTryOn

CONFIGS = Path(polydit.__file__).parent / "configs/virtual_try_on"
SMALL = {
    "input_size": [16, 24], "patch_size": 4, "in_channels": 7, "out_channels": 3, "hidden_size": 16, "depth": 2,
    "num_heads": 2, "num_classes": None, "position": "rope", "gate_init": 0.5,
}  # fmt: skip


def module_of(axis="width", channels=7, keep_known=True, **options):
    torch.manual_seed(0)
    model = DiT(**{**SMALL, "in_channels": channels})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    objective = Objective(prediction="x0", loss="l1")
    settings = {
        "height": 16,
        "width": 12,
        "axis": axis,
        "keep_known": keep_known,
        "drop_garment": 0.0,
        **options,
    }
    return ConcatenationTryOn(model, objective, **settings).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    person, garment = (torch.rand(2, 3, 16, 12, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(2, 1, 16, 12)
    mask[..., 4:12, 3:9] = 1
    return {"person": person, "garment": garment, "mask": mask}


@pytest.mark.parametrize(("axis", "size"), [("height", (32, 12)), ("width", (16, 24))])
def test_the_halves(axis, size, batch):
    """The network reads [noisy | mask | masked] over both halves, and the garment's half has mask zero."""
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, timestep):
            seen.append(x)
            return type("Answer", (), {"sample": x[:, :3] * 0 + 0.5})

    module = module_of(axis)
    assert module.target(batch).shape[-2:] == size
    conditions = module.condition(batch)["conditions"]
    noise = torch.randn(module.formulation.start(conditions))
    raw = module.formulation.predict(Spy(), noise, torch.zeros(2), conditions, module.objective)
    x = seen[0]
    assert x.shape == (2, 7, *size)
    assert torch.equal(x[:, :3], noise)
    person, garment = (part for part in x.chunk(2, dim=-2 if axis == "height" else -1))
    assert torch.equal(person[:, 3:4], batch["mask"])
    assert not garment[:, 3:4].any()
    assert torch.equal(person[:, 4:], batch["person"] * (1 - batch["mask"]))
    assert torch.equal(garment[:, 4:], batch["garment"])
    # what is known comes back, and of the two halves the person's is the result
    assert torch.equal(raw.chunk(2, dim=-2 if axis == "height" else -1)[1], batch["garment"])
    result = module.formulation.finish(raw, module.space)
    expected = batch["mask"] * 0.5 + (1 - batch["mask"]) * batch["person"]
    torch.testing.assert_close(result, expected)


def test_without_the_garment_its_half_is_empty(batch):
    module = module_of()
    conditions = module.condition(batch)["conditions"]
    bare = module.formulation.without_garment(conditions, torch.tensor([True, False]))
    assert not bare["garment"][0].any()
    assert torch.equal(bare["garment"][1], conditions["garment"][1])


def test_a_plain_transformer_is_widened_and_answers_as_before(batch):
    module = module_of(channels=3, keep_known=False)
    assert module.backbone.config.in_channels == 7
    torch.manual_seed(0)
    plain = DiT(**{**SMALL, "in_channels": 3})
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x_t, t = torch.randn(2, 3, 16, 24), torch.full((2,), 300.0)
    answer = module.denoise(x_t, t, module.condition(batch))
    torch.testing.assert_close(answer, plain.eval()(x_t, t).sample)
    with pytest.raises(
        PolyditError, match="reads 5 channels; give one for the 3 of the latents, or for the 7"
    ):
        module_of(channels=5)


def test_only_what_is_named_learns():
    module = module_of(train_only=r"blocks\.\d+\.attn\..*")
    module.prepare()
    trained = {name for name, p in module.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all(".attn." in name for name in trained)
    with pytest.raises(PolyditError, match="train_only: no parameter matches 'nothing'"):
        module_of(train_only="nothing").prepare()


def test_axes_are_named():
    with pytest.raises(PolyditError, match="axis: 'depth' is unknown; choose from height, width"):
        ConcatenationFormulation(axis="depth")


def test_the_small_config_trains_and_its_pipeline_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((CONFIGS / "catvton_small.yaml").read_text())
    made = settings["model"]["init_args"]
    made["backbone"]["init_args"] |= SMALL | {"input_size": [16, 32]}
    made |= {"height": 16, "width": 16}
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
        "max_steps": 2, "accelerator": "cpu", "devices": 1, "logger": False, "limit_val_batches": 0
    }  # fmt: skip
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(settings))
    words = ["virtual-try-on", "fit", "--config", "cat.yaml", "--name", "cat", "--pictures", "false"]
    assert main(words) == 0
    pipe = polydit.load("runs/virtual_try_on/cat/pipeline")
    pipe.set_progress_bar_config(disable=True)
    person, mask = torch.rand(1, 3, 20, 30) * 2 - 1, torch.zeros(1, 20, 30)
    mask[..., 5:15, 5:15] = 1
    result = pipe(person, person.flip(-1), mask, num_inference_steps=2, output_type="pt").images[0]
    assert torch.equal(result[..., mask[0] == 0], person[..., mask[0] == 0])
    assert not torch.equal(result, person)
