"""Figures and pictures arrive at each tracker; a resumed run goes on in the same place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy import CONFIG, TOY, Toy

from polydit.core.errors import PolyditError
from polydit.core.training.cli import run
from polydit.core.training.trackers import memory_gib

FIGURES = {
    "train/loss",
    "train/gradient_norm",
    "train/lr",
    "val/loss",
    "perf/samples_per_second",
    "perf/memory_gib",
}


@pytest.fixture
def fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def pictures(self, pipeline, batch, generator):
        return [{"grey": np.full((8, 8, 3), 128, np.uint8)}]

    monkeypatch.setattr(Toy, "pictures", pictures)

    def go(*words: str) -> Path:
        common = [
            "--trainer.log_every_n_steps",
            "1",
            "--trainer.val_check_interval",
            "2",
            "--export",
            "false",
        ]
        run(TOY, "fit", ["--config", "toy.yaml", "--name", "run", *common, *words])
        return tmp_path / "runs" / "toy" / "run"

    return go


def test_tensorboard_has_figures_and_pictures(fit):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = fit()
    scalars, images = set(), set()
    for file in folder.glob("events.*"):
        tags = EventAccumulator(str(file)).Reload().Tags()
        scalars |= set(tags["scalars"])
        images |= set(tags["images"])
    assert scalars >= FIGURES
    assert images == {"pictures/0"}


def test_none_tracks_nothing(fit):
    folder = fit("--tracker.kind", "none")
    assert not list(folder.glob("events.*"))
    assert (folder / "checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(("kind", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_tracker_that_is_not_installed_names_the_extra(fit, monkeypatch, tmp_path, kind, package):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    message = rf"--tracker\.kind {kind}: {package} is not installed; pip install 'polydit\[track\]'"
    with pytest.raises(PolyditError, match=message):
        fit("--tracker.kind", kind)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_tracker_is_refused(fit):
    with pytest.raises(PolyditError, match=r"tracker\.kind: 'wandby' is not one of"):
        fit("--tracker.kind", "wandby")


def test_loggers_of_lightning_work_too(fit):
    words = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "logs"]
    assert not list(fit(*words).glob("events.*"))
    assert list(Path("logs").rglob("metrics.csv"))


def test_memory_is_that_of_this_process():
    assert 0.05 < memory_gib() < 1000


def test_mlflow_goes_on_in_the_same_run(fit):
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    folder = fit("--tracker.kind", "mlflow")
    fit("--tracker.kind", "mlflow", "--ckpt_path", "last", "--trainer.max_steps", "6")
    client = mlflow.MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.run_name for r in runs] == ["run"]
    assert runs[0].info.run_id == json.loads((folder / "tracker.json").read_text())["run_id"]
    assert set(runs[0].data.metrics) >= FIGURES
    assert runs[0].data.params["model/optimizer/lr"] == "0.005"
    assert [point.step for point in client.get_metric_history(runs[0].info.run_id, "val/loss")] == [1, 3, 5]
    artifacts = [a.path for a in client.list_artifacts(runs[0].info.run_id, "pictures")]
    assert artifacts == [f"pictures/0_{step:08d}.png" for step in (2, 4, 6)]


def test_mlflow_without_a_server_says_so(fit, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        PolyditError, match=r"--tracker\.kind mlflow: cannot be started \(.*; check --tracker\.address"
    ):
        fit("--tracker.kind", "mlflow", "--tracker.address", "http://127.0.0.1:9")


def test_wandb_offline_keeps_everything_in_the_folder(fit):
    wandb = pytest.importorskip("wandb")
    folder = fit("--tracker.kind", "wandb", "--tracker.offline", "true")
    wandb.finish()
    files = [path for path in (folder / "wandb").rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "run-run.wandb"]
    assert len([path for path in files if path.suffix == ".png"]) == 2


def test_wandb_without_a_login_says_so(fit, monkeypatch, tmp_path):
    pytest.importorskip("wandb").teardown()  # what it was told before, in this process
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(
        PolyditError, match=r"--tracker\.kind wandb: cannot be started \(.*; log in with `wandb login`"
    ):
        fit("--tracker.kind", "wandb")
