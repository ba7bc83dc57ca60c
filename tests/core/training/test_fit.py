"""Runs of the toy task, by the function behind `polydit toy fit`."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file
from toy import CONFIG, TOY, Toy, ToyData

from polydit.core.adapters import LoraOptions, load_lora
from polydit.core.backbones import DiT
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.core.training import EMA, EmaOptions, OptimizerOptions
from polydit.core.training import cli as training_cli
from polydit.core.training.checkpoints import Checkpoints, read_checkpoint
from polydit.core.training.cli import run
from polydit.core.training.export import export
from polydit.core.training.guard import FiniteGuard
from polydit.core.training.progress import RunProgress
from polydit.core.training.resume import RandomState


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs ``fit`` in an empty folder; returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def go(*words: str, name: str = "run") -> Path:
        run(TOY, "fit", ["--config", "toy.yaml", "--name", name, *words])
        return tmp_path / "runs" / "toy" / name

    return go


def weights(path: Path, key: str = "state_dict") -> dict[str, torch.Tensor]:
    return read_checkpoint(path)[key]


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_leaves_config_checkpoint_pipeline_and_says_how_to_use_it(fit, capsys):
    folder = fit()
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["optimizer"]["lr"] == 0.005
    assert saved["trainer"]["max_steps"] == 4
    model = DiT.from_pretrained(folder / "pipeline" / "transformer")
    average = weights(folder / "checkpoints" / "last.ckpt")
    for name, value in model.state_dict().items():
        if f"backbone.{name}" in average:
            torch.testing.assert_close(value, average[f"backbone.{name}"])
    said = capsys.readouterr().err
    assert "14,836 parameters, 14,772 of them trained" in said
    assert "step 4: held-out loss" in said
    assert "polydit toy predict --input PATH --output DIR --weights runs/toy/run/pipeline" in said
    assert not list(folder.rglob("*.partial"))


def test_the_command_at_the_end_has_what_predict_cannot_do_without(fit, capsys, monkeypatch):
    monkeypatch.setattr(Toy, "predict_words", ("--mask", "FILE"))
    monkeypatch.setitem(globals(), "TOY", replace(TOY, input_flag="--person"))
    fit()
    assert "use it: polydit toy predict --person PATH --mask FILE --output DIR" in capsys.readouterr().err


def test_checkpoint_holds_the_average_and_the_raw_weights(fit):
    checkpoint = read_checkpoint(fit() / "checkpoints" / "last.ckpt")
    average, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "backbone.final_layer.linear.weight"
    assert not torch.equal(average[name], raw[name])
    assert checkpoint["averaging_state"] == {"step": 4}
    assert checkpoint["polydit"]["task"] == "toy"
    assert checkpoint["polydit"]["backbone"] == "DiT"


def test_without_an_average_there_is_one_set_of_weights(fit):
    checkpoint = read_checkpoint(fit("--model.ema", "null") / "checkpoints" / "last.ckpt")
    assert "current_model_state" not in checkpoint


# -- does it learn -------------------------------------------------------------------------------------------


def trainer(folder: Path, steps: int, *callbacks: Callback, **options) -> Trainer:
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[*callbacks, Checkpoints(folder)],
        **options,
    )


def toy(seed: int = 0, **options) -> Toy:
    torch.manual_seed(seed)
    backbone = DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=2)
    return Toy(backbone, **options)


def test_first_loss_is_the_one_of_a_zero_output_and_eight_samples_are_learned(tmp_path):
    module = toy(optimizer=OptimizerOptions(lr=5e-3, warmup_steps=10), ema=None)
    losses = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    torch.manual_seed(0)
    data = ToyData(batch_size=8, held_out=0)
    batch = next(iter(data.train_dataloader()))["target"]
    trainer(tmp_path, 300, Watch()).fit(module, datamodule=data)
    expected = 1 + batch.square().mean().item()  # E |noise - x0|^2, since a fresh DiT answers zero
    assert losses[0] == pytest.approx(expected, rel=0.3)
    assert np.mean(losses[-50:]) < 0.35 * expected


def test_held_out_loss_depends_on_the_sample_only():
    module = toy()
    module._trainer = trainer(Path("unused"), 1)
    samples = ToyData().val_dataloader().dataset.pictures[:4]
    noise, t = module.draw(samples, 0)
    torch.manual_seed(99)
    torch.rand(7)
    again_noise, again_t = module.draw(samples[2:], 2)  # the same samples in another batch
    assert torch.equal(noise[2:], again_noise)
    assert torch.equal(t[2:], again_t)
    assert len(set(t.tolist())) == 4


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_held_out_loss_is_equal_between_runs_and_batch_sizes(batch_size, tmp_path):
    module = toy(seed=3)
    module.backbone.final_layer.linear.weight.data.normal_(
        std=0.5, generator=torch.Generator().manual_seed(0)
    )
    torch.manual_seed(batch_size)
    figures = trainer(tmp_path, 1).validate(module, datamodule=ToyData(batch_size=batch_size), verbose=False)
    reference = trainer(tmp_path, 1).validate(module, datamodule=ToyData(batch_size=4), verbose=False)
    assert figures[0]["val/loss"] == pytest.approx(reference[0]["val/loss"], rel=1e-6)


def test_validation_sees_the_average_and_training_goes_on_with_the_raw_weights(tmp_path):
    seen = {}

    class Look(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            seen["during"] = pl_module.backbone.final_layer.linear.weight.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *args):
            seen["before"] = pl_module.backbone.final_layer.linear.weight.detach().clone()

    module, ema = toy(), EMA(EmaOptions(decay=0.9, warmup=False))
    runner = trainer(tmp_path, 2, ema, Look(), val_check_interval=2)
    runner.fit(module, datamodule=ToyData())
    name = "backbone.final_layer.linear.weight"
    assert torch.equal(seen["during"], ema.average[name])
    assert torch.equal(seen["before"], module.backbone.final_layer.linear.weight)
    assert not torch.equal(seen["during"], seen["before"])
    # the checkpoint that validation wrote has them the right way round
    checkpoint = read_checkpoint(tmp_path / "best.ckpt")
    assert torch.equal(checkpoint["state_dict"][name], seen["during"])
    assert torch.equal(checkpoint["current_model_state"][name], seen["before"])


def test_validation_does_not_change_what_training_draws(tmp_path):
    states = []
    for interval in (1, 2):
        module = toy()
        torch.manual_seed(1)
        trainer(tmp_path, 2, EMA(), RandomState(), val_check_interval=interval).fit(
            module, datamodule=ToyData()
        )
        states.append(module.state_dict())
    assert same(*states)


# -- resuming ------------------------------------------------------------------------------------------------


RESUMABLE = ["--data.resumable", "true", "--model.optimizer.schedule", "constant", "--data.count", "12"]


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_resumed_run_equals_the_straight_one_bit_for_bit(stop, fit):
    """Three steps are an epoch: the stops lie inside an epoch and on its end."""
    straight = fit(*RESUMABLE, "--trainer.max_steps", "7", name="straight")
    fit(*RESUMABLE, "--trainer.max_steps", str(stop), name="halves")
    halves = fit(*RESUMABLE, "--trainer.max_steps", "7", "--ckpt_path", "last", name="halves")
    for key in ("state_dict", "current_model_state"):
        assert same(*(weights(f / "checkpoints" / "last.ckpt", key) for f in (straight, halves)))
    first, second = (read_checkpoint(f / "checkpoints" / "last.ckpt") for f in (straight, halves))
    assert first["global_step"] == second["global_step"] == 7
    assert first["averaging_state"] == second["averaging_state"] == {"step": 7}
    moments = [[v["exp_avg"] for v in c["optimizer_states"][0]["state"].values()] for c in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_resume_with_workers_and_accumulation(fit):
    words = [
        *RESUMABLE,
        "--data.workers",
        "1",
        "--data.batch_size",
        "2",
        "--trainer.accumulate_grad_batches",
        "2",
    ]
    straight = fit(*words, "--trainer.max_steps", "5", name="straight")
    fit(*words, "--trainer.max_steps", "2", name="halves")
    halves = fit(*words, "--trainer.max_steps", "5", "--ckpt_path", "last", name="halves")
    assert same(
        *(weights(f / "checkpoints" / "last.ckpt", "current_model_state") for f in (straight, halves))
    )


@pytest.mark.parametrize("checkpoint", ["last", "best"])
@pytest.mark.parametrize("occasion", ["--checkpoint.every_n_steps=2", "--trainer.val_check_interval=2"])
def test_a_run_that_broke_off_goes_on_from_any_checkpoint(occasion, checkpoint, fit, monkeypatch):
    """Step 5 fails; the newest checkpoint is that of step 4, in the middle of the second epoch."""
    if checkpoint == "best" and "every" in occasion:
        pytest.skip("only validation writes it")
    words = [*RESUMABLE, occasion, "--trainer.max_steps", "7"]
    straight = fit(*words, name="straight")
    original = Toy.training_step

    def step(self, batch, batch_idx):
        if self.trainer.global_step == 5:
            raise RuntimeError("power failure")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Toy, "training_step", step)
    with pytest.raises(RuntimeError, match="power failure"):
        fit(*words, name="broken")
    monkeypatch.setattr(Toy, "training_step", original)
    broken = fit(*words, "--ckpt_path", checkpoint, name="broken")
    for key in ("state_dict", "current_model_state"):
        assert same(*(weights(f / "checkpoints" / "last.ckpt", key) for f in (straight, broken)))


def test_last_without_a_name_takes_the_newest_run(fit, tmp_path, capsys):
    fit(name="older")
    fit(name="newer")
    os.utime(tmp_path / "runs/toy/older/checkpoints/last.ckpt", (1, 1))
    run(TOY, "fit", ["--config", "toy.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6"])
    assert read_checkpoint(tmp_path / "runs/toy/newer/checkpoints/last.ckpt")["global_step"] == 6
    assert read_checkpoint(tmp_path / "runs/toy/older/checkpoints/last.ckpt")["global_step"] == 4


def test_validate_looks_at_the_average(fit, tmp_path, capsys):
    fit()
    final = capsys.readouterr().err.split("held-out loss ")[1].split()[0]
    run(TOY, "validate", ["--config", "toy.yaml", "--ckpt_path", "last"])
    value = capsys.readouterr().err.split("val/loss: ")[1].split()[0]
    assert float(value) == pytest.approx(float(final), rel=1e-3)


# -- what goes wrong -----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(fit, tmp_path):
    """The bad sample comes in the second batch of an epoch in fixed order."""
    with pytest.raises(PolyditError) as caught:
        fit("--data.bad", "6", "--checkpoint.every_n_steps", "1")
    assert (
        "not finite at step 1, batch 1 of epoch 0 (square_4.png, square_5.png, square_6.png and 1 more)"
        in str(caught.value)
    )
    last = tmp_path / "runs/toy/run/checkpoints/last.ckpt"
    assert read_checkpoint(last)["global_step"] == 1
    assert all(torch.isfinite(v).all() for v in weights(last).values())


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 2:
                pl_module.backbone.final_layer.linear.weight.data[0, 0] = float("inf")

    saver = trainer(tmp_path, 3, Break())
    saver.checkpoint_callback.every_n_steps = 1
    with pytest.raises(
        PolyditError, match=r"weight backbone\.final_layer\.linear\.weight is not finite at step 2"
    ):
        saver.fit(toy(ema=None), datamodule=ToyData())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_resume(
    signal_number, accumulate, fit, tmp_path, monkeypatch, capsys
):
    original = Toy.training_step

    def step(self, batch, batch_idx):
        if self.trainer.global_step == 2 and batch_idx % accumulate == 0:
            os.kill(os.getpid(), signal_number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Toy, "training_step", step)
    before = signal.getsignal(signal_number)
    with pytest.raises(SystemExit) as caught:
        fit(
            "--trainer.max_steps",
            "50",
            "--data.count",
            "24",
            f"--trainer.accumulate_grad_batches={accumulate}",
        )
    assert caught.value.code == 130
    assert signal.getsignal(signal_number) is before
    assert read_checkpoint(tmp_path / "runs/toy/run/checkpoints/last.ckpt")["global_step"] == 3
    said = capsys.readouterr().err
    command = said.split("go on with: ")[1].splitlines()[0]
    assert said.count("interrupted;") == 1
    monkeypatch.setattr(Toy, "training_step", original)
    words = shlex.split(command)
    assert words[:3] == ["polydit", "toy", "fit"]
    run(TOY, "fit", [*words[3:], "--trainer.max_steps", "5"])
    assert read_checkpoint(tmp_path / "runs/toy/run/checkpoints/last.ckpt")["global_step"] == 5


def test_full_disk_while_saving_keeps_the_checkpoint_before(fit, tmp_path, monkeypatch):
    original, calls = Trainer.save_checkpoint, []

    def save(self, path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    with pytest.raises(PolyditError, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
        fit("--checkpoint.every_n_steps", "1")
    folder = tmp_path / "runs/toy/run/checkpoints"
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 1
    assert [p.name for p in folder.iterdir()] == ["last.ckpt"]


def test_checkpoint_of_another_backbone_says_what_differs(fit):
    fit()
    with pytest.raises(
        PolyditError,
        match=r"has other shapes for 30 of 31 weights \(backbone\..*\) of this DiT; use the config",
    ):
        fit("--ckpt_path", "last", "--model.backbone.hidden_size", "32")
    with pytest.raises(PolyditError, match=r"the checkpoint lacks .* \(backbone\.blocks\.2"):
        fit("--ckpt_path", "last", "--model.backbone.depth", "3")
    with pytest.raises(PolyditError, match=r"has unknown .* \(backbone\.blocks\.1"):
        fit("--ckpt_path", "last", "--model.backbone.depth", "1")


def test_checkpoint_of_another_task_says_which(fit, tmp_path):
    path = fit() / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["polydit"]["task"] = "super-resolution"
    torch.save(checkpoint, path)
    with pytest.raises(PolyditError, match="trained for task super-resolution, not toy"):
        fit("--ckpt_path", "last")
    with pytest.raises(
        PolyditError, match="trained for super-resolution, not toy; use `polydit super-resolution export`"
    ):
        export(TOY, path, tmp_path / "out")


class Code:
    def __reduce__(self):
        return (os.system, ("touch ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole checkpoint"),
        (b"not a zip", "not a whole checkpoint"),
        ({"state_dict": {}}, "is not a checkpoint of `polydit fit`"),
        (Code(), "could run code; refused"),
    ],
)
def test_files_that_are_no_checkpoint(content, message, fit, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(PolyditError, match=message):
        fit("--ckpt_path", str(path))
    assert not (tmp_path / "ran").exists()


def test_half_a_checkpoint_is_refused(fit, tmp_path):
    path = fit() / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PolyditError, match="not a whole checkpoint"):
        fit("--ckpt_path", str(path))


# -- fine-tuning and adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["pipeline", "pipeline/transformer", "checkpoints/last.ckpt"])
def test_fine_tuning_starts_from_the_weights(source, fit):
    base = fit(name="base")
    tuned = fit("--model.init_weights", str(base / source), "--model.optimizer.lr", "0", name="tuned")
    first, second = (
        load_file(f / "pipeline/transformer/diffusion_pytorch_model.safetensors") for f in (base, tuned)
    )
    assert same(first, second)


def test_weights_of_another_model_are_refused(fit):
    base = fit(name="base")
    with pytest.raises(PolyditError, match=r"init_weights .*: has other shapes for .* of DiT"):
        fit("--model.init_weights", str(base / "pipeline"), "--model.backbone.hidden_size", "32")


def test_lora_run_trains_and_saves_the_adapter_alone(fit, capsys):
    base = fit(name="base")
    file = base / "pipeline/transformer/diffusion_pytorch_model.safetensors"
    untouched = file.read_bytes()
    words = [
        "--model.init_weights",
        str(base / "pipeline"),
        "--model.adapter.rank",
        "2",
        "--model.adapter.alpha",
        "8",
    ]
    folder = fit(*words, name="lora")
    assert file.read_bytes() == untouched
    assert not (folder / "pipeline").exists()
    checkpoint = read_checkpoint(folder / "checkpoints/last.ckpt")
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert f"--lora {Path('runs/toy/lora/lora.safetensors')} --weights" in capsys.readouterr().err

    # the file on the untouched base is the model that was trained
    model = DiT.from_pretrained(base / "pipeline/transformer")
    report = load_lora(model, folder / "lora.safetensors")
    assert str(report) == "8 of 8 keys matched, scale 1"
    merged = export(TOY, folder / "checkpoints/last.ckpt", folder / "merged", "pipeline")
    other = DiT.from_pretrained(merged / "transformer").eval()
    x = torch.randn(2, 1, 4, 4)
    with torch.no_grad():
        given, expected = (m.eval()(x, torch.tensor([1.0, 500.0])).sample for m in (model, other))
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-4)


def test_lora_run_resumes_exactly(fit):
    base = fit(name="base")
    words = [*RESUMABLE, "--model.init_weights", str(base / "pipeline"), "--model.adapter.rank", "2"]
    words += ["--model.adapter.init", "pissa"]
    straight = fit(*words, "--trainer.max_steps", "4", name="straight")
    fit(*words, "--trainer.max_steps", "2", name="halves")
    halves = fit(*words, "--trainer.max_steps", "4", "--ckpt_path", "last", name="halves")
    first, second = (load_file(f / "lora.safetensors") for f in (straight, halves))
    assert same(first, second)


def test_lora_run_goes_on_from_a_file(fit):
    base = fit(name="base")
    words = ["--model.init_weights", str(base / "pipeline"), "--model.adapter.rank"]
    first = fit(*words, "2", name="first")
    second = fit(*words, "3", "--model.adapter.init_from", str(first / "lora.safetensors"),
                 "--model.optimizer.lr", "0", name="second")  # fmt: skip
    models = [DiT.from_pretrained(base / "pipeline/transformer").eval() for _ in range(2)]
    x = torch.randn(2, 1, 4, 4)
    answers = []
    for model, folder in zip(models, (first, second), strict=True):
        load_lora(model, folder / "lora.safetensors")
        with torch.no_grad():
            answers.append(model(x, torch.tensor([1.0, 500.0])).sample)
    torch.testing.assert_close(*answers, atol=1e-6, rtol=1e-5)


def test_export_works_from_another_folder(fit, tmp_path, monkeypatch):
    fit(name="base")
    fit("--model.init_weights", "runs/toy/base/pipeline", name="tuned")
    fit("--model.init_weights", "runs/toy/base/pipeline", "--model.adapter.rank", "2", name="lora")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runs = tmp_path / "runs" / "toy"
    assert export(TOY, runs / "lora/checkpoints/last.ckpt", "lora.safetensors").is_file()
    shutil.rmtree(runs / "base")  # fully tuned weights need their base no more
    assert export(TOY, runs / "tuned/checkpoints/last.ckpt", "tuned").is_dir()


def test_a_full_checkpoint_holds_no_lora(fit, tmp_path):
    with pytest.raises(PolyditError, match="trained without an adapter"):
        export(TOY, fit() / "checkpoints/last.ckpt", tmp_path / "out", "lora")


def test_export_keeps_what_exists_and_can_take_the_raw_weights(fit, tmp_path):
    path = fit() / "checkpoints/last.ckpt"
    out = export(TOY, path, tmp_path / "out", weights="raw")
    given = load_file(out / "transformer/diffusion_pytorch_model.safetensors")
    raw = weights(path, "current_model_state")
    assert torch.equal(given["final_layer.linear.weight"], raw["backbone.final_layer.linear.weight"])
    with pytest.raises(PolyditError, match="exists already"):
        export(TOY, path, tmp_path / "out")
    export(TOY, path, tmp_path / "out", overwrite=True)
    again = load_file(out / "transformer/diffusion_pytorch_model.safetensors")
    assert not torch.equal(again["final_layer.linear.weight"], given["final_layer.linear.weight"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "runs", "toy.yaml"]


def test_export_in_half_precision_warns_of_nothing_and_follows_the_umask(fit, tmp_path, capfd):
    path, before = fit() / "checkpoints/last.ckpt", os.umask(0o027)
    capfd.readouterr()
    try:
        out = export(TOY, path, tmp_path / "out", dtype="bfloat16")
    finally:
        os.umask(before)
    assert capfd.readouterr().err == ""
    file = out / "transformer/diffusion_pytorch_model.safetensors"
    assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
    assert {p.stat().st_mode & 0o777 for p in out.rglob("*") if p.is_file()} == {0o640}


# -- options -------------------------------------------------------------------------------------------------


def test_time_limit_ends_the_run_with_a_decayed_rate(fit):
    folder = fit("--trainer.max_time", "00:00:00:02", "--trainer.max_steps=-1")
    checkpoint = read_checkpoint(folder / "checkpoints/last.ckpt")
    assert checkpoint["global_step"] > 10
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] < 0.3 * 0.005


def test_options_of_the_trainer_work(fit):
    folder = fit(
        "--trainer.precision",
        "bf16-mixed",
        "--trainer.accumulate_grad_batches",
        "2",
        "--trainer.gradient_clip_val",
        "1.0",
        "--model.gradient_checkpointing",
        "true",
    )
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 4


def test_gradient_checkpointing_changes_nothing(tmp_path):
    states = []
    for checkpointing in (False, True):
        module = toy(gradient_checkpointing=checkpointing, ema=None)
        torch.manual_seed(1)
        trainer(tmp_path, 2).fit(module, datamodule=ToyData())
        assert module.backbone.gradient_checkpointing is checkpointing
        states.append(module.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_a_backbone_without_checkpointing_is_named():
    with pytest.raises(PolyditError, match="gradient_checkpointing: Linear does not offer it"):
        Toy(torch.nn.Linear(1, 1), gradient_checkpointing=True).prepare()


def test_compiled_blocks_keep_the_names_of_the_weights(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, *a, **k: compiled.append(type(self).__name__)
    )
    module = toy(compile=True)
    names = list(module.state_dict())
    module.prepare()
    assert compiled == ["DiTBlock", "DiTBlock"]
    assert list(module.state_dict()) == names


def test_lora_plus_gives_b_its_own_rate():
    module = toy(adapter=LoraOptions(rank=2, lr_ratio=8.0), optimizer=OptimizerOptions(lr=1e-3))
    module.init_weights = "given"
    module.prepare()
    from polydit.core.training.optim import parameter_groups

    groups = {g["name"]: g for g in parameter_groups(module, module.optimizer_options)}
    assert {name: g["lr"] for name, g in groups.items()} == {"decay": 1e-3, "decay_x8": 8e-3}


def test_extra_losses_are_added_and_logged_by_name(tmp_path):
    class Penalised(Toy):
        def extra_losses(self, batch, output):
            return {"size": 10.0 * output.x0.square().mean()}

    torch.manual_seed(0)
    module = Penalised(DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2))
    runner = trainer(tmp_path, 1, log_every_n_steps=1)
    runner.fit(module, datamodule=ToyData())
    seen = {k: float(v) for k, v in runner.callback_metrics.items()}
    assert seen["train/loss"] == pytest.approx(seen["train/objective"] + seen["train/size"], rel=1e-5)
    assert seen["train/size"] > 0


def test_pictures_are_written_after_validation_and_change_no_random_state(fit, monkeypatch):
    drawn = []

    def pictures(self, pipeline, batch, generator):
        torch.rand(3)  # a pipeline that draws from the global state
        drawn.append(torch.rand(1, generator=generator).item())
        picture = np.full((8, 8, 3), 128, np.uint8)
        return [{"input": picture, "restored": picture}]

    plain = fit(name="plain")
    monkeypatch.setattr(Toy, "pictures", pictures)
    shown = fit("--trainer.val_check_interval", "2", name="shown")
    assert sorted(p.name for p in (shown / "pictures").iterdir()) == [
        "step_00000002_0.png",
        "step_00000004_0.png",
    ]
    assert len(set(drawn)) == 1, "the same seed every time"
    assert same(*(weights(f / "checkpoints/last.ckpt", "current_model_state") for f in (plain, shown)))
    without = fit("--pictures", "false", name="without")
    assert not (without / "pictures").exists()


def test_memory_that_runs_out_in_pictures_does_not_end_the_training(fit, monkeypatch, capsys):
    def pictures(self, pipeline, batch, generator):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(Toy, "pictures", pictures)
    folder = fit("--trainer.val_check_interval", "1")
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 4
    assert capsys.readouterr().err.count("not enough memory") == 1


def test_progress_line_has_steps_speed_and_time_left(fit, capsys, monkeypatch):
    def often(*args, **kwargs):
        return RunProgress(every_seconds=0.0)

    monkeypatch.setattr(training_cli, "RunProgress", often)
    monkeypatch.setattr(RunProgress, "refresh_seconds", 0.0)
    fit("--trainer.max_steps", "12")
    lines = [line for line in capsys.readouterr().err.splitlines() if "samples/s" in line]
    assert len(lines) > 8
    assert all("/12 · loss " in line and line.endswith(" left") for line in lines)


def test_loss_rate_and_throughput_are_in_tensorboard(fit):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = fit("--trainer.log_every_n_steps", "2", "--trainer.max_steps", "6")
    tags: set[str] = set()
    for file in folder.glob("events.*"):
        events = EventAccumulator(str(file)).Reload()
        tags |= set(events.Tags()["scalars"])
        if "train/loss" in events.Tags()["scalars"]:
            assert [event.step for event in events.Scalars("train/loss")] == [1, 3, 5]
    assert {"train/loss", "train/gradient_norm", "train/lr", "val/loss", "perf/samples_per_second"} <= tags


def test_objective_of_the_config_is_used():
    module = toy(objective=Objective(prediction="x0"))
    assert module.objective.prediction == "x0"
    assert toy().objective.prediction == "velocity"


def test_signals_are_given_back(fit):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    fit()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert threading.current_thread() is threading.main_thread()


@pytest.mark.gpu
def test_on_an_accelerator_a_bad_loss_is_seen_one_step_later():
    guard = FiniteGuard()
    guard.watch(torch.tensor(float("nan"), device="cuda"), "step 3")
    with pytest.raises(PolyditError, match="not finite at step 3"):
        guard.watch(torch.tensor(1.0, device="cuda"), "step 4")
    guard.watch(torch.tensor(float("inf"), device="cuda"), "step 5")
    with pytest.raises(PolyditError, match="not finite at step 5"):
        guard.flush()
    guard.flush()
