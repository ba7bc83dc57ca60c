"""``fit``, ``validate`` and ``test``: Lightning's command line with our defaults and one-line errors."""

from __future__ import annotations

import logging
import shlex
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from ..errors import PolyditError
from ..task import resolve
from .checkpoints import Checkpoints, Interrupted, read_checkpoint, resume_command
from .config_errors import one_line
from .ema import EMA
from .progress import RunProgress

if TYPE_CHECKING:
    from ..task import TaskSpec
    from .module import DiffusionModule

__all__ = ["instantiate", "run"]


@dataclass
class CheckpointOptions:
    """When checkpoints are written, besides after each validation and at the end.

    Attributes:
        every_minutes: Longest time between two.
        every_n_steps: Optimiser steps between two.
        monitor: Logged value whose least is kept as ``best.ckpt``.
    """

    every_minutes: float | None = 10.0
    every_n_steps: int | None = None
    monitor: str | None = "val/loss"


class TaskCLI(LightningCLI):
    """Lightning's command line for one task; parses and builds, and runs nothing by itself."""

    def __init__(self, spec: TaskSpec, subcommand: str, args: list[str] | dict[str, Any], *, trainer: bool = True) -> None:
        self.spec = spec
        self.with_trainer = trainer
        super().__init__(
            model_class=resolve(spec.module),
            datamodule_class=resolve(spec.datamodule),
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"logger": False, "enable_model_summary": False, "log_every_n_steps": 10},
            parser_kwargs={"prog": f"polydit {spec.name} {subcommand}", "exit_on_error": False, "dump_header": []},
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the design adds to Lightning's own options."""
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint to resume from, or 'last'")
        parser.add_argument("--name", type=str | None, default=None, help="name of the run's folder; default the time")
        parser.add_argument("--output", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--checkpoint", type=CheckpointOptions, default=CheckpointOptions())
        parser.add_argument("--export", type=bool, default=True, help="write the pipeline or LoRA file at the end")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, without Lightning's warning that there is also a ``sys.argv``."""
        self.config = parser.parse_object(args) if isinstance(args, (dict, Namespace)) else parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build model and data; the trainer comes later, when the run's folder is known."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self.config_init["data"]
        self.model = self.config_init["model"]

    def plain_config(self) -> dict[str, Any]:
        """The whole resolved config as plain values."""
        import yaml

        return yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))


def parse(spec: TaskSpec, subcommand: str, args: list[str] | dict[str, Any]) -> TaskCLI:
    """Parse and build.

    Raises:
        PolyditError: one line that names the option and the nearest valid one.
    """
    try:
        return TaskCLI(spec, subcommand, args)
    except ArgumentError as error:
        raise PolyditError(one_line(error, spec, subcommand)) from error


def instantiate(spec: TaskSpec, config: str | Path | Mapping[str, Any], device: str = "cpu") -> DiffusionModule:
    """The module that a config describes, without a trainer.

    Args:
        spec: The task.
        config: A YAML file, or the resolved config of a checkpoint.
        device: ``meta`` builds shapes without values, for configs that do not fit this machine.

    Raises:
        PolyditError: the config is wrong.
    """
    args = dict(config) if isinstance(config, Mapping) else ["--config", str(config)]
    with torch.device(device):
        module = parse(spec, "fit", args).model
    return module


# -- running -------------------------------------------------------------------------------------------------


def run(spec: TaskSpec, subcommand: Literal["fit", "validate", "test"], argv: list[str]) -> None:
    """Run a subcommand with the words that follow it on the command line.

    Raises:
        PolyditError: anything that the user can put right.
        SystemExit: 130 after Ctrl-C, once the checkpoint is written.
    """
    quiet()
    cli = parse(spec, subcommand, argv)
    config = cli.config_init
    folder = run_folder(spec, config, subcommand)
    checkpoint = resume_path(spec, config, folder)
    if checkpoint is not None:
        read_checkpoint(checkpoint)  # refuses what is not a checkpoint before anything is built on it
    module = cli.model
    module.run_record = {"task": spec.name, "config": cli.plain_config()}
    if subcommand != "fit":
        if checkpoint is None:
            raise PolyditError(f"--ckpt_path: `{subcommand}` needs the checkpoint to look at; a file or 'last'")
        trainer = build_trainer(config, [RunProgress()], None)
        getattr(trainer, subcommand)(module, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        return
    fit(spec, cli, folder, checkpoint, argv)


def fit(spec: TaskSpec, cli: TaskCLI, folder: Path, checkpoint: Path | None, argv: list[str]) -> None:
    """Train, then export beside the checkpoint and say how to use it."""
    config, module = cli.config_init, cli.model
    options = config["checkpoint"]
    saver = Checkpoints(folder / "checkpoints", options.every_minutes, options.every_n_steps, options.monitor)
    callbacks = [RunProgress(), saver]
    if module.ema_options is not None:
        callbacks.insert(0, EMA(module.ema_options))
    logger = TensorBoardLogger(save_dir=str(folder), name="", version="")
    trainer = build_trainer(config, callbacks, logger)
    if trainer.is_global_zero and not trainer.fast_dev_run:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", cli.parser.dump(cli.config, skip_none=False))
        say(f"run folder: {folder}")
    try:
        trainer.fit(module, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except (Interrupted, SystemExit, KeyboardInterrupt) as error:
        if saver.last.exists():
            say(f"interrupted; {saver.last} is kept, go on with: {resume_command([spec.name, 'fit', *argv])}")
        else:
            say("interrupted before the first checkpoint; nothing is kept")
        raise SystemExit(130) from error
    if not config["export"] or trainer.fast_dev_run or not trainer.is_global_zero:
        return
    from .export import export

    what = "lora" if module.adapter_options is not None else "pipeline"
    target = folder / ("lora.safetensors" if what == "lora" else "pipeline")
    path = export(spec, saver.last, target, what, overwrite=True)
    option = "--weights" if what == "pipeline" else "--lora"
    say(f"wrote {path}\nuse it: polydit {spec.name} predict --input PATH --output DIR {option} {shlex.quote(str(path))}")


def build_trainer(config: Any, callbacks: list[Any], logger: Any) -> Trainer:
    """Lightning's Trainer by the config, our callbacks before the user's."""
    options = dict(config["trainer"])
    options["callbacks"] = [*callbacks, *(options.get("callbacks") or [])]
    if options.get("logger") is False and logger is not None:
        options["logger"] = logger
    if options.get("enable_progress_bar") is False:
        options["callbacks"] = [c for c in options["callbacks"] if not isinstance(c, RunProgress)]
    return Trainer(**options)


def run_folder(spec: TaskSpec, config: Any, subcommand: str) -> Path:
    """``<output>/<task>/<name or time>``, or the folder of the run that is resumed."""
    runs = Path(config["output"]) / spec.name.replace("-", "_")
    if config["name"]:
        return runs / config["name"]
    path = config["ckpt_path"]
    if path == "last":
        found = sorted(runs.glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise PolyditError(f"--ckpt_path last: no run in {runs} has a checkpoint yet; leave it out to start one")
        return found[-1].parent.parent
    if path and Path(path).parent.name == "checkpoints":
        return Path(path).parent.parent
    return runs / time.strftime("%Y-%m-%d_%H-%M-%S")


def resume_path(spec: TaskSpec, config: Any, folder: Path) -> Path | None:
    """The checkpoint that was asked for."""
    path = config["ckpt_path"]
    if path is None:
        return None
    if path in ("last", "best"):
        path = folder / "checkpoints" / f"{path}.ckpt"
    if not Path(path).is_file():
        raise PolyditError(f"--ckpt_path {path}: there is no such checkpoint")
    return Path(path)


def quiet() -> None:
    """Keep Lightning's tips and the warnings that ask nothing of the user off the screen."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",
        ".*LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def say(line: str) -> None:
    """One line to the user."""
    print(line, file=sys.stderr, flush=True)
