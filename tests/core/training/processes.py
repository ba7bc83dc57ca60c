"""Runs of the toy task in processes of their own, which tests may kill or couple."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from lightning.pytorch import Callback

# The server has imported what a run needs and computed nothing: its forks start at once and without threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["toy", "polydit.core.training.cli"])


def start(folder: Path, words: list[str], environment: dict[str, str] | None = None) -> BaseProcess:
    """``polydit toy fit`` in ``folder``; what it says goes to ``said.txt`` there (``said_1.txt`` for rank 1)."""
    process = context.Process(target=_fit, args=(str(folder), words, environment or {}))
    process.start()
    return process


def start_all(folder: Path, words: list[str], count: int = 2) -> list[BaseProcess]:
    """The same as ``count`` processes that train together, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return [
        start(folder, words, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]


def finish(processes: list[BaseProcess], seconds: float = 280) -> list[int | None]:
    """Wait, and end what hangs; the exit codes."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _fit(folder: str, words: list[str], environment: dict[str, str]) -> None:
    multiprocessing.set_start_method(
        "fork", force=True
    )  # as in a process of the user's: workers know their parent
    os.chdir(folder)
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    rank = environment.get("RANK", "0")
    sys.stderr = sys.stdout = open("said.txt" if rank == "0" else f"said_{rank}.txt", "a", buffering=1)  # noqa: SIM115
    from toy import TOY

    from polydit.core.errors import PolyditError
    from polydit.core.training.cli import run

    try:
        run(TOY, "fit", words)
    except PolyditError as error:
        print(f"polydit: error: {error}")
        os._exit(2)
    except SystemExit as stop:
        os._exit(stop.code)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


class KillAt(Callback):
    """The power fails in the middle of a step.

    Args:
        step: Optimiser steps that are done.
        batches: Batches of the unfinished step that are done.
    """

    def __init__(self, step: int, batches: int = 0) -> None:
        self.step, self.batches, self._done = step, batches, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            if self._done == self.batches:
                os.kill(os.getpid(), signal.SIGKILL)
            self._done += 1


class WriteLosses(Callback):
    """Writes the logged loss of each optimiser step into ``losses.json`` of the run."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not trainer.fit_loop._should_accumulate():
            self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.checkpoint_callback.folder).parent
            (folder / "losses.json").write_text(json.dumps(self.losses))


class ExpectSharded(Callback):
    """Fails unless each process holds half of the weights."""

    def on_train_start(self, trainer, pl_module) -> None:
        weight = pl_module.backbone.blocks[0].mlp.fc1.weight
        assert weight.to_local().numel() * 2 == weight.numel()


class ShowForward(Callback):
    """Gives the toy task pictures: what its backbone answers to noise."""

    def setup(self, trainer, pl_module, stage) -> None:
        import torch

        def pictures(pipeline, batch, generator):
            noise = torch.randn(1, 1, 4, 4, generator=generator)
            answer = pipeline.transformer(noise, torch.tensor([500.0])).sample + batch["target"][:1]
            grey = ((answer[0].repeat(3, 8, 8) + 2) * 60).clamp(0, 255).byte().permute(1, 2, 0).numpy()
            return [{"answer": grey}]

        type(pl_module).pictures = lambda self, *args: pictures(*args)


class AddIdleWeight(Callback):
    """Gives the module a layer that nothing uses."""

    def setup(self, trainer, pl_module, stage) -> None:
        import torch

        pl_module.idle = torch.nn.Linear(1, 1)
