"""``fit``, ``validate`` and ``test``: what they run, where it goes, and what they say."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ..adapters import count_trainable
from ..errors import PolyditError
from .card import Card
from .checkpoints import Checkpoints, read_checkpoint, resume_command
from .config import TRAINER_DEFAULTS, TaskCLI, instantiate, model_settings
from .ema import EMA
from .pictures import Pictures
from .progress import RunProgress
from .resume import RandomState
from .trackers import build_tracker, start_tracker

if TYPE_CHECKING:
    from ..task import TaskSpec
    from .module import DiffusionModule

__all__ = ["TaskCLI", "instantiate", "run"]


def run(
    spec: TaskSpec,
    subcommand: Literal["fit", "validate", "test"],
    argv: list[str],
    typed: Sequence[str] | None = None,
) -> None:
    """Run a subcommand with the words that follow it on the command line.

    Without ``--config`` it takes the task's default. Model cards show the words as they were ``typed``, where that is
    something else: the names of shipped configs instead of where they lie on this machine.

    Raises:
        PolyditError: anything that the user can put right.
        SystemExit: 130 after Ctrl-C, once the checkpoint is written.
    """
    quiet()
    cli = TaskCLI(spec, subcommand, with_default_config(spec, argv))
    config = cli.config_init
    folder = run_folder(spec, config)
    checkpoint = resume_path(config, folder)
    if checkpoint is not None:
        read_checkpoint(checkpoint)  # refuses what is not a checkpoint before anything is built on it
    cli.model.run_record = {
        "task": spec.name,
        "config": portable(cli.plain_config()),
        "command": shlex.join(["polydit", spec.name, subcommand, *(typed or argv)]),
    }
    if subcommand == "fit":
        fit(spec, cli, folder, checkpoint, argv)
        return
    if checkpoint is None:
        raise PolyditError(
            f"--ckpt_path: `{subcommand}` needs the checkpoint to look at; a file, 'last' or 'best'"
        )
    trainer = build_trainer(config, [RunProgress()], False)
    evaluate = getattr(trainer, subcommand)
    figures = evaluate(
        cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False
    )
    for name, value in figures[0].items() if figures else ():
        say(f"{name}: {value:.6g}")


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the base's path made absolute, so that a LoRA can be exported from another folder."""
    settings = model_settings(config)
    source = settings.get("init_weights")
    if source and Path(source).exists():
        settings["init_weights"] = str(Path(source).resolve())
    return config


def with_default_config(spec: TaskSpec, argv: list[str]) -> list[str]:
    """The words, with the task's default config before them if they name none."""
    named = any(word in ("-c", "--config", "-h", "--help") or word.startswith("--config=") for word in argv)
    if named or spec.default_config is None:
        return list(argv)
    return ["--config", str(spec.config_folder() / spec.default_config), *argv]


def fit(spec: TaskSpec, cli: TaskCLI, folder: Path, checkpoint: Path | None, argv: list[str]) -> None:
    """Train, look at the held-out set, export beside the checkpoint and say how to use it."""
    config, module = cli.config_init, cli.model
    check_limits(config["trainer"])
    module.prepare()  # its complaints come before a folder exists
    options = config["checkpoint"]
    ema = EMA(module.ema_options) if module.ema_options is not None else None
    saver = Checkpoints(folder / "checkpoints", options.every_minutes, options.every_n_steps, options.monitor)
    callbacks = [
        ema,
        RandomState(),
        RunProgress(),
        Pictures(folder / "pictures") if config["pictures"] else None,
        saver,
    ]
    logger = build_tracker(config["tracker"], folder)
    trainer = build_trainer(config, [c for c in callbacks if c], logger)
    fresh = not folder.exists()
    if trainer.is_global_zero and not trainer.fast_dev_run:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", cli.dumped_config())
        if logger and logger in trainer.loggers:
            start_tracker(config["tracker"], logger, folder, cli.plain_config())
        total = sum(p.numel() for p in module.backbone.parameters())
        say(f"run folder: {folder}\n{total:,} parameters, {count_trainable(module):,} of them trained")
    try:
        trainer.fit(module, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except (SystemExit, KeyboardInterrupt) as error:  # Lightning turns the second into the first
        if saver.last.exists():
            say(
                f"interrupted; {saver.last} is kept, go on with: {resume_command([spec.name, 'fit', *argv], folder)}"
            )
        else:
            say("interrupted before the first checkpoint; nothing is kept")
        raise SystemExit(130) from error
    except PolyditError:
        if fresh and trainer.is_global_zero and trainer.global_step == 0:
            shutil.rmtree(folder, ignore_errors=True)  # nothing was learned: such as data that is not there
        raise
    except RuntimeError as error:
        if "find_unused_parameters" in str(error):
            raise PolyditError(
                "--trainer.strategy ddp: some weights take no part in the loss; "
                "use --trainer.strategy ddp_find_unused_parameters_true"
            ) from error
        raise
    finally:
        saver.give_signals_back()
    if trainer.fast_dev_run:
        return
    if saver.validated_step != trainer.global_step and trainer.val_dataloaders:
        validate_end(trainer, cli, ema)
    if config["export"] and trainer.is_global_zero:
        measured = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        export_end(spec, module, saver.last, folder, measured)


def check_limits(limits: Any) -> None:
    """Refuse a run without an end, or without a step.

    Raises:
        PolyditError: so say the trainer's options.
    """
    for name in ("max_epochs", "max_steps"):
        if limits[name] == 0:
            raise PolyditError(f"config section trainer: {name} is 0, so nothing would be trained; raise it")
    if limits["max_epochs"] == limits["max_steps"] == -1 and not (
        limits["max_time"] or limits["fast_dev_run"]
    ):
        raise PolyditError(
            "config section trainer: the run has no end; set max_steps, max_time or max_epochs"
        )


def validate_end(trainer: Trainer, cli: TaskCLI, ema: EMA | None) -> None:
    """The held-out loss and pictures of what will be exported, where the run did not end on a validation."""
    if ema is not None:
        ema.put_average(cli.model)
    step = trainer.global_step
    figures = trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    if figures and "val/loss" in figures[0]:
        say(f"step {step}: held-out loss {figures[0]['val/loss']:.5g}")


def export_end(
    spec: TaskSpec, module: DiffusionModule, checkpoint: Path, folder: Path, figures: dict[str, float]
) -> None:
    """Write the pipeline, or the LoRA file, and the command that uses it."""
    from .export import export

    what: Literal["lora", "pipeline"] = "lora" if module.adapter_options is not None else "pipeline"
    path = export(
        spec,
        checkpoint,
        folder / ("lora.safetensors" if what == "lora" else "pipeline"),
        what,
        figures=figures,
        overwrite=True,
    )
    words = [
        "polydit",
        spec.name,
        "predict",
        spec.input_flag,
        "PATH",
        *module.predict_words,
        "--output",
        "DIR",
    ]
    words += ["--lora", str(path)] if what == "lora" else ["--weights", str(path)]
    source = Path(module.init_weights) if module.init_weights else None
    if what == "lora" and source is not None and (source / "model_index.json").is_file():
        words += ["--weights", str(source)]
    say(f"wrote {path}\nuse it: {shlex.join(words)}")
    if what == "pipeline" and (lacks := Card.read(spec, path).missing):
        asked = " ".join(f"{option} ..." for option in lacks)
        say(
            "its model card is incomplete; before you hand it on: "
            f"polydit {spec.name} export --pipeline {shlex.quote(str(path))} --output NEW {asked}"
        )


def build_trainer(config: Any, callbacks: list[Any], logger: Any) -> Trainer:
    """Lightning's Trainer by the config, our callbacks before the user's.

    Raises:
        PolyditError: the options contradict each other or this machine (no such device).
    """
    options = dict(config["trainer"])
    options["callbacks"] = [*callbacks, *(options.get("callbacks") or [])]
    if options.get("logger") is None:
        options["logger"] = logger
    if options.get("enable_progress_bar") is False:
        options["callbacks"] = [c for c in options["callbacks"] if not isinstance(c, RunProgress)]
    if (
        options["check_val_every_n_epoch"] is not None
        and options["val_check_interval"] == TRAINER_DEFAULTS["val_check_interval"]
    ):
        options["val_check_interval"] = 1.0  # asked for by epochs: at their end
    try:
        trainer = Trainer(**options)
        check_launcher(trainer)
        return trainer
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        line = " ".join(str(error).split()).rstrip(".!")
        hint = "; choose --trainer.accelerator auto or cpu" if re.search("accelerator|backend", line) else ""
        raise PolyditError(f"config section trainer: {line}{hint}") from error


def check_launcher(trainer: Trainer) -> None:
    """Compare what torchrun or SLURM started with what the config asks for; Lightning then believes the config.

    Raises:
        ValueError: they differ.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None and environment.creates_processes_externally:
        environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    if trainer.world_size > 1:
        return
    for launcher in (TorchElasticEnvironment, SLURMEnvironment):
        if launcher.detect() and (count := launcher().world_size()) > 1:
            raise ValueError(
                f"{count} processes were launched and each would train alone; set --trainer.devices to those of a "
                "node, --trainer.num_nodes, and --trainer.strategy ddp or fsdp2"
            )


def run_folder(spec: TaskSpec, config: Any) -> Path:
    """``<output>/<task>/<name or time>``, or the folder of the run that is resumed."""
    runs = Path(config["output"]) / spec.name.replace("-", "_")
    if config["name"]:
        return runs / config["name"]
    path = config["ckpt_path"]
    if path == "last":
        found = sorted(runs.glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
        if not found:
            raise PolyditError(
                f"--ckpt_path last: no run in {runs} has a checkpoint yet; leave it out to start one"
            )
        return found[-1].parent.parent
    if path and Path(path).parent.name == "checkpoints":
        return Path(path).parent.parent
    folder = runs / time.strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    while folder.exists():  # started within the same second, or the clock was put back
        number += 1
        folder = folder.with_name(f"{folder.name.split('.')[0]}.{number}")
    return folder


def resume_path(config: Any, folder: Path) -> Path | None:
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
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",
        ".*LeafSpec.*",
        r".*module\(s\) in eval mode at the start of training.*",  # an autoencoder is meant to be
        ".*callbacks used to create the checkpoint.*",
        ".*`trainer.validate.*",
        ".*Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message)


def write_text(path: Path, text: str) -> None:
    """Write through a temporary name."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def say(line: str) -> None:
    """One line to the user, however many processes there are."""
    if rank_zero_only.rank:
        return
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
