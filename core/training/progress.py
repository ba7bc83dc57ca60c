"""The progress of a run: steps, loss, samples per second and the time that is left."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .trackers import memory_gib

__all__ = ["RunProgress", "format_seconds"]


def format_seconds(seconds: float | None) -> str:
    """``0:01:05``, or ``?`` where nothing is known."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return "?"
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class RunProgress(ProgressBar):
    """One bar for the whole run; a line every few seconds where the output is not a terminal.

    Args:
        every_seconds: Pause between two lines without a terminal.
    """

    refresh_seconds = 0.25
    """Reading the loss waits for the accelerator: not at every step."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._bar: Progress | None = None
        self._clock = _Clock()
        self._loss = ""
        self._line_at = 0.0
        self._read_at = 0.0
        self._logged = (0, 0.0)

    def disable(self) -> None:
        """Other ranks, or the user, want none."""
        self._enabled = False

    def enable(self) -> None:
        """Counterpart of :meth:`disable`."""
        self._enabled = True

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The metrics of the bar, without the version number."""
        items = super().get_metrics(*args, **kwargs)
        items.pop("v_num", None)
        return items

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._clock = _Clock()
        self._line_at = time.monotonic()
        console = Console(stderr=True)
        if self._enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=console,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0, text="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and show a few times per second."""
        self._clock.samples += pl_module.batch_samples * trainer.world_size
        now = time.monotonic()
        if self._clock.samples_at_start is None:
            # the first step compiles, allocates and reads ahead: no measure of speed
            self._clock.start(now)
        if trainer.global_step % trainer.log_every_n_steps == 0 and not trainer.fit_loop._should_accumulate():
            self._log_speed(trainer, now)
        if not self._enabled or now - self._read_at < self.refresh_seconds:
            return
        self._read_at = now
        share = pl_module.progress(trainer.global_step)
        text = self.describe(trainer, share, now, outputs)
        if self._bar is not None:
            self._bar.update(self._task, completed=share, text=text)
        elif now - self._line_at >= self.every_seconds:
            self._line_at = now
            self._line(text)

    def _log_speed(self, trainer: Trainer, now: float) -> None:
        """Samples per second since the last time, and the most memory used so far, to the loggers."""
        samples, began = self._logged
        self._logged = (self._clock.samples, now)
        if began and now > began:
            figures = {"perf/samples_per_second": (self._clock.samples - samples) / (now - began)}
            figures["perf/memory_gib"] = memory_gib()
            for logger in trainer.loggers:
                logger.log_metrics(figures, trainer.global_step)

    def describe(self, trainer: Trainer, share: float, now: float, outputs: Any = None) -> str:
        """``step 120/2000 · loss 0.123 · 812 samples/s · 0:01:02 left``."""
        total = trainer.estimated_stepping_batches
        steps = f"step {trainer.global_step}" + ("" if total == float("inf") else f"/{total}")
        if isinstance(outputs, dict) and "loss" in outputs:
            self._loss = f"{float(outputs['loss']) * trainer.accumulate_grad_batches:.4g}"
        rate = self._clock.rate(now)
        left = self._clock.left(now, share)
        speed = (
            "" if rate is None else f" · {rate:.3g} samples/s" if rate < 100 else f" · {rate:.0f} samples/s"
        )
        return f"{steps} · loss {self._loss or '?'}{speed} · {format_seconds(left)} left"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line per validation."""
        value = trainer.callback_metrics.get("val/loss")
        if not self._enabled or trainer.sanity_checking or value is None or trainer.state.fn != "fit":
            return
        line = f"step {trainer.global_step}: held-out loss {float(value):.5g}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            self._line(line)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._close()

    @staticmethod
    def _line(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Clock:
    """Speed since the end of the first step."""

    def __init__(self) -> None:
        self.samples = 0
        self.samples_at_start: int | None = None
        self.share_at_start: float | None = None
        self.began = 0.0

    def start(self, now: float) -> None:
        self.began, self.samples_at_start = now, self.samples

    def rate(self, now: float) -> float | None:
        done = self.samples - (self.samples_at_start or 0)
        return done / (now - self.began) if done > 0 and now > self.began else None

    def left(self, now: float, share: float) -> float | None:
        if self.share_at_start is None:
            self.share_at_start = share
            return None
        done = share - self.share_at_start
        # Under a time limit the last steps run past it: the share is then above one.
        return max(1 - share, 0.0) * (now - self.began) / done if done > 0 else None
