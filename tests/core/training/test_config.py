"""What a config may say, and what is answered when it says something else."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import yaml
from toy import CONFIG, TOY

from polydit.core.errors import PolyditError
from polydit.core.training.cli import run, with_default_config
from polydit.core.training.config import TaskCLI, instantiate


@pytest.fixture
def config(tmp_path):
    """Writes the toy config with changes; a change is a dotted key and a value."""

    def write(**changes: object) -> str:
        settings = copy.deepcopy(yaml.safe_load(CONFIG))
        for key, value in changes.items():
            *path, last = key.split("__")
            at = settings
            for part in path:
                at = at.setdefault(part, {})
            at[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


BACKBONE = "model__backbone__init_args__"
OBJECTIVE = {"class_path": "polydit.core.diffusion.Objective", "init_args": {"prediciton": "x0"}}


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"model__optimzer": {"lr": 1}}, [], "model.optimzer.lr: unknown; did you mean model.optimizer.lr?"),
        ({"data__batchsize": 4}, [], "data.batchsize: unknown; did you mean data.batch_size?"),
        ({"trainer__max_stepz": 4}, [], "trainer.max_stepz: unknown; did you mean trainer.max_steps?"),
        ({"dta": {}}, [], "unknown section 'dta'; did you mean data?"),
        ({f"{BACKBONE}hidden": 3}, [], "DiT has no setting 'hidden'; did you mean hidden_size?"),
        (
            {f"{BACKBONE}hidden_size": "wide"},
            [],
            "model.backbone.init_args.hidden_size: expected int, got 'wide'",
        ),
        ({f"{BACKBONE}position": "sin"}, [], "position is 'sin'; choose 'sincos'"),
        (
            {"model__backbone__class_path": "polydit.core.backbones.DoT"},
            [],
            "did you mean polydit.core.backbones.DiT?",
        ),
        (
            {"model__objective": OBJECTIVE},
            [],
            "Objective has no setting 'prediciton'; did you mean prediction?",
        ),
        (
            {"model__adapter": {"rnk": 4}},
            [],
            "model.adapter.rnk: polydit.core.adapters.LoraOptions has no setting 'rnk'",
        ),
        ({"model__optimizer__schedule": "lin"}, [], "model.optimizer.schedule: 'lin' is not one of"),
        (
            {},
            ["--model.optimzer.lr", "3"],
            "--model.optimzer.lr: no such option; did you mean --model.optimizer.lr?",
        ),
        ({}, ["--max_steps=3"], "--max_steps: no such option; did you mean --trainer.max_steps?"),
        ({}, ["--model.optimizer.lr", "fast"], "model.optimizer.lr: expected float, got 'fast'"),
        ({}, ["--seed_everything=abc"], "seed_everything: expected bool or int, got 'abc'"),
        ({}, ["--trainer.max_epochs=1.5"], "trainer.max_epochs: expected int or null, got '1.5'"),
        ({}, ["--model.quantize=int3"], "model.quantize: expected 'int8' or 'nf4' or null, got 'int3'"),
        ({}, ["--model.ema=yes"], "model.ema: expected the settings of EmaOptions or null, got 'yes'"),
        ({}, ["--seed_everything=-1"], "--seed_everything: -1 is not in bounds"),
        ({}, ["fast"], "'fast': not an option of `polydit toy fit`"),
        ({}, ["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
    ],
)
def test_wrong_settings_end_in_one_line(config, changes, words, message):
    with pytest.raises(PolyditError) as caught:
        TaskCLI(TOY, "fit", ["--config", config(**changes), *words])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("model: [1,\n b: {", "not valid YAML"), ("- 1\n- 2\n", "holds no settings"), ("", "holds no settings")],
)
def test_files_that_are_no_config(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(PolyditError, match=message):
        TaskCLI(TOY, "fit", ["--config", str(path)])


def test_a_config_that_comes_behind_another_one_is_no_complete_one(tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text("data:\n  init_args: {size: 96}\n")
    task = replace(TOY, datamodule="lightning.pytorch:LightningDataModule", subclass_mode=True)
    with pytest.raises(
        PolyditError, match=r"data\.init_args\.size: .* give a complete config .* before this one"
    ):
        TaskCLI(task, "fit", ["--config", str(path)])


def test_missing_backbone_says_what_to_do():
    with pytest.raises(PolyditError, match=r"model\.backbone: is required; give a complete config"):
        TaskCLI(TOY, "fit", [])


def test_every_level_is_settable_from_the_command_line(config):
    words = [
        "--model.ema.sigma_rel",
        "0.1",
        "--model.adapter.rank",
        "4",
        "--model.adapter.targets",
        "[attn.qkv]",
    ]
    words += ["--model.backbone.depth", "1", "--model.grey", "0.5", "--trainer.max_time", "00:00:00:05"]
    words += ["--model.objective.class_path", "polydit.core.diffusion.Objective"]
    words += ["--model.objective.init_args.timesteps.class_path", "polydit.core.diffusion.LogitNormal"]
    words += ["--model.objective.init_args.timesteps.init_args.mean", "0.3"]
    module = TaskCLI(TOY, "fit", ["--config", config(), *words]).model
    assert module.ema_options.sigma_rel == 0.1
    assert (module.adapter_options.rank, module.adapter_options.targets) == (4, ["attn.qkv"])
    assert len(module.backbone.blocks) == 1
    assert module.grey == 0.5
    assert module.objective.timesteps.mean == 0.3


def test_null_switches_the_average_off(config):
    assert TaskCLI(TOY, "fit", ["--config", config(), "--model.ema", "null"]).model.ema_options is None


def test_meta_device_builds_shapes_only(config):
    module = instantiate(TOY, config(model__backbone__init_args__hidden_size=4096), device="meta")
    assert all(p.is_meta for p in module.backbone.parameters() if p.requires_grad)
    assert module.backbone.blocks[0].attn.qkv.weight.shape == (3 * 4096, 4096)


def test_config_of_a_checkpoint_builds_the_same_module(config):
    cli = TaskCLI(TOY, "fit", ["--config", config(model__grey=0.25), "--model.adapter.rank", "3"])
    again = instantiate(TOY, cli.plain_config())
    assert again.grey == 0.25
    assert again.adapter_options == cli.model.adapter_options
    assert again.optimizer_options == cli.model.optimizer_options
    assert dict(again.backbone.config) == dict(cli.model.backbone.config)


def test_default_config_is_taken_where_none_is_named():
    from dataclasses import replace

    spec = replace(TOY, module="polydit.x:Y", package="toy", default_config="small.yaml")
    words = with_default_config(spec, ["--trainer.max_steps", "3"])
    assert words[0] == "--config"
    assert words[1].endswith("configs/toy/small.yaml")
    assert words[2:] == ["--trainer.max_steps", "3"]
    for named in (["--config", "a"], ["-c", "a"], ["--config=a"], ["--help"]):
        assert with_default_config(spec, named) == named


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.accelerator", "cuda"], "config section trainer: "),
        (["--ckpt_path", "last"], "--ckpt_path last: no run in"),
        (["--trainer.max_epochs=0"], "config section trainer: max_epochs is 0, so nothing would be trained"),
        (["--trainer.max_steps=-1"], "config section trainer: the run has no end; set max_steps, max_time"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path nowhere.ckpt: there is no such checkpoint"),
        (
            ["--data.resumable=true", "--data.batch_size=9"],
            "train data: not one whole batch; lower --data.batch_size or add samples",
        ),
        (["--model.adapter.rank", "2"], "an adapter needs trained weights under it"),
        (
            ["--model.init_weights", "nowhere"],
            "--model.init_weights nowhere: there is no such file or folder",
        ),
    ],
)
def test_wrong_runs_end_in_one_line_and_leave_no_folder(config, words, message, tmp_path, monkeypatch):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is such a device")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolyditError) as caught:
        run(TOY, "fit", ["--config", config(), *words])
    assert message in str(caught.value)
    assert not list((tmp_path / "runs").glob("toy/*"))
