"""Configs: what they may hold, how they are parsed and built; errors in one line."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ..errors import PolyditError
from ..task import resolve
from .card import CardOptions
from .config_errors import one_line, suggestion
from .trackers import TrackerOptions

if TYPE_CHECKING:
    from ..task import TaskSpec
    from .module import DiffusionModule

__all__ = ["CheckpointOptions", "TaskCLI", "instantiate", "model_settings"]


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


TRAINER_DEFAULTS: dict[str, Any] = {
    "enable_model_summary": False,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 1,
    "max_epochs": -1,  # a run ends by steps or by the clock
    # by steps, since an epoch of a small data set is over in seconds
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
}


class TaskCLI(LightningCLI):
    """Lightning's command line for one task; parses and builds, and runs nothing by itself."""

    def __init__(self, spec: TaskSpec, subcommand: str, args: list[str] | dict[str, Any]) -> None:
        super().__init__(
            model_class=resolve(spec.module),
            datamodule_class=resolve(spec.datamodule),
            subclass_mode_model=spec.subclass_mode,
            subclass_mode_data=spec.subclass_mode,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={
                "prog": f"polydit {spec.name} {subcommand}",
                "exit_on_error": False,
                "dump_header": [],
            },
            args=args,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the design adds to Lightning's own options."""
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="checkpoint to resume from, or 'last'"
        )
        parser.add_argument(
            "--name", type=str | None, default=None, help="name of the run's folder; default the time"
        )
        parser.add_argument("--output", type=str, default="runs", help="folder of all runs")
        parser.add_argument("--checkpoint", type=CheckpointOptions, default=CheckpointOptions())
        parser.add_argument("--tracker", type=TrackerOptions, default=TrackerOptions())
        parser.add_argument("--card", type=CardOptions, default=CardOptions())
        parser.add_argument(
            "--pictures", type=bool, default=True, help="show held-out pictures after each validation"
        )
        parser.add_argument(
            "--export", type=bool, default=True, help="write the pipeline or LoRA file at the end"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, with errors in one line, and without Lightning's warning that there is also a ``sys.argv``."""
        try:
            if isinstance(args, list):
                refuse_unknown_sections(parser, args)
                self.config = parser.parse_args(args)
            else:
                self.config = parser.parse_object(args)
        except ArgumentError as error:
            raise PolyditError(one_line(str(error), option_keys(parser), parser.prog)) from error

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise PolyditError(f"--seed_everything: {error}; choose another number") from error

    def instantiate_classes(self) -> None:
        """Build model and data; the trainer comes later, when the run's folder is known."""
        try:
            build = getattr(self.parser, "instantiate", None) or self.parser.instantiate_classes
            self.config_init = build(self.config)
        except ValueError as error:  # what constructors raise about their arguments
            line = one_line(str(error), (), self.parser.prog)
            raise PolyditError(line if line.startswith("--") else f"config: {line}") from error
        from .module import DiffusionModule

        if type(self.config_init["model"]) is DiffusionModule:  # what the systems' modules have in common
            raise PolyditError(
                "config section model: names no module of the task; give its class_path, and settings as init_args"
            )
        self.datamodule = self.config_init["data"]
        self.model = self.config_init["model"]

    def dumped_config(self) -> str:
        """The whole resolved config as YAML, what is null included."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the option was renamed; older versions know the old name only
            try:
                return self.parser.dump(self.config, skip_none=False)
            except TypeError:
                return self.parser.dump(self.config, skip_unset=False)

    def plain_config(self) -> dict[str, Any]:
        """The whole resolved config as plain values."""
        import yaml

        return yaml.safe_load(self.dumped_config())


def model_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What the module of a resolved config is built with, for reading and changing, in subclass mode too."""
    model: dict[str, Any] = config["model"]
    return model["init_args"] if model.keys() <= {"class_path", "init_args", "dict_kwargs"} else model


def option_keys(parser: LightningArgumentParser) -> list[str]:
    """Every key that a parser accepts, without the dashes."""
    return sorted({word[2:] for word in parser._option_string_actions if word.startswith("--")})


def refuse_unknown_sections(parser: LightningArgumentParser, args: list[str]) -> None:
    """The parser lets an unknown section pass while it is empty; we do not."""
    import yaml

    sections = {key.split(".")[0] for key in option_keys(parser)}
    for before, word in zip(["", *args], args, strict=False):
        path = Path(word.removeprefix("--config=")) if word.startswith("--config=") else Path(word)
        if (before not in ("-c", "--config") and not word.startswith("--config=")) or not path.is_file():
            continue
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PolyditError(f"--config {path}: not valid YAML ({' '.join(str(error).split())})") from error
        if not isinstance(given, dict):
            raise PolyditError(f"--config {path}: holds no settings; it needs model, data and trainer")
        for key in given:
            if str(key).split(".")[0] not in sections:
                raise PolyditError(f"{path}: unknown section {key!r}{suggestion(str(key), sections)}")


def instantiate(
    spec: TaskSpec, config: str | Path | Mapping[str, Any], device: str = "cpu"
) -> DiffusionModule:
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
        module = TaskCLI(spec, "fit", args).model
    return module
