"""Several processes: the same training as one, whichever strategy it is, and the same checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import StrategyRegistry
from processes import finish, start_all
from test_interruptions import tensors
from toy import CONFIG, TOY, Toy

from polydit.core.backbones import DiT
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoints import read_checkpoint
from polydit.core.training.cli import build_trainer, run
from polydit.core.training.config import TaskCLI
from polydit.core.training.sharding import FSDP2, gathered, placed_like, shard_trained

COMMON = [
    *("--config", "toy.yaml", "--export", "false", "--data.resumable", "true", "--data.count", "24"),
    *("--model.optimizer.schedule", "constant", "--trainer.gradient_clip_val", "0.5"),
    *("--trainer.log_every_n_steps", "1", "--trainer.callbacks+=processes.WriteLosses"),
]
ONE = [*COMMON, "--data.batch_size", "4"]
TWO = [
    *COMMON,
    "--data.batch_size",
    "2",
    "--data.workers",
    "1",
    "--trainer.devices",
    "2",
    "--trainer.strategy",
]


ACCUMULATE = ["--trainer.accumulate_grad_batches", "2", "--model.gradient_checkpointing", "true"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return tmp_path


def one(name: str, steps: int, *more: str) -> dict:
    run(TOY, "fit", [*ONE, "--name", name, "--trainer.max_steps", str(steps), *more])
    return checkpoint(name)


def two(folder: Path, strategy: str, name: str, steps: int, *more: str) -> dict:
    words = [*TWO, strategy, "--name", name, "--trainer.max_steps", str(steps), *more]
    codes = finish(start_all(folder, words))
    assert codes == [0, 0], "".join(path.read_text() for path in folder.glob("said*.txt"))
    return checkpoint(name)


def checkpoint(name: str) -> dict:
    return read_checkpoint(Path("runs/toy") / name / "checkpoints/last.ckpt")


def losses(name: str) -> list[float]:
    return json.loads((Path("runs/toy") / name / "losses.json").read_text())


def states(given: dict) -> dict[str, torch.Tensor]:
    keys = ("state_dict", "current_model_state", "optimizer_states")
    return dict(tensors({key: given[key] for key in keys}))


def close(first: dict, second: dict) -> None:
    mine, others = states(first), states(second)
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        torch.testing.assert_close(
            value, others[name], atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def equal(first: dict, second: dict) -> None:
    mine, others = states(first), states(second)
    assert mine.keys() == others.keys()
    assert [name for name, value in mine.items() if not torch.equal(value, others[name])] == []


SHORT = ["--data.held_out", "0", "--pictures", "false", "--model.backbone.depth", "1"]


def test_two_sharded_processes_train_like_one(folder):
    """Of all tests with processes the one that `make test` runs; it goes through most of what the others do."""
    straight = one("one", 2, *SHORT)
    more = ["--data.workers", "0", "--trainer.callbacks+=processes.ExpectSharded"]
    sharded = two(folder, "fsdp2", "fsdp2", 2, *SHORT, *more)
    close(straight, sharded)
    assert losses("fsdp2") == pytest.approx(losses("one"), rel=1e-4)
    assert sharded["polydit"]["backbone"] == "DiT"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [[], ACCUMULATE])
def test_curve_and_exact_resume(folder, strategy, options):
    single = one("one", 6, *options)
    straight = two(folder, strategy, "straight", 6, *options)
    close(single, straight)
    assert losses("straight") == pytest.approx(losses("one"), rel=1e-4)
    said = (folder / "said.txt").read_text() + (folder / "said_1.txt").read_text()
    assert said.count("held-out loss") == 1
    two(folder, strategy, "halves", 3, *options)
    halves = two(folder, strategy, "halves", 6, *options, "--ckpt_path", "last")
    equal(straight, halves)


@pytest.mark.slow
def test_buckets_are_shared_and_resumed(folder):
    buckets = ["--data.buckets", "true", "--data.count", "22"]
    straight = one("one", 7, *buckets)
    one("halves", 3, *buckets)
    equal(straight, one("halves", 7, *buckets, "--ckpt_path", "last"))
    close(straight, two(folder, "ddp", "ddp", 7, *buckets))


@pytest.mark.slow
def test_a_checkpoint_of_any_strategy_loads_in_the_others(folder):
    goal = one("goal", 6)
    one("one", 3)
    two(folder, "ddp", "ddp", 3)
    two(folder, "fsdp2", "fsdp2", 3)

    def copy(source: str, target: str) -> str:
        name = f"{source}_then_{target}"
        shutil.copytree(Path("runs/toy") / source, Path("runs/toy") / name)
        return name

    for source, target in (("ddp", "fsdp2"), ("fsdp2", "ddp"), ("one", "fsdp2")):
        close(goal, two(folder, target, copy(source, target), 6, "--ckpt_path", "last"))
    for source in ("ddp", "fsdp2"):
        close(goal, one(copy(source, "one"), 6, "--ckpt_path", "last"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_to_all_processes_stops_all_after_a_checkpoint(folder, strategy):
    words = [
        *TWO,
        strategy,
        "--name",
        "run",
        "--trainer.max_steps",
        "100000",
        "--checkpoint.every_n_steps",
        "1",
    ]
    processes = start_all(folder, words)
    last = Path("runs/toy/run/checkpoints/last.ckpt")
    patience = time.monotonic() + 200
    while not last.exists() and time.monotonic() < patience:
        time.sleep(0.05)
    for process in processes:
        process.terminate()
    assert finish(processes) == [130, 130]
    assert "interrupted; " in (folder / "said.txt").read_text()
    assert checkpoint("run")["global_step"] > 0


@pytest.mark.slow
def test_lora_sharded(folder):
    run(TOY, "fit", ["--config", "toy.yaml", "--name", "base"])
    words = ["--model.init_weights", "runs/toy/base/pipeline", "--model.adapter.rank", "2"]
    single = one("one", 4, *words)
    sharded = two(folder, "fsdp2", "fsdp2", 4, *words)
    close(single, sharded)
    assert all("lora" in name for name in sharded["state_dict"])


@pytest.mark.slow
def test_pictures_of_a_sharded_model_equal_those_of_one_process(folder):
    words = ["--trainer.callbacks+=processes.ShowForward", "--trainer.val_check_interval", "2"]
    one("one", 2, *words)
    two(folder, "fsdp2", "fsdp2", 2, *words)
    pictures = [Path("runs/toy") / name / "pictures/step_00000002_0.png" for name in ("one", "fsdp2")]
    from PIL import Image, ImageChops

    first, second = (Image.open(path).convert("RGB") for path in pictures)
    assert max(high for _, high in ImageChops.difference(first, second).getextrema()) <= 1


@pytest.mark.slow
def test_weights_without_gradient_are_explained(folder):
    more = ["--trainer.callbacks+=processes.AddIdleWeight", "--trainer.max_steps", "3"]
    codes = finish(start_all(folder, [*TWO, "ddp", "--name", "run", *more]))
    assert 2 in codes
    said = "".join(path.read_text() for path in folder.glob("said*.txt"))
    assert "--trainer.strategy ddp: some weights take no part in the loss; use" in said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_the_command_line_starts_processes(folder, eighth_task, launcher):
    """With the task that the fixture installs; Lightning starts the second process, or torchrun both."""
    import os

    words = ["-m", "polydit.core.cli", "dummy", "fit", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    words += [
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "2",
        "--name",
        "run",
        "--export",
        "false",
    ]
    start = [sys.executable]
    if launcher == "torchrun":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*start, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(eighth_task), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(folder / "runs/dummy/run/checkpoints/last.ckpt")["global_step"] == 2
    assert done.stderr.count("run folder") == 1


# -- who is who, by the variables of the launcher ------------------------------------------------------------


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "8",
    "RANK": "6",
    "LOCAL_RANK": "2",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "gpu[07-08]",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables for a test; Lightning notes the rank that it finds there for the whole process."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric
    from lightning.pytorch.utilities.rank_zero import rank_zero_only as pytorch

    before = [(place, place.rank) for place in (fabric, pytorch)]

    def put(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    yield put
    for place, rank in before:
        place.rank = rank


def launched(folder: Path, *words: str) -> Trainer:
    config = TaskCLI(TOY, "fit", ["--config", str(folder / "toy.yaml"), *words]).config_init
    return build_trainer(config, [], False)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("variables", "main"), [(TORCHRUN, "10.0.0.1"), (SLURM, "gpu07")])
def test_ranks_follow_from_the_launcher(folder, environment, variables, main, strategy):
    environment(variables)
    words = ["--trainer.devices", "4", "--trainer.num_nodes", "2", "--trainer.strategy", strategy]
    trainer = launched(folder, *words)
    assert (trainer.global_rank, trainer.world_size) == (6, 8)
    assert (trainer.local_rank, trainer.node_rank) == (2, 1)
    assert trainer.strategy.cluster_environment.main_address == main
    assert trainer.strategy.cluster_environment.creates_processes_externally
    assert not trainer.is_global_zero


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        (
            SLURM,
            "2",
            r"`devices=2` in Lightning, but the number of tasks per node .* SLURM `--ntasks-per-node=4`",
        ),
        (TORCHRUN, "2", r"does not match the world size \(8\)"),
        (TORCHRUN, "1", r"8 processes were launched and each would train alone; set --trainer\.devices"),
        (SLURM, "1", r"8 processes were launched and each would train alone; set --trainer\.devices"),
    ],
)
def test_a_launcher_that_disagrees_with_the_config_is_told(folder, environment, variables, devices, message):
    environment(variables)
    words = ["--trainer.devices", devices]
    if devices != "1":
        words += ["--trainer.num_nodes", "2", "--trainer.strategy", "ddp"]
    with pytest.raises(PolyditError, match=f"config section trainer: .*{message}"):
        launched(folder, *words)


def test_srun_without_tasks_per_node_is_told(folder, environment):
    environment({name: value for name, value in SLURM.items() if name != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(PolyditError, match="--ntasks-per-node=8"):
        launched(folder, "--trainer.devices", "4", "--trainer.num_nodes", "2", "--trainer.strategy", "ddp")


# -- parts of the strategy -----------------------------------------------------------------------------------


def test_the_strategy_has_a_name():
    assert isinstance(StrategyRegistry.get("fsdp2"), FSDP2)


def test_parameters_of_the_module_itself_are_refused():
    class Own(Toy):
        def __init__(self) -> None:
            super().__init__(
                DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2)
            )
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(PolyditError, match="cannot spread scale, which Own holds itself; use ddp"):
        shard_trained(Own(), None)


@pytest.mark.parametrize("option", [{"quantize": "int8"}, {"offload": True}])
def test_frozen_weights_in_other_forms_are_not_sharded(option):
    module = Toy(torch.nn.Linear(1, 1), **option)
    with pytest.raises(PolyditError, match=f"fsdp2: does not go with --model.{next(iter(option))}; use ddp"):
        shard_trained(module, None)


def test_what_is_not_sharded_stays_as_it_is():
    value = torch.ones(2)
    tree = {"a": value, "b": [1, (value, None)]}
    found = gathered(tree, keep=True)
    assert found["a"] is value
    assert found["b"] == [1, (value, None)]
    assert placed_like(value, torch.zeros(2)) is value
