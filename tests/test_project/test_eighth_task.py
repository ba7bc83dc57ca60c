"""A task that another distribution brings works like those in here, without a change in core."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dummy(polydit: Run, eighth_task: Path, tmp_path: Path) -> Run:
    """``polydit`` in a process that finds the other distribution on its path."""
    return lambda *words: polydit(*words, env={"PYTHONPATH": str(eighth_task)}, cwd=tmp_path)


def test_it_is_listed_and_explains_itself(dummy: Run):
    assert "Dusk" in dummy("list").stdout
    assert "Darken pictures." in dummy("--help").stdout
    shown = dummy("dummy", "--help").stdout
    assert "greet" in shown
    assert "Dusk  A system that nobody published" in shown
    assert "--amount X" in dummy("dummy", "predict", "--help").stdout


def test_fit_shows_every_key(dummy: Run):
    done = dummy("dummy", "fit", "--help")
    assert done.returncode == 0, done.stderr
    assert "--data.batch_size" in done.stdout
    assert "--trainer.max_steps" in done.stdout


def test_fit_then_predict_then_export(dummy: Run, tmp_path: Path):
    done = dummy("dummy", "fit", "--name", "once", "--output", "runs")
    assert done.returncode == 0, done.stderr
    pipeline = tmp_path / "runs/dummy/once/pipeline"
    assert (pipeline / "model_index.json").is_file()
    Image.new("RGB", (4, 4), (200, 100, 0)).save(tmp_path / "a.png")
    done = dummy("dummy", "predict", "--input", "a.png", "--output", "out", "--weights", pipeline)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out/a.png").getpixel((0, 0)) == (100, 50, 0)
    assert json.loads((tmp_path / "out/results.json").read_text())["inputs"][0]["status"] == "done"
    checkpoint = tmp_path / "runs/dummy/once/checkpoints/last.ckpt"
    refused = dummy("dummy", "export", "--ckpt_path", checkpoint, "--output", "exported")
    assert refused.returncode == 2
    assert refused.stderr.startswith("polydit: error: --license and --data-source: required")
    card = ["--license", "mit", "--data-source", "nights"]
    done = dummy("dummy", "export", "--ckpt_path", checkpoint, "--output", "exported", *card)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported/model_index.json").is_file()
    again = dummy("dummy", "export", "--ckpt_path", checkpoint, "--output", "exported")
    assert again.returncode == 2
    assert again.stderr.startswith("polydit: error: exported: exists already")
