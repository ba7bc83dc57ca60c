"""Everything about a run that would fail, found at once and before a step: what ``polydit <task> check`` prints."""

from __future__ import annotations

import logging
import os
import pydoc
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from ..adapters import continue_from, count_trainable
from ..commands.failures import explain
from ..devices import free_memory
from ..errors import PolyditError
from ..task import resolve
from .checkpoints import read_checkpoint
from .cli import build_trainer, check_limits, resume_path, run_folder
from .config import TaskCLI
from .config_errors import one_line
from .loader_check import LoaderReport, inspect_loader, loaders_of
from .memory import Footprint, Variant, footprint, optimizer_bytes, variants, weight_bytes
from .progress import format_seconds
from .rehearsal import PRECISIONS
from .weights import check_saved, check_weights, is_on_meta

if TYPE_CHECKING:
    from ..task import TaskSpec
    from .module import DiffusionModule

__all__ = ["Preflight"]

T = TypeVar("T")
UNCOUNTABLE = (UnsupportedFakeTensorException, UnsupportedOperatorException, NotImplementedError)


class ParseOnly(TaskCLI):
    """Parses and builds nothing: the parts are built one by one, so that each can fail for itself."""

    def instantiate_classes(self) -> None:
        """Nothing."""


class Preflight:
    """Looks at a config, its weights and its data.

    Args:
        task: The task.
        arguments: Words of ``fit``.
        table: Count each option that saves memory, even if the config fits as it is.

    Attributes:
        lines: What was found, in the order of :meth:`run`.
        problems: What would fail.
        table: Memory by option, if it was asked for or something must be saved.
    """

    def __init__(self, task: TaskSpec, arguments: list[str], table: bool = False) -> None:
        self.task, self.arguments, self.wants_table = task, arguments, table
        self.lines: list[str] = []
        self.problems: list[str] = []
        self.table: list[Variant] = []
        self.config: dict[str, Any] = {}
        self.trainer: Trainer | None = None
        self.module: DiffusionModule | None = None
        self.is_set_up = False
        self.train: LoaderReport | None = None

    def run(self) -> None:
        """All of it; a part that needs one that failed is left out."""
        parsed = self.attempt(lambda: ParseOnly(self.task, "fit", self.arguments))
        if parsed is None:
            return
        self.config = parsed.plain_config()
        self.trainer = self.attempt(self.build_trainer)
        if self.has_its_folders():
            with torch.device("meta"):  # shapes without values: a model of any size fits
                self.module = self.attempt(lambda: self.build("model", resolve(self.task.module)))
        data = self.attempt(lambda: self.build("data", resolve(self.task.datamodule)))
        if self.module is not None:
            self.look_at_model(self.module, data)
        if data is not None:
            self.look_at_data(data)
        if self.module is not None:
            self.look_at_disk(self.module)
            if self.is_set_up and self.train is not None and self.train.batch is not None:
                self.look_at_step(self.module, self.train)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The result, or None with the problem noted; a defect passes through."""
        try:
            return action()
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            self.note(line)
            return None

    def note(self, problem: str) -> None:
        """Add a problem, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    # -- parts ---------------------------------------------------------------------------------------------

    def build(self, section: str, class_: type) -> Any:
        """The class of one section of the config, or the options of the trainer."""
        parser = LightningArgumentParser(exit_on_error=False, prog=f"polydit {self.task.name} fit")
        several = self.task.subclass_mode and section != "trainer"
        parser.add_lightning_class_args(class_, section, subclass_mode=several)
        try:
            values = parser.parse_object({section: self.config[section]})
            make = getattr(parser, "instantiate", None) or parser.instantiate_classes
            return make(values)[section]
        except ValueError as error:
            line = one_line(str(error), (), parser.prog)
            raise PolyditError(line if line.startswith("--") else f"config: {line}") from error

    def build_trainer(self) -> Trainer:
        """Lightning's, as ``fit`` would have it, without callbacks and loggers of ours."""
        options = self.build("trainer", Trainer)
        self.attempt(lambda: check_limits(options))
        return build_trainer({"trainer": options}, [], False)

    def has_its_folders(self) -> bool:
        """Whether no part of the model lacks the folder that it starts from; what ``fit`` says of one is noted.

        On the meta device some make do without one, with shapes that say little of the user's own folder.
        """
        known = len(self.problems)
        for make, settings in left_open(self.config["model"]):
            try:
                with FakeTensorMode():  # should it be content, nothing comes into being
                    make(**settings)
            except PolyditError as error:
                self.note(explain(error) or str(error))
            except Exception:  # whatever else is wrong with it, building the model says
                continue
        return len(self.problems) == known

    def look_at_model(self, module: DiffusionModule, data: Any) -> None:
        """Its set-up, its weights and the checkpoint to resume from."""
        self.attempt(module.refuse_untrained_base)
        source, adapter = module.init_weights, module.adapter_options
        fits = source is not None and self.attempt(lambda: check_weights(source, module.backbone))
        for part in module.modules():
            if isinstance(part, ModelMixin) and is_on_meta(part):
                self.attempt(lambda part=part: check_saved(part))  # type: ignore[misc]
        if self.trainer is not None:
            self.trainer.datamodule = data  # type: ignore[attr-defined]
            module.trainer = self.trainer
        with torch.device("meta"):
            self.is_set_up = bool(self.attempt(lambda: self.set_up(module)))
        module.trainer = None  # what is asked from here on is outside of a run
        backbone = type(module.backbone).__name__
        total = sum(parameter.numel() for parameter in module.backbone.parameters())
        self.lines.append(f"model: {backbone}, {total:,} parameters, {count_trainable(module):,} trained")
        if fits:
            self.lines.append(f"weights: {source} fits")
        if adapter is not None and adapter.init_from:
            self.attempt(lambda: continue_from(module.backbone, str(adapter.init_from)))
        if self.config.get("ckpt_path"):
            self.attempt(lambda: self.check_checkpoint(module))

    def set_up(self, module: DiffusionModule) -> bool:
        """As Lightning does before ``fit``."""
        module.setup("fit")
        return True

    def check_checkpoint(self, module: DiffusionModule) -> None:
        """Whether the run to resume can be."""
        path = resume_path(self.config, run_folder(self.task, self.config))
        if path is not None:
            module.run_record = {"task": self.task.name}
            module.on_load_checkpoint(read_checkpoint(path))
            self.lines.append(f"checkpoint: {path} fits")

    def look_at_data(self, data: Any) -> None:
        """Both loaders, after the set-up for ``fit``; what could not be set up has none to ask."""
        self.attempt(data.prepare_data)
        if self.attempt(lambda: (data.setup("fit"),)) is None:
            return
        for name, hook in (("train", "train_dataloader"), ("validation", "val_dataloader")):
            if not is_overridden(hook, data):
                continue  # Lightning does without
            loaders = self.attempt(lambda hook=hook: (getattr(data, hook)(),))  # type: ignore[misc]
            for title, loader in loaders_of(loaders[0] if loaders else None, name):
                report = inspect_loader(loader, title)
                self.lines += [report.summary] if report.summary else []
                for problem in report.problems:
                    self.note(problem)
                if name == "train" and self.train is None:
                    self.train = report

    # -- what it takes -------------------------------------------------------------------------------------

    def look_at_step(self, module: DiffusionModule, train: LoaderReport) -> None:
        """Memory and time of a step."""
        precision = str(self.config["trainer"]["precision"] or "32-true")
        if precision not in PRECISIONS:
            self.lines.append(f"memory: cannot be counted for precision {precision}")
            return
        accumulate = int(self.config["trainer"]["accumulate_grad_batches"])
        torch_tells = logging.getLogger("torch._subclasses.fake_tensor")
        torch_tells.setLevel(logging.CRITICAL)  # a trace of what is one line below
        try:
            needs = footprint(module, train.batch, precision, accumulate)
        except UNCOUNTABLE as error:
            self.lines.append(f"memory: cannot be counted for this model ({_first_line(error)})")
            return
        except Exception as error:
            self.note(
                explain(error)
                or f"a batch does not go through the model ({type(error).__name__}: {_first_line(error)}); compare "
                "its shapes above with --model.backbone"
            )
            return
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        free = free_memory(device)
        self.lines.append(f"memory: {describe(needs)}; {in_words(free)} are free on {device}")
        if needs.total > free:
            self.note(
                f"memory: a step needs {in_words(needs.total)} and {device} has {in_words(free)}; lower "
                "--data.batch_size, or take an option that fits from the table"
            )
        if needs.total > free or self.wants_table:
            self.attempt(lambda: self.count_options(train.batch, precision, accumulate))
        self.look_at_time(needs, train, precision, device, accumulate)

    def count_options(self, batch: Any, precision: str, accumulate: int) -> None:
        """The same config with each option that saves memory, into :attr:`table`."""
        with torch.device("meta"):
            fresh = self.build("model", resolve(self.task.module))
        for variant in variants(fresh, batch, precision, accumulate):
            self.table.append(variant)

    def look_at_time(
        self, needs: Footprint, train: LoaderReport, precision: str, device: torch.device, accumulate: int
    ) -> None:
        """How long a step takes if the device does nothing but multiply, and the run with it."""
        dtype, autocast = PRECISIONS[precision]
        speed = multiplications_per_second(device, autocast or dtype or torch.float32)
        step = needs.flops / speed * accumulate
        line = f"time: at least {format_short(step)} a step ({needs.flops * accumulate / 1e9:,.1f} GFLOP)"
        limits = self.config["trainer"]
        if limits["max_steps"] != -1:
            line += f", {format_short(step * limits['max_steps'])} for {limits['max_steps']:,} steps"
        elif limits["max_time"]:
            line += f"; the run ends after {limits['max_time']}"
        if train.seconds is not None:
            rate = train.seconds / max(train.workers, 1)
            line += f"; a batch is read in {format_short(train.seconds)}"
            if rate > step / accumulate:
                line += ", which is longer: raise --data.num_workers if the run waits for data"
        self.lines.append(line)

    def look_at_disk(self, module: DiffusionModule) -> None:
        """Checkpoints (the last, the best, and one being written) and what is exported at the end."""
        folder = run_folder(self.task, self.config | {"ckpt_path": None})
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            self.note(
                f"--output {self.config['output']}: {existing} cannot be written; choose another folder"
            )
        if not self.is_set_up:
            return  # what would be trained and saved is not known
        trained = [p for p in module.parameters() if p.requires_grad]
        names = module.saved_names()
        saved = sum(v.numel() * v.element_size() for n, v in module.state_dict().items() if n in names)
        average = 4 * sum(p.numel() for p in trained) if module.ema_options is not None else 0
        checkpoint = saved + average + optimizer_bytes(trained, module.optimizer_options)
        exported = saved if module.adapter_options is not None else weight_bytes(module)[0]
        size = 3 * checkpoint + (exported if self.config["export"] else 0)
        free = shutil.disk_usage(existing).free
        self.lines.append(f"disk: {in_words(size)} in {self.config['output']}; {in_words(free)} are free")
        if size > free:
            self.note(
                f"--output {self.config['output']}: the run writes {in_words(size)} and {in_words(free)} are free; "
                "make room or choose another folder"
            )


def left_open(section: Any) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """What the config calls with no ``source``, and with which settings."""
    if not isinstance(section, dict):
        return
    settings = section.get("init_args")
    if isinstance(settings, dict) and "source" in settings and settings["source"] is None:
        try:
            make = pydoc.locate(str(section.get("class_path")))
        except pydoc.ErrorDuringImport:  # building the model says so
            make = None
        if callable(make):
            yield make, settings
    for part in section.values():
        yield from left_open(part)


def multiplications_per_second(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Floating-point operations per second of a square matrix product, the best of some."""
    if device.type != "cpu":
        size *= 4
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # waits for an accelerator
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def describe(needs: Footprint) -> str:
    """The total and its parts."""
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    listed = ", ".join(f"{name} {in_words(getattr(needs, name))}" for name in parts)
    return f"{in_words(needs.total)} in a step ({listed})"


def in_words(size: int) -> str:
    """``1.25 GB``, ``3.1 MB``."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def format_short(seconds: float) -> str:
    """``12 ms``, ``3.4 s``, ``0:12:00`` or ``3.2 days``."""
    if seconds < 60:
        return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return format_seconds(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
