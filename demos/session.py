"""``predict`` behind a button: the same options, the same code, and so the same bytes as the command."""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydit.core.commands.failures import explain
from polydit.core.jobs import subject_dest
from polydit.core.media import OutputWriter
from polydit.core.open_pipeline import choose_weights, open_pipeline
from polydit.core.predict import predict_parser, run_one
from polydit.core.task import TaskSpec

__all__ = ["PredictSession", "Result", "explain_upload"]

KEPT_RUNS = 8  # the page copies what it shows; these are only for what is being copied


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        folder: where the files lie; it is removed some runs later.
        files: what `predict` writes, in the order the task gives it.
        record: what `predict` notes in ``results.json``.
        seconds: of the run itself, without loading.
        lora: what came of loading the LoRA, or empty.
    """

    folder: Path
    files: list[Path]
    record: dict[str, Any]
    seconds: float
    lora: str


class PredictSession:
    """Runs ``predict`` of a task, keeping the pipeline open from one call to the next.

    Args:
        task: what to run.
        weights: folder or hub id of a saved pipeline; those that came with the task when ``None``.
    """

    def __init__(self, task: TaskSpec, weights: str | Path | None = None) -> None:
        self.task = task
        self.weights = weights
        self._lock = threading.Lock()  # a pipeline has state
        self._open: tuple[Any, Any, dict[str, Any]] | None = None
        self._root = tempfile.TemporaryDirectory(prefix="polydit-demo-")
        self._runs: deque[Path] = deque()

    def keep(self, make: Callable[[Path], list[Path]]) -> list[Path]:
        """Files that live as long as the session: what `make` writes into the folder it is given."""
        return make(Path(tempfile.mkdtemp(dir=self._root.name)))

    def options(
        self, source: str | Path | None, output: str | Path, settings: dict[str, Any]
    ) -> argparse.Namespace:
        """The options of the command, with its checks.

        Args:
            source: the input; None where an option takes its place, such as a category.
            output: folder for the results.
            settings: by the name on the command line without dashes, ``{"color-fix": "adain"}``; None is left out.

        Raises:
            PolyditError: as the command complains.
        """
        return predict_parser(self.task).parse_args(self._words(source, output, settings))

    def command(self, source: str | Path | None, output: str | Path, settings: dict[str, Any]) -> str:
        """The command that makes the same files."""
        if self.weights is not None:
            settings = {"weights": self.weights, **settings}
        return shlex.join(["polydit", self.task.name, "predict", *self._words(source, output, settings)])

    def run(
        self,
        source: Path | None,
        settings: dict[str, Any],
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Run on one file, or on what an option names.

        Args:
            source: the input; None where an option takes its place, such as a category.
            settings: see `options`.
            progress: called with (parts done, parts in all).

        Raises:
            PolyditError: as the command complains.
        """
        with self._lock:
            folder = self._new_folder()
            options = self.options(source, folder, settings)
            options.progress = progress
            pipe, notes = self._pipeline(options)
            begin = time.perf_counter()
            if source is None:
                source = Path(getattr(options, subject_dest(self.task)))
            record = run_one(self.task, pipe, source, OutputWriter(folder), options)
            seconds = time.perf_counter() - begin
        files = [folder / name for name in record["files"]]
        return Result(folder, files, record, seconds, notes.get("lora_report", ""))

    def _pipeline(self, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
        """The open pipeline if it is the one asked for, or else the one asked for in its place."""
        weights = choose_weights(self.task, self.weights, getattr(options, "system", None))
        lora = options.lora and (options.lora, _stamp(options.lora), options.lora_scale)
        asked = (weights, lora, options.device, options.dtype, options.cache)
        if self._open is None or self._open[0] != asked:
            self._open = None  # before the next one takes memory
            notes: dict[str, Any] = {}
            pipe = open_pipeline(self.task, weights, options, notes, say=lambda line: None)
            self._open = (asked, pipe, notes)
        return self._open[1:]

    def _new_folder(self) -> Path:
        while len(self._runs) >= KEPT_RUNS:
            shutil.rmtree(self._runs.popleft(), ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=self._root.name))
        self._runs.append(folder)
        return folder

    @staticmethod
    def _words(source: str | Path | None, output: str | Path, settings: dict[str, Any]) -> list[str]:
        given = {"input": source, "output": output, **settings}
        words: list[str] = []
        for name, value in given.items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            elif isinstance(value, list):
                words += [f"--{name}", *map(str, value)] if value else []
            elif value is not None:
                words += [f"--{name}", str(value)]
        return words


def explain_upload(error: Exception, *uploads: Path | None) -> str | None:
    """The line of the command, with uploaded files called by their names; None for a defect."""
    line = explain(error)
    for upload in uploads:
        if line is not None and upload is not None:
            line = line.replace(str(upload), upload.name)
    return line


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
