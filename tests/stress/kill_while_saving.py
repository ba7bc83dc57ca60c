"""Kill a training at random moments of its saving, again and again; its last good checkpoint must survive.

    python tests/stress/kill_while_saving.py [--kills 50] [--folder DIR] [--seed 0]

A small model saves after every step. Each round waits until a file is being written, waits a little longer, kills the
process with SIGKILL and looks at what is there: ``last.ckpt`` must be whole (every checksum), finite, and no older than
in the round before. The next round goes on from it. At the end a run that nobody kills must finish and leave nothing
half-written.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "core" / "training"))

from processes import finish, start
from toy import CONFIG

from polydit.core.training.checkpoint_file import read_checkpoint

WORDS = [
    *("--config", "toy.yaml", "--name", "run", "--export", "false", "--data.resumable", "true"),
    *("--model.backbone.hidden_size", "128", "--checkpoint.every_n_steps", "1"),
]


@dataclass
class Report:
    """What happened.

    Attributes:
        kills: Processes killed.
        torn: Kills that left a half-written file.
        last_step: Optimiser step of the last checkpoint.
    """

    kills: int = 0
    torn: int = 0
    last_step: int = 0


def stress(folder: Path, kills: int, seed: int, says: bool = False) -> Report:
    """Run the rounds, with a line for each if it ``says``.

    Raises:
        AssertionError: a checkpoint was lost or damaged.
    """
    (folder / "toy.yaml").write_text(CONFIG)
    last = folder / "runs/toy/run/checkpoints/last.ckpt"
    partial = last.with_name(".last.ckpt.partial")
    draw = random.Random(seed)
    report = Report()
    for _ in range(kills):
        resume = ["--ckpt_path", "last"] if last.exists() else []
        process = start(folder, [*WORDS, *resume, "--trainer.max_steps", "1000000"])
        before = last.stat().st_ino if last.exists() else None
        # the first save of this process, whole; then the beginning of another one
        while process.is_alive() and (not last.exists() or last.stat().st_ino == before):
            time.sleep(1e-3)
        while process.is_alive() and not partial.exists():
            time.sleep(1e-4)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        assert finish([process]) == [-signal.SIGKILL], (folder / "said.txt").read_text()
        report.kills += 1
        report.torn += partial.exists()
        step = examine(last)
        assert step >= report.last_step, f"went back from step {report.last_step} to {step}"
        report.last_step = step
        if says:
            print(f"kill {report.kills} of {kills}: step {step} is whole", flush=True)
    goal = report.last_step + 3
    assert finish([start(folder, [*WORDS, "--ckpt_path", "last", "--trainer.max_steps", str(goal)])]) == [0]
    assert examine(last) == goal
    assert not partial.exists()
    return report


def examine(path: Path) -> int:
    """Check every byte of a checkpoint; its optimiser step."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, f"{path} is damaged"
    checkpoint = read_checkpoint(path)
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values())
    return checkpoint["global_step"]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="a file system to try; default: a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        began = time.monotonic()
        report = stress(Path(folder), options.kills, options.seed, says=True)
    print(
        f"{report.kills} kills, {report.torn} of them with a file half-written, {report.last_step} steps trained; "
        f"no checkpoint lost, in {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
