"""Where the figures and pictures of a run go: TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from ..errors import PolyditError
from .extras import require

__all__ = ["TrackerOptions", "build_tracker", "log_picture", "memory_gib", "start_tracker"]


@dataclass
class TrackerOptions:
    """Where figures and pictures go, besides the progress bar and the run's folder.

    Attributes:
        kind: ``tensorboard`` (into the run's folder), ``wandb``, ``mlflow``, or ``none``.
        project: W&B's project, MLflow's experiment.
        address: Of the server; null is W&B's own, and for MLflow ``MLFLOW_TRACKING_URI`` or ``mlflow.db`` beside the
            runs.
        offline: W&B keeps everything in the run's folder; ``wandb sync`` uploads it later.
    """

    kind: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    project: str = "polydit"
    address: str | None = None
    offline: bool = False


def build_tracker(options: TrackerOptions, folder: Path) -> Logger | Literal[False]:
    """The logger of a run; one that is resumed goes on in the same place.

    Args:
        options: What the config says.
        folder: Of the run; its name is that of the tracked run.

    Raises:
        PolyditError: the tracker is not installed.
    """
    if options.kind == "tensorboard":
        return TensorBoardLogger(str(folder), name="", version="")
    if options.kind == "wandb":
        require("wandb", "--tracker.kind wandb", "track")
        os.environ.setdefault("WANDB_SILENT", "true")
        if options.address:
            os.environ["WANDB_BASE_URL"] = options.address
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in folder.name)
        return WandbLogger(
            project=options.project,
            name=name,
            id=name,
            resume="allow",
            save_dir=str(folder),
            offline=options.offline,
        )
    if options.kind == "mlflow":
        require("mlflow-skinny", "--tracker.kind mlflow", "track")
        runs = folder.parent.resolve()
        address = (
            options.address or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
        )
        return MLFlowLogger(
            experiment_name=options.project,
            run_name=folder.name,
            tracking_uri=address,
            artifact_location=str(runs / "mlflow") if address.startswith("sqlite:") else None,
            run_id=_saved_id(folder),
        )
    return False


def start_tracker(options: TrackerOptions, logger: Logger, folder: Path, config: dict[str, Any]) -> None:
    """Open the tracked run, and write the config to it if it is new. For the first process only.

    Raises:
        PolyditError: the server does not answer or does not let us in.
    """
    if options.kind not in ("wandb", "mlflow"):
        return
    try:
        logger.experiment  # type: ignore[attr-defined] # noqa: B018 - made when it is first asked for
        if isinstance(logger, MLFlowLogger) and _saved_id(folder) is None:
            (folder / "tracker.json").write_text(json.dumps({"run_id": logger.run_id}), encoding="utf-8")
            logger.log_hyperparams(config)
        elif isinstance(logger, WandbLogger):
            logger.log_hyperparams(config)
    except Exception as error:  # each has its own kinds
        line = " ".join(str(error).split())[:200] or type(error).__name__
        advice = {
            "wandb": "log in with `wandb login`, or pass --tracker.offline true",
            "mlflow": "check --tracker.address and that the server runs",
        }[options.kind]
        raise PolyditError(f"--tracker.kind {options.kind}: cannot be started ({line}); {advice}") from error


def _saved_id(folder: Path) -> str | None:
    file = folder / "tracker.json"
    return json.loads(file.read_text(encoding="utf-8"))["run_id"] if file.is_file() else None


def log_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Send a picture to every logger that takes some."""
    picture = picture.convert("RGB")
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{name}_{step:08d}.png")


def memory_gib() -> float:
    """The most memory used so far: of the accelerator, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if torch.backends.mps.is_available():
        return torch.mps.driver_allocated_memory() / 2**30
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
