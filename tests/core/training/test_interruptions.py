"""Runs that die: what they leave, and whether going on equals never having died."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes import finish, start
from toy import CONFIG, TOY

from polydit import __version__
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoint_file import FORMAT
from polydit.core.training.checkpoints import read_checkpoint
from polydit.core.training.cli import run
from polydit.core.training.resume import ResumableSampler

sys.path.insert(0, str(Path(__file__).parents[2] / "stress"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return tmp_path


def words(name: str, *more: str) -> list[str]:
    return ["--config", "toy.yaml", "--name", name, "--export", "false", *more]


def last(folder: Path, name: str) -> Path:
    return folder / "runs" / "toy" / name / "checkpoints" / "last.ckpt"


def tensors(value, path=""):
    """Every tensor of nested containers, by its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors(item, f"{path}.{number}")


HARD = [
    *("--data.resumable", "true", "--data.count", "20", "--data.batch_size", "2", "--data.workers", "2"),
    *(
        "--trainer.accumulate_grad_batches",
        "2",
        "--checkpoint.every_n_steps",
        "2",
        "--trainer.max_steps",
        "9",
    ),
    *("--model.optimizer.schedule", "cosine"),
]
"""Five steps are an epoch; workers, accumulation and the average are on."""


def test_kill_9_in_the_middle_of_a_step_changes_nothing(folder):
    run(TOY, "fit", words("straight", *HARD))
    killer = ["--trainer.callbacks+=processes.KillAt", "--trainer.callbacks.step=7"]
    killer += ["--trainer.callbacks.batches=1"]
    assert finish([start(folder, words("killed", *HARD, *killer))]) == [-signal.SIGKILL]
    assert read_checkpoint(last(folder, "killed"))["global_step"] == 6
    run(TOY, "fit", words("killed", *HARD, "--ckpt_path", "last"))
    straight, killed = (read_checkpoint(last(folder, name)) for name in ("straight", "killed"))
    keys = ("state_dict", "current_model_state", "optimizer_states", "averaging_state", "lr_schedulers")
    for key in keys:
        first, second = (dict(tensors(c[key])) for c in (straight, killed))
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{key}{name}"
    assert straight["polydit"]["samples_seen"] == killed["polydit"]["samples_seen"] == 36
    assert straight["global_step"] == killed["global_step"] == 9


def test_random_kills_never_lose_the_last_good_checkpoint(tmp_path):
    """The short form of the script in tests/stress."""
    import kill_while_saving

    report = kill_while_saving.stress(tmp_path, kills=3, seed=1)
    assert report.kills == 3
    assert report.torn >= 1, "no kill fell into the writing of a file"
    assert report.last_step >= 3


def test_what_a_killed_run_left_half_written_is_ignored_and_removed(folder):
    run(TOY, "fit", words("run"))
    partial = last(folder, "run").with_name(".last.ckpt.partial")
    partial.write_bytes(b"half")
    run(TOY, "fit", words("run", "--ckpt_path", "last", "--trainer.max_steps", "5"))
    assert read_checkpoint(last(folder, "run"))["global_step"] == 5
    assert not partial.exists()


def test_a_disk_that_fills_up_keeps_the_checkpoint_before(folder, monkeypatch):
    """A limit on the size of files stands in for the disk: the write fails half-way."""
    run(TOY, "fit", words("run", "--trainer.max_steps", "1"))
    size = last(folder, "run").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(
            PolyditError, match=r"last\.ckpt: cannot be written \(File too large\); the checkpoint"
        ):
            run(TOY, "fit", words("run", "--ckpt_path", "last", "--trainer.max_steps", "5"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_checkpoint(last(folder, "run"))["global_step"] == 1
    assert [p.name for p in last(folder, "run").parent.iterdir()] == ["last.ckpt"]


def test_a_disk_too_small_for_the_first_checkpoint_says_that_nothing_is_kept(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(PolyditError, match=r"\(File too large\); there is none before it\. Make room or"):
            run(TOY, "fit", words("run", "--trainer.max_steps", "1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(last(folder, "run").parent.iterdir()) == []
    run(TOY, "fit", words("run", "--trainer.max_steps", "1"))  # in the same folder
    assert read_checkpoint(last(folder, "run"))["global_step"] == 1


def test_a_checkpoint_of_a_newer_format_says_so(folder):
    run(TOY, "fit", words("run", "--trainer.max_steps", "1"))
    checkpoint = torch.load(last(folder, "run"), weights_only=True)
    assert checkpoint["polydit"]["format"] == FORMAT
    assert checkpoint["polydit"]["version"] == __version__
    checkpoint["polydit"].update(format=FORMAT + 1, version="9.9")
    torch.save(checkpoint, last(folder, "run"))
    with pytest.raises(
        PolyditError, match=rf"was written by PolyDiT 9\.9 in checkpoint format {FORMAT + 1}; this"
    ):
        run(TOY, "fit", words("run", "--ckpt_path", "last"))


def test_a_checkpoint_of_another_version_that_does_not_fit_says_so(folder):
    run(TOY, "fit", words("run", "--trainer.max_steps", "1"))
    checkpoint = torch.load(last(folder, "run"), weights_only=True)
    checkpoint["polydit"]["version"] = "0.0.1"
    del checkpoint["state_dict"]["backbone.final_layer.linear.weight"]
    torch.save(checkpoint, last(folder, "run"))
    with pytest.raises(
        PolyditError, match=rf"lacks 1 of .* written by PolyDiT 0\.0\.1, this is {__version__}"
    ):
        run(TOY, "fit", words("run", "--ckpt_path", "last"))


@pytest.mark.parametrize("batches", [("4", "1"), ("2", "2")])
def test_going_on_with_other_batches_goes_on_with_the_next_samples(folder, batches):
    """Samples and their noise have numbers: the same steps follow from other batch sizes of equal product."""
    plain = ["--data.resumable", "true", "--data.count", "24", "--model.optimizer.schedule", "constant"]
    run(TOY, "fit", words("straight", *plain, "--data.batch_size", "4", "--trainer.max_steps", "8"))
    run(TOY, "fit", words("other", *plain, "--data.batch_size", "4", "--trainer.max_steps", "3"))
    size, accumulate = batches
    more = ["--data.batch_size", size, "--trainer.accumulate_grad_batches", accumulate]
    run(TOY, "fit", words("other", *plain, *more, "--ckpt_path", "last", "--trainer.max_steps", "8"))
    straight, other = (read_checkpoint(last(folder, name)) for name in ("straight", "other"))
    assert straight["polydit"]["samples_seen"] == other["polydit"]["samples_seen"] == 32
    for name, value in straight["current_model_state"].items():
        torch.testing.assert_close(value, other["current_model_state"][name], atol=1e-4, rtol=1e-4)


def test_runs_of_the_same_second_have_folders_of_their_own(folder, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "2000-01-01_00-00-00")
    for _ in range(3):
        run(TOY, "fit", ["--config", "toy.yaml", "--export", "false", "--trainer.max_steps", "1"])
    names = sorted(path.name for path in (folder / "runs" / "toy").iterdir())
    assert names == ["2000-01-01_00-00-00", "2000-01-01_00-00-00.2", "2000-01-01_00-00-00.3"]


def test_numbers_of_samples_may_go_on_after_an_epoch():
    """For data sets that draw at random by the number: each epoch draws anew."""
    module = SimpleNamespace(samples_seen=0)
    trainer = SimpleNamespace(world_size=1, global_rank=0, limit_train_batches=1.0, lightning_module=module)
    sampler = ResumableSampler(range(5), trainer, 2, seed=1, drop_last=False, numbered=True)
    first = list(sampler)
    module.samples_seen = 5
    second = list(sampler)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert sorted(second) == [5, 6, 7, 8, 9]
    assert [number - 5 for number in second] != first
    module.samples_seen = 7
    assert list(sampler) == second[2:]
