"""A tiny pipeline with random weights, a moving scene with known truth, and its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clips_of_tests import pipeline_of, scene, tiny_dit, write_video

from polydit.core.cli import main
from polydit.tasks.video_inpainting.pipeline import VideoInpaintingPipeline


@pytest.fixture(scope="session")
def moving():
    return scene()


@pytest.fixture(scope="session")
def pipe() -> VideoInpaintingPipeline:
    """Random weights that leave traces."""
    torch.manual_seed(0)
    model = tiny_dit()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pipeline_of(model)


@pytest.fixture(scope="session")
def weights(pipe: VideoInpaintingPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def files(moving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``clip.mp4`` and ``mask.mp4``."""
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder, "clip.mp4", moving[0])
    write_video(folder, "mask.mp4", moving[1])
    return folder


@pytest.fixture
def run(weights: Path, tmp_path: Path, capsys):
    """``predict`` with tiny weights: exit code, record of the first input, what was said."""

    def call(*words: Any) -> tuple[int, dict, str]:
        given = ["video-inpainting", "predict", "--weights", weights, "--output", tmp_path / "out", *words]
        code = main(list(map(str, given)))
        file = tmp_path / "out/results.json"
        record = json.loads(file.read_text())["inputs"][0] if file.is_file() else {}
        return code, record, capsys.readouterr().err

    return call
