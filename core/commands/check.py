"""``polydit <task> check``: everything about a config and its data that would fail later, at once and before a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..task import TaskSpec
from .failures import explain
from .parser import Parser
from .train import find_config

__all__ = ["run_check"]


def run_check(task: TaskSpec, words: Sequence[str]) -> int:
    """Build the model without memory for its weights, set up the data, read a batch, and list every problem."""
    parser = Parser(
        f"polydit {task.name} check",
        "Look at a config and its data before a step is run. Options of fit may follow: --data.batch_size 8",
    )
    parser.add_argument(
        "--config", metavar="FILE", default=task.default_config, help="file, or name of a shipped one"
    )
    options, overrides = parser.parse_known_args(words)
    config = find_config(task, options.config) if options.config else None
    arguments = [*(["--config", str(config)] if config else []), *overrides]

    import torch

    from ..training.cli import TaskCLI, quiet

    quiet()
    problems: list[str] = []
    lines: list[str] = []

    def attempt(action: Callable[[], Any]) -> Any:
        """The result, or None with the problem noted; a defect passes through."""
        try:
            return action()
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            problems.append(line)
            return None

    with torch.device("meta"):  # shapes without values: a model of any size fits
        run = attempt(lambda: TaskCLI(task, "fit", arguments))
    if run is not None:
        lines += _describe_model(run.model)
        for stage, name, loader in (
            ("fit", "train", "train_dataloader"),
            ("validate", "validation", "val_dataloader"),
        ):
            if not attempt(partial(_set_up, run.datamodule, stage)):
                continue  # what could not be set up has no loader to ask
            line = attempt(partial(_describe_data, run.datamodule, name, loader))
            if line:
                lines.append(line)
    print(f"config: {config}")
    for line in lines:
        print(line)
    for problem in dict.fromkeys(problems):  # the same failure shows in more than one stage
        print(f"problem: {problem}")
    if problems:
        return 2
    print("no problem found")
    return 0


def _describe_model(module: Any) -> list[str]:
    from ..adapters import count_trainable

    module.prepare()
    total = sum(parameter.numel() for parameter in module.parameters())
    trained = count_trainable(module)
    # Weights once; gradient, two moments of Adam and the weights' average for what is trained, in float32.
    average = 1 if getattr(module, "ema_options", None) is not None else 0
    memory = 4 * (total + (3 + average) * trained) / 1e9
    return [
        f"model: {type(module.backbone).__name__}, {total:,} parameters, {trained:,} trained",
        f"memory: at least {memory:.2f} GB for weights and optimiser in float32, and the activations of a batch",
    ]


def _set_up(datamodule: Any, stage: str) -> bool:
    if stage == "fit":
        datamodule.prepare_data()
    datamodule.setup(stage)
    return True


def _describe_data(datamodule: Any, name: str, loader: str) -> str | None:
    """One line on a loader, after reading one batch from it."""
    batches = getattr(datamodule, loader)()
    if not batches:
        return None
    batch = next(iter(batches))
    try:
        count = f"{len(batches.dataset)} samples in {len(batches)} batches"
    except TypeError:
        count = "a stream of samples"
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in _tensors(batch))
    return f"{name} data: {count}; a batch is {shapes or type(batch).__name__}"


def _tensors(batch: Any) -> list[tuple[str, Any]]:
    if isinstance(batch, dict):
        return [(key, value) for key, value in batch.items() if hasattr(value, "shape")]
    if isinstance(batch, (list, tuple)):
        return [(str(number), value) for number, value in enumerate(batch) if hasattr(value, "shape")]
    return [("tensor", batch)] if hasattr(batch, "shape") else []
