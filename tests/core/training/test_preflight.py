"""What a look before the run finds: all that would fail, and what the run takes."""

from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toy import CONFIG, TOY

from polydit.core.backbones import DiT
from polydit.core.commands.check import memory_table
from polydit.core.task import TaskSpec
from polydit.core.training import preflight
from polydit.core.training.loader_check import inspect_loader
from polydit.core.training.preflight import Preflight

FAULTY = replace(TOY, datamodule="faulty:FaultyData")


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Looks at the toy task in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    (tmp_path / "faulty.yaml").write_text(CONFIG.replace("data: {batch_size: 4}", ""))
    # a multiplication takes no time worth measuring here
    monkeypatch.setattr(preflight, "multiplications_per_second", lambda *_: 1e9)

    def go(*words: str, task: TaskSpec = TOY, table: bool = False) -> Preflight:
        config = "toy.yaml" if task is TOY else "faulty.yaml"
        flight = Preflight(task, ["--config", config, *words], table)
        flight.run()
        return flight

    return go


def test_a_sound_config_has_no_problem_and_says_what_it_takes(look):
    flight = look("--trainer.max_steps=120")
    assert flight.problems == []
    text = "\n".join(flight.lines)
    assert "model: DiT, 14,836 parameters, 14,772 trained" in text
    assert "train data: 8 samples in 2 batches; a batch is target (4, 1, 4, 4)" in text
    assert "validation data: 4 samples in 1 batches" in text
    assert "memory: " in text
    assert "are free on cpu" in text
    assert "for 120 steps" in text
    assert flight.table == []


def test_everything_that_would_fail_is_said_at_once(look, tmp_path):
    (tmp_path / "weights").mkdir()
    flight = look(
        "--trainer.max_steps=-1",
        "--trainer.accelerator=tpu",
        "--model.init_weights=weights",
        "--model.quantize=int8",
        "--data.fault=files",
        "--ckpt_path=last",
        task=FAULTY,
    )
    found = "\n".join(flight.problems)
    for problem in (
        "config section trainer: the run has no end",
        "config section trainer:",  # no such device
        "--model.init_weights weights: the folder holds no *.safetensors",
        "--model.quantize int8: is for frozen weights",
        "--ckpt_path last: no run in",
        "train data, sample 3: 3.png: is not a picture; replace it",
        "train data, sample 5: 5.png: is not a picture; replace it",
    ):
        assert problem in found
    assert len(flight.problems) == 7
    assert not any(line.startswith("disk") for line in flight.lines)  # what would be saved is not known


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("none", "train data: holds no samples"),
        ("defect", "train data, sample 3: KeyError: 'colour'"),
        ("nan", "train data: target holds NaN or infinity (7.png)"),
        (
            "sizes",
            "train data: samples cannot make a batch, target is (1, 4, 4) in one and (1, 6, 4) in another",
        ),
        ("mask", "train data: mask runs from 255 to 255 (0.png, 1.png, 2.png and 1 more); a mask is 0 to 1"),
        ("empty mask", "train data: mask is empty in every sample that was looked at; nothing is masked"),
        ("channels", "a batch does not go through the model (RuntimeError: "),
    ],
)
def test_faults_of_data_are_named(look, fault, problem):
    flight = look(f"--data.fault={fault}", task=FAULTY)
    assert flight.problems[0].startswith(problem)
    assert not any("validation" in line for line in flight.problems)
    assert "validation 2 data: 12 samples in 6 batches" in "\n".join(flight.lines)


def test_a_batch_that_is_larger_than_the_data(look):
    assert look("--data.batch_size=13", task=FAULTY).problems == [
        "train data: not one whole batch; lower --data.batch_size or add samples"
    ]


def test_the_check_of_a_loader_without_a_batch_says_so_as_a_run_does(look):
    flight = look("--data.resumable=true", "--data.batch_size=9")
    assert flight.problems == ["train data: not one whole batch; lower --data.batch_size or add samples"]


@pytest.mark.parametrize("network", ["diffdis_unet.DiffdisUNet", "diffews_unet.DiffewsUNet"])
def test_a_folder_that_is_not_named_is_asked_for(look, tmp_path, network):
    path = f"polydit.core.backbones.{network}.from_folder"
    config = f"model: {{backbone: {{class_path: {path}, init_args: {{source: null}}}}}}\n"
    (tmp_path / "unet.yaml").write_text(config + "trainer: {max_steps: 4, accelerator: cpu, devices: 1}\n")
    flight = Preflight(TOY, ["--config", "unet.yaml"])
    flight.run()
    (problem,) = flight.problems
    assert problem.startswith("--model.backbone.source: the folder of Stable Diffusion 2.1 or SD-Turbo")


def test_weights_of_another_model_and_a_lora_without_a_base(look, tmp_path):
    other = DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2)
    other.save_pretrained(tmp_path / "other")
    (problem,) = look("--model.init_weights=other").problems
    assert problem.startswith("--model.init_weights other: lacks ")
    (tmp_path / "other" / "diffusion_pytorch_model.safetensors").write_bytes(b"half a file")
    (problem,) = look("--model.init_weights=other").problems
    assert "cannot be read as safetensors" in problem
    (problem,) = look("--model.adapter.rank=2").problems
    assert problem.startswith("--model.adapter: an adapter needs trained weights under it")


def test_weights_that_fit_are_not_read_into_memory(look, tmp_path, monkeypatch):
    same = DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=2, num_heads=2)
    same.save_pretrained(tmp_path / "base")
    monkeypatch.setattr("polydit.core.training.module.read_weights", lambda *_: pytest.fail("read"))
    flight = look("--model.init_weights=base", "--model.adapter.rank=2", "--model.offload=false")
    assert flight.problems == []
    assert "weights: base fits" in flight.lines


FLUX = """
model:
  backbone:
    class_path: polydit.core.backbones.pretrained.load_transformer
    init_args: {source: flux, dtype: bfloat16}
data: {side: 16, tokens: 8}
trainer: {max_steps: 4, accelerator: cpu, devices: 1, precision: bf16-mixed}
"""


def flux_folder(folder: Path, **sizes: int) -> None:
    """A folder with the configuration of FLUX and without weights."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        FluxTransformer2DModel(guidance_embeds=True, **sizes).save_config(folder / "flux")
    (folder / "faulty.yaml").write_text(FLUX)


def test_weights_that_are_missing_from_a_pretrained_folder(look, tmp_path):
    flux_folder(tmp_path, num_layers=1, num_single_layers=1)
    task = replace(TOY, module="faulty:Flux", datamodule="faulty:Latents")
    flight = look(task=task)
    assert flight.problems == ["flux: holds a config.json and no *.safetensors; copy the weights there"]
    save_file({"x_embedder.weight": torch.zeros(1)}, tmp_path / "flux/model.safetensors")
    (problem,) = look(task=task).problems
    assert problem.startswith("flux: lacks 65 weights of FluxTransformer2DModel (context_embedder.bias, ")
    adapter = look("--model.adapter.rank=2", "--model.ema=null", task=task)
    (line,) = [line for line in adapter.lines if line.startswith("disk: ")]
    trained = int(adapter.lines[0].split()[-2].replace(",", ""))
    assert float(line.split()[1]) == pytest.approx(
        trained * 4 * (3 * 3 + 1) / 1e6, abs=0.1
    )  # nothing of the base
    (tmp_path / "flux/model.safetensors").write_bytes(b"half")
    (problem,) = look(task=task).problems
    assert problem.startswith("flux/model.safetensors: cannot be read as safetensors")


@pytest.mark.slow
def test_the_table_of_a_transformer_of_twelve_billion_weights(look, tmp_path):
    flux_folder(tmp_path)
    task = replace(TOY, module="faulty:Flux", datamodule="faulty:Latents")
    flight = look("--data.side=64", "--data.tokens=512", task=task, table=True)
    assert "model: PretrainedFlux, 11,901,408,320 parameters, 11,901,408,320 trained" in flight.lines
    sizes = {variant.name: round(variant.footprint.total / 1e9) for variant in flight.table}
    assert sizes == {
        "full fine-tuning": 143,
        "full fine-tuning, checkpointing": 143,
        "full fine-tuning, checkpointing, 8-bit optimiser": 119,
        "LoRA": 33,
        "LoRA, checkpointing": 25,
        "LoRA, checkpointing, base in int8": 13,
        "LoRA, checkpointing, base in nf4": 7,
        "LoRA, checkpointing, base offloaded": 1,
    }


def test_a_checkpoint_of_another_model_is_refused(look, tmp_path):
    from polydit.core.training.cli import run

    run(TOY, "fit", ["--config", "toy.yaml", "--name", "run", "--trainer.max_steps=1", "--export=false"])
    fits = look("--name=run", "--ckpt_path=last")
    assert fits.problems == []
    assert any(line.startswith("checkpoint: ") for line in fits.lines)
    (problem,) = look("--name=run", "--ckpt_path=last", "--model.backbone.init_args.depth=1").problems
    assert problem.startswith("--ckpt_path: the checkpoint has unknown")


def test_too_little_memory_shows_what_each_option_saves(look, monkeypatch):
    monkeypatch.setattr(preflight, "free_memory", lambda _: 1000)
    flight = look()
    (problem,) = flight.problems
    assert problem.startswith("memory: a step needs ")
    shown = memory_table(flight.table).splitlines()
    assert shown[0].split()[:4] == ["MB", "in", "a", "step"]
    assert len(shown) == 1 + 8
    assert shown[2].endswith("--model.gradient_checkpointing true")


def test_too_little_room_on_the_disk(look, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    (problem,) = look("--output=elsewhere").problems
    assert problem.startswith("--output elsewhere: the run writes ")


def test_the_disk_that_is_asked_for_is_what_a_run_writes(look, tmp_path):
    from polydit.core.training.cli import run

    run(TOY, "fit", ["--config", "toy.yaml", "--name", "run", "--trainer.max_steps=1"])
    folder = tmp_path / "runs/toy/run"
    written = 3 * (folder / "checkpoints/last.ckpt").stat().st_size
    written += sum(file.stat().st_size for file in (folder / "pipeline").rglob("*"))
    (line,) = [line for line in look().lines if line.startswith("disk: ")]
    assert float(line.split()[1]) * 1e6 == pytest.approx(written, rel=0.25)


def test_the_speed_of_a_device_is_measured():
    assert 1e8 < preflight.multiplications_per_second(torch.device("cpu"), torch.float32, 128) < 1e14


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12 ms"), (3.44, "3.4 s"), (60, "0:01:00"), (300_000, "3.5 days")]
)
def test_durations_are_short(seconds, text):
    assert preflight.format_short(seconds) == text


class Sized(torch.utils.data.Dataset):
    """Samples of 6 pixels in the first half, of 4 in the second."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        side = 6 if index < 4 else 4
        return {"masked_person": torch.full((3, side, side), -1.0), "person_mask": torch.ones(1, side, side)}


@pytest.mark.parametrize(("batch_size", "fits"), [(4, True), (3, False)])
def test_each_batch_may_have_a_size_of_its_own(batch_size, fits):
    report = inspect_loader(torch.utils.data.DataLoader(Sized(), batch_size), "train")
    lines = [f"{key} is {shape}" for key, shape in (("masked_person", (3, 6, 6)), ("person_mask", (1, 6, 6)))]
    assert len(report.problems) == (0 if fits else 2)
    assert fits or all(line in "\n".join(report.problems) for line in lines)
