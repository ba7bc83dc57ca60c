"""A task whose systems have modules of their own, named in the config by class path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy import CONFIG, TOY

from polydit.core.errors import PolyditError
from polydit.core.training.cli import run
from polydit.core.training.export import export
from polydit.core.training.preflight import Preflight

SEVERAL = replace(
    TOY,
    subclass_mode=True,
    module="polydit.core.training:DiffusionModule",
    datamodule="lightning.pytorch:LightningDataModule",
)


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """The toy's config with its classes named."""
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(CONFIG)
    for section, path in (("model", "toy.Toy"), ("data", "toy.ToyData")):
        values[section] = {"class_path": path, "init_args": values[section]}
    file = tmp_path / "several.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def words(config: Path, name: str, *more: str) -> list[str]:
    return ["--config", str(config), "--name", name, *more]


def test_a_run_an_override_a_resume_and_an_export(config, tmp_path):
    run(SEVERAL, "fit", words(config, "run", "--data.batch_size", "2", "--model.optimizer.lr", "0.004"))
    folder = tmp_path / "runs/toy/run"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["class_path"] == "toy.Toy"
    assert saved["model"]["init_args"]["optimizer"]["lr"] == 0.004
    assert saved["data"]["init_args"]["batch_size"] == 2
    run(SEVERAL, "fit", words(config, "run", "--ckpt_path", "last", "--trainer.max_steps", "6"))
    checkpoint = folder / "checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 6
    pipeline = export(SEVERAL, checkpoint, tmp_path / "pipeline")
    assert (pipeline / "model_index.json").is_file()


def test_an_adapter_on_the_exported_weights(config, tmp_path):
    run(SEVERAL, "fit", words(config, "base"))
    base = tmp_path / "runs/toy/base/pipeline"
    run(
        SEVERAL,
        "fit",
        words(
            config,
            "lora",
            "--model.adapter.rank",
            "2",
            "--model.init_weights",
            str(base.relative_to(tmp_path)),
        ),
    )
    tensors = load_file(tmp_path / "runs/toy/lora/lora.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_what_check_finds(config):
    flight = Preflight(SEVERAL, ["--config", str(config)], table=False)
    flight.run()
    assert flight.problems == []


def test_a_class_that_is_none_of_the_task(config):
    text = config.read_text().replace("toy.Toy\n", "torch.nn.Linear\n")
    config.write_text(text)
    with pytest.raises(PolyditError, match="model"):
        run(SEVERAL, "fit", words(config, "run"))


def test_a_section_without_a_class(config):
    values = yaml.safe_load(config.read_text())
    values["model"] = values["model"]["init_args"]
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(
        PolyditError, match="config section model: names no module of the task; give its class_path"
    ):
        run(SEVERAL, "fit", words(config, "run"))
