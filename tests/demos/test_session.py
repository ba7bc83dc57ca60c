"""What is behind the button, without a page."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polydit.core.cli import main
from polydit.core.errors import PolyditError
from polydit.demos import session as session_module
from polydit.demos.session import KEPT_RUNS, PredictSession, explain_upload
from polydit.demos.super_resolution import upscale
from polydit.tasks.super_resolution import TASK


@pytest.fixture
def session(weights: Path) -> PredictSession:
    return PredictSession(TASK, weights)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The LoRA of each pipeline that was opened."""
    opened: list[Any] = []
    real: Callable[..., Any] = session_module.open_pipeline

    def count(task: Any, weights: Any, options: Any, *rest: Any, **named: Any) -> Any:
        opened.append(options.lora)
        return real(task, weights, options, *rest, **named)

    monkeypatch.setattr(session_module, "open_pipeline", count)
    return opened


def command_bytes(weights: Path, picture: Path, folder: Path, *words: object) -> bytes:
    given = ["--input", picture, "--output", folder, "--weights", weights, "--overwrite", *words]
    assert main(["super-resolution", "predict", *map(str, given)]) == 0
    return (folder / f"{picture.stem}.png").read_bytes()


@pytest.mark.parametrize("color_fix", ["none", "wavelet"])
@pytest.mark.parametrize(("scale", "steps", "seed"), [(2, 1, 0), (3, 3, 5)])
def test_the_bytes_are_those_of_the_command(
    session: PredictSession,
    weights: Path,
    picture: Path,
    tmp_path: Path,
    scale: int,
    steps: int,
    seed: int,
    color_fix: str,
):
    settings = {"scale": scale, "steps": steps, "seed": seed, "color-fix": color_fix}
    shown = upscale(session, picture, settings)
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert shown.after.read_bytes() == command_bytes(weights, picture, tmp_path, *words)
    assert f"26 × 34 → {26 * scale} × {34 * scale}" in shown.note


def test_the_seed_and_the_lora_matter(
    session: PredictSession, weights: Path, picture: Path, lora: Path, tmp_path: Path
):
    plain = upscale(session, picture, {"scale": 2, "seed": 0}).after.read_bytes()
    other_seed = upscale(session, picture, {"scale": 2, "seed": 1}).after.read_bytes()
    settings = {"scale": 2, "seed": 0, "lora": lora, "lora-scale": 0.5}
    adapted = upscale(session, picture, settings)
    assert "keys matched, scale 0.5" in adapted.note
    assert len({plain, other_seed, adapted.after.read_bytes()}) == 3
    words = ["--scale", 2, "--lora", lora, "--lora-scale", 0.5]
    assert adapted.after.read_bytes() == command_bytes(weights, picture, tmp_path, *words)
    assert upscale(session, picture, {"scale": 2, "seed": 0}).after.read_bytes() == plain


def test_the_pipeline_is_opened_late_and_once(
    session: PredictSession, picture: Path, lora: Path, loads: list[Any]
):
    session.options(picture, "results", {})
    assert loads == []
    for scale in (2, 3):
        upscale(session, picture, {"scale": scale})
    assert loads == [None]
    for strength in (0.5, 0.5, 1.0):
        upscale(session, picture, {"scale": 2, "lora": lora, "lora-scale": strength})
    assert loads == [None, lora, lora]


def test_before_is_the_bicubic_enlargement_of_the_same_size(session: PredictSession, picture: Path):
    shown = upscale(session, picture, {"scale": 3})
    upright = Image.open(picture).transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(upright.resize((78, 102), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(Image.open(shown.before)), expected)
    assert Image.open(shown.after).size == (78, 102)


def test_the_note_has_the_command_that_makes_the_same(
    session: PredictSession, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown = upscale(session, picture, {"scale": 2, "steps": 2, "seed": 9, "color-fix": None})
    command = shlex.split(shown.note.split("```sh\n")[1].split("\n```")[0])
    monkeypatch.chdir(picture.parent)
    command[command.index("results")] = str(tmp_path)
    assert main(command[1:]) == 0
    assert (tmp_path / "leaf.png").read_bytes() == shown.after.read_bytes()


def test_progress_counts_tiles_to_the_end(session: PredictSession, picture: Path):
    seen: list[tuple[int, int]] = []
    upscale(session, picture, {"scale": 2}, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0


def test_old_runs_are_removed(session: PredictSession, picture: Path):
    made = [upscale(session, picture, {"scale": 2}).after for _ in range(KEPT_RUNS + 2)]
    assert [file.exists() for file in made] == [False, False, *[True] * KEPT_RUNS]


def test_complaints_are_those_of_the_command(
    session: PredictSession, weights: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for file, settings in ((empty, {"scale": 2}), (picture, {"scale": 5}), (picture, {"lora": empty})):
        with pytest.raises(PolyditError) as caught:
            upscale(session, file, settings)
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        given = ["--input", file, "--output", tmp_path / "out", "--weights", weights, *words]
        assert main(["super-resolution", "predict", *map(str, given)]) == 2
        assert capsys.readouterr().err.strip() == f"polydit: error: {' '.join(str(caught.value).split())}"


def test_no_picture_and_too_large_a_result_are_said(
    session: PredictSession, tmp_path: Path, loads: list[Any]
):
    with pytest.raises(PolyditError, match="upload one or click on an example"):
        upscale(session, None, {"scale": 2})
    large = tmp_path / "large.png"
    Image.new("L", (2000, 2000)).save(large)
    with pytest.raises(PolyditError, match="8000 x 8000 pixels at x4 are too many for a page"):
        upscale(session, large, {"scale": 4})
    assert loads == []


def test_uploads_are_called_by_their_names():
    upload = Path("/somewhere/0123/cat.png")
    assert explain_upload(PolyditError(f"{upload}: not a picture"), upload, None) == "cat.png: not a picture"
    assert explain_upload(ZeroDivisionError(), upload) is None
